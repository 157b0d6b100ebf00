"""Normalisations of texts, each with a name, and flags of texts that look damaged.

None is on by default: BioMedLM's published recipe had none. They run in the order of this table:

    line_ends   CRLF and CR are LF
    controls    no control characters but tab and LF, no byte order marks, no soft hyphens and zero
                width spaces; joiners stay, which some scripts need
    nfc         Unicode's composed form: "e" and a combining accent are one "é"
    spaces      every other space of Unicode is a plain one; runs of spaces and tabs are one; none
                at the ends of lines and of the text; at most one blank line

A flag changes nothing. `mojibake`: bytes of UTF-8 were decoded with another encoding somewhere
("Î²-glucan"), as `ftfy` detects it. `replacement`: the text has U+FFFD, where a character was lost.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Iterable

from ftfy import badness, fix_encoding
from ftfy.chardata import CHARMAP_ENCODINGS

from biomedlm_jax.corpus.articles import Article
from biomedlm_jax.errors import InputError

_CONTROLS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u200b\ufeff\ufffe\uffff]")
_OTHER_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")


def _possible_mojibake() -> re.Pattern[str]:
    """Return a pattern of what any text has that ftfy would decode anew.

    A character beyond ASCII has two bytes or more in UTF-8, which are characters beyond ASCII in
    each encoding that ftfy tries. One may have been lost (1A or "?"), or byte A0 become a space,
    which ftfy restores after a lead byte in `two`, and after one of `more` if another byte follows.
    """

    def characters(leads: bytes) -> str:
        texts = [leads.decode(name, "ignore") for name in CHARMAP_ENCODINGS]
        return re.escape("".join(sorted(set("".join(texts)))))

    two, more = characters(b"\xc2\xc3\xc5\xce\xd0\xd9"), characters(bytes(range(0xE0, 0xF5)))
    other = r"[^\0-\x7f]"
    return re.compile(
        rf"{other}(?:{other}|\x1a|(?<=[{two}])[ ?]|(?<=[{more}])[ ?][\x1a\x80-\U0010ffff])"
    )


_POSSIBLE = _possible_mojibake()


def _line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _controls(text: str) -> str:
    return _CONTROLS.sub("", text)


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _spaces(text: str) -> str:
    text = _OTHER_SPACES.sub(" ", text).replace("\t", " ")
    for run, short in (("  ", " "), (" \n", "\n"), ("\n ", "\n"), ("\n\n\n", "\n\n")):
        while run in text:  # much faster than an expression
            text = text.replace(run, short)
    return text.strip(" \n")


NORMALISATIONS: dict[str, Callable[[str], str]] = {
    "line_ends": _line_ends,
    "controls": _controls,
    "nfc": _nfc,
    "spaces": _spaces,
}


def choose(names: Iterable[str]) -> tuple[str, ...]:
    """Return the named normalisations in the order in which they run; "all" is each of them.

    Raises InputError for an unknown name.
    """
    chosen = {names} if isinstance(names, str) else set(names)
    if unknown := sorted(chosen - {*NORMALISATIONS, "all"}):
        expected = f"expected some of {', '.join(NORMALISATIONS)}, or all"
        raise InputError(f"got the normalisation {unknown[0]!r}; {expected}")
    return tuple(name for name in NORMALISATIONS if chosen & {name, "all"})


def normalise(text: str, names: Iterable[str]) -> str:
    """Return a text after the named normalisations; a second time changes nothing."""
    for name in choose(names):
        text = NORMALISATIONS[name](text)
    return text


def normalise_article(article: Article, names: Iterable[str]) -> Article:
    """Return an article whose title, abstract and body are normalised."""
    parts = {part: getattr(article, part) for part in ("title", "abstract", "body")}
    changed = {part: normalise(text, names) for part, text in parts.items()}
    return article if changed == parts else dataclasses.replace(article, **changed)


def flags_of(text: str) -> tuple[str, ...]:
    """Return the flags of a text, `mojibake` and `replacement`, each once."""
    flags = []
    # The tests from the fastest to the slowest: few texts reach the last.
    lines = text.splitlines() if _POSSIBLE.search(text) else []
    if any(
        _POSSIBLE.search(line) and badness.is_bad(line) and fix_encoding(line) != line
        for line in lines
    ):
        flags.append("mojibake")
    if "\ufffd" in text:
        flags.append("replacement")
    return tuple(flags)
