"""Licences: the names of those that articles declare, and NLM's lists of them.

A licence of Creative Commons is named `CC BY`, `CC BY-NC`, `CC BY-NC-ND` and so on, without its
version; its dedication to the public domain is `CC0`, its mark `public domain`.
"""

import array
import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from biomedlm_jax.errors import InputError
from biomedlm_jax.streams import read_lines

_ADDRESS = re.compile(
    r"creativecommons\.org/\s*(?:licen[sc]es?/(by(?:-(?:nc|nd|sa))*)|publicdomain/(zero|mark))",
    re.I,
)
_SHORT = re.compile(r"\bcc[ -]?(?:(by(?:[ -](?:nc|nd|sa))*)\b|(0|zero)\b)", re.I)
_WORDS = re.compile(
    r"(?:creative\s*commons|\bCC)\s+attribution((?:[\s,\u2013-]*(?:and\s+)?"
    r"(?:non[\s-]*commercial|no[\s-]*deriv\w*(?:\s+works?)?|share[\s-]*alike))*)",
    re.I,
)
_PMCID = re.compile(r"(?:PMC)?(\d{1,18})")
_COLUMNS = {"accessionid": "pmcid", "license": "license"}


def name_licenses(text: str) -> list[str]:
    """Return the licences that an address or a text names, in its order, each once."""
    names = []
    for match in _ADDRESS.finditer(text):
        kinds = {"zero": "CC0", "mark": "public domain"}
        names.append(kinds.get((match[2] or "").lower()) or _cc(match[1].lower().split("-")))
    for match in _SHORT.finditer(text):
        names.append("CC0" if match[2] else _cc(re.split("[ -]", match[1].lower())))
    for match in _WORDS.finditer(text):
        kinds = [("non", "nc"), ("deriv", "nd"), ("share", "sa")]
        names.append(_cc(["by", *(short for word, short in kinds if word in match[1].lower())]))
    return list(dict.fromkeys(names))


def strictest(names: Iterable[str]) -> str:
    """Return the name with the most restrictions, the first of several, "" for none.

    An article under CC BY may add that its data are under CC0.
    """
    order = ["public domain", "CC0"]
    ranked = [(order.index(name) if name in order else 2 + name.count("-"), name) for name in names]
    return max(ranked, key=lambda pair: pair[0])[1] if ranked else ""


def _cc(parts: list[str]) -> str:
    return "CC " + "-".join(part.upper() for part in ("by", "nc", "nd", "sa") if part in parts)


class FileList:
    """The licences of a list of NLM by PMCID, in nine bytes an article."""

    def __init__(self, numbers: array.array, codes: array.array, names: list[str]):
        # A number that is listed again keeps its last licence.
        reverse = np.asarray(numbers, np.int64)[::-1]
        self._numbers, last = np.unique(reverse, return_index=True)
        self._codes = np.asarray(codes, np.uint8)[::-1][last]
        self._names = names

    def __len__(self) -> int:
        return len(self._numbers)

    def license_of(self, pmcid: str) -> str:
        """Return the licence of an article, as the list has it; "" if it is not in the list."""
        match = _PMCID.fullmatch(pmcid)
        if not match:
            return ""
        number = int(match[1])
        index = int(np.searchsorted(self._numbers, number))
        listed = index < len(self._numbers) and int(self._numbers[index]) == number
        return self._names[int(self._codes[index])] if listed else ""


def read_file_list(path: str | Path) -> FileList:
    """Read NLM's `oa_file_list.csv`, or a `.filelist.csv` of its bulk packages.

    Raises InputError, with file and line, for another file, or a line without its columns.
    """
    numbers, codes, names = array.array("q"), array.array("B"), {}
    rows = csv.reader(_text_lines(path), strict=True)
    place = f"{path}:1"
    try:
        head = [re.sub(r"[^a-z]", "", name.lower()) for name in next(rows, [])]
        missing = [name for name in _COLUMNS if name not in head]
        if missing:
            expected = "expected Accession ID and License, as NLM's oa_file_list.csv has them"
            got = f"got the columns {', '.join(head)[:200]}"
            raise InputError(f"{place}: {got}; {expected}")
        at, license_at = head.index("accessionid"), head.index("license")
        for row in rows:
            place = f"{path}:{rows.line_num}"
            if not row:
                continue
            match = _PMCID.fullmatch(row[at].strip()) if len(row) == len(head) else None
            if not match:
                got = f"got {len(row)} columns: {', '.join(row)[:80]!r}"
                raise InputError(f"{place}: {got}; expected {len(head)}, with a PMCID")
            code = names.setdefault(row[license_at].strip(), len(names))
            if code > 255:
                raise InputError(f"{place}: more than 256 different licences; no list of NLM")
            numbers.append(int(match[1]))
            codes.append(code)
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: no CSV ({error})") from None
    return FileList(numbers, codes, list(names))


def _text_lines(path: str | Path) -> Iterator[str]:
    for number, line in read_lines(path, limit=1 << 20):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: expected UTF-8 text ({error.reason})") from None
        if "\0" in text:
            raise InputError(f"{path}:{number}: NUL character; expected UTF-8 text")
        yield text
