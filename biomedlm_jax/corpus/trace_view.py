"""How a trace is shown: on a terminal, and as an HTML page without parts elsewhere."""

import html
import re
import string
from collections.abc import Iterator, Mapping
from importlib import resources

from rich.console import Console
from rich.text import Text

from biomedlm_jax.corpus.trace import SPANS, Trace, TracedDocument
from biomedlm_jax.errors import counted
from biomedlm_jax.files import write_text

# Words of the longest span over a word from which it has this background, under black letters.
COLOURS = ((1, "#fff3c4"), (12, "#ffd98a"), (20, "#ffae70"), (40, "#ff7f6b"))
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # but for white space


def name_of(document: TracedDocument) -> str:
    """Return the names of a document in one line: "PMC12, PMID 34"."""
    names = dict(document.names)
    if names.get("id") == f"pmid:{names.get('pmid')}":  # build-corpus's, without another id
        del names["id"]
    shown = [names[name] for name in ("id", "pmcid") if name in names][:1]
    shown += [f"PMID {names['pmid']}"] if "pmid" in names else []
    shown += [f"doi {names['doi']}"] if "doi" in names and not shown else []
    return ", ".join(dict.fromkeys(shown)) or "a document without an id"


def pieces(trace: Trace) -> Iterator[tuple[str, int]]:
    """Yield the text in pieces, each with the words of the longest span over it, or 0."""
    longest = [0] * len(trace.text)
    for span in reversed(trace.longest):
        longest[span.start : span.end] = [span.words] * (span.end - span.start)
    start = 0
    for end in range(1, len(trace.text) + 1):
        if end == len(trace.text) or longest[end] != longest[start]:
            yield trace.text[start:end], longest[start]
            start = end


def summary(trace: Trace) -> str:
    """Return the figures of a trace in one line."""
    words = len(trace.word_spans)
    share = f"{trace.covered:,} of {counted(words, 'word')} ({trace.covered / words:.0%})"
    spans, least = counted(len(trace.spans), "span"), counted(trace.least, "word")
    return f"{share} are in {spans} of at least {least}"


def terminal_text(trace: Trace) -> Text:
    """Return the text with its spans coloured, and the documents of the longest spans."""
    text = Text()
    for piece, words in pieces(trace):
        text.append(_shown(piece), style=f"black on {_colour(words)}" if words else "")
    text.append(f"\n\n{summary(trace)}\n")
    for span in trace.longest[:SPANS]:
        text.append(f"\n{_counts(span.words, span.occurrences, span.documents)}\n", style="bold")
        for one in span.examples:
            text.append(_shown(f"  {name_of(one)}: {one.title}\n    ... {_plain(one.before)}"))
            text.append(_shown(_plain(one.match)), style=f"black on {_colour(span.words)}")
            text.append(_shown(f"{_plain(one.after)} ...\n"))
    return text


def print_trace(trace: Trace, page: str | None = None) -> None:
    """Print a trace, and write the page if a file is named."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(terminal_text(trace), end="")
    if page:
        write_text(page, html_page(trace, title="Spans in the corpus"))
        console.print(f"\nwrote {page}", markup=False)


def html_page(trace: Trace, *, title: str) -> str:
    """Return an HTML page of a trace; a document's PMID is a link to PubMed."""
    shown = trace.longest[:SPANS]
    body = "".join(_mark(piece, words) for piece, words in pieces(trace))
    spans = []
    for span in shown:
        documents = "".join(_html_document(one, span.words) for one in span.examples)
        counts = _counts(span.words, span.occurrences, span.documents)
        spans.append(f"<section><h2>{counts}</h2>\n<ol>{documents}</ol></section>")
    file = resources.files("biomedlm_jax.corpus") / "trace.html"
    keys = "".join(f"<li>{_mark(f'{least}+ words', least)}</li>" for least, _ in COLOURS)
    facts = {"facts": html.escape(summary(trace)), "keys": keys, "body": body}
    facts |= {"spans": "\n".join(spans) or "<p>No span is in the corpus.</p>"}
    return string.Template(file.read_text("utf-8")).substitute(title=html.escape(title), **facts)


def _html_document(one: TracedDocument, words: int) -> str:
    name, names = html.escape(name_of(one)), one.names
    if link := _link(names):
        name = f'<a href="{link}">{name}</a>'
    before, after = html.escape(_plain(one.before)), html.escape(_plain(one.after))
    text = f"... {before}{_mark(_plain(one.match), words)}{after} ..."
    return f"<li>{name}: {html.escape(one.title)}<blockquote>{text}</blockquote></li>\n"


def _link(names: Mapping[str, str]) -> str:
    pmid = names.get("pmid", "")
    return f"https://pubmed.ncbi.nlm.nih.gov/{pmid}/" if pmid.isdecimal() else ""


def _counts(words: int, occurrences: int, documents: int) -> str:
    times = "once" if occurrences == 1 else f"{occurrences:,} times"
    return f"{counted(words, 'word')}, {times} in {counted(documents, 'document')}"


def _colour(words: int) -> str:
    return next(colour for least, colour in reversed(COLOURS) if words >= least)


def _mark(text: str, words: int) -> str:
    escaped = html.escape(text)
    style = f"background:{_colour(words)}" if words else ""
    return f'<mark style="{style}" title="{words:,} words">{escaped}</mark>' if words else escaped


def _shown(text: str) -> str:
    """Return a text without controls, such as the escape sequences of a terminal."""
    return CONTROLS.sub("\ufffd", text)


def _plain(text: str) -> str:
    """Return a text with its runs of white space as one space, also at its ends."""
    joined = " ".join(text.split())
    left, right = text[:1].isspace() and joined != "", text[-1:].isspace()
    return f"{' ' * left}{joined}{' ' * right}"
