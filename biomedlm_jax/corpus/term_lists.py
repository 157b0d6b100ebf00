"""Lists of terms, one a line: those of the package, and files of the user."""

import codecs
import json
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from biomedlm_jax.errors import InputError
from biomedlm_jax.streams import read_lines

NAMES = ("diseases", "drugs", "genes", "procedures")
_FOLDER = resources.files("biomedlm_jax.corpus") / "terms"


class PublishedSplits(NamedTuple):
    """How a general tokenizer splits terms that are whole in BioMedLM's vocabulary."""

    tokenizer: str  # the general one's name
    source: str
    splits: dict[str, list[str] | None]  # None: the pieces are not published


def builtin_lists() -> dict[str, list[str]]:
    """Return the package's lists of 40 terms each, by name."""
    with resources.as_file(_FOLDER) as folder:
        return {name: read_terms(folder / f"{name}.txt") for name in NAMES}


def published_splits() -> PublishedSplits:
    """Return the table of the paper."""
    file = _FOLDER / "published_splits.json"
    return PublishedSplits(**json.loads(file.read_text("utf-8")))


def read_terms(path: str | Path) -> list[str]:
    """Read a list of terms, one a line, plain or compressed; the first of equal terms counts.

    Empty lines and those that begin with "#" are none. Raises InputError if the file is not in
    UTF-8 or has no term.
    """
    terms: dict[str, None] = {}
    for number, line in read_lines(path):
        try:
            term = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").decode().strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: expected UTF-8, got {error.reason}") from None
        if term and not term.startswith("#"):
            terms[term] = None
    if not terms:
        raise InputError(f"{path} has no term; expected one a line")
    return list(terms)
