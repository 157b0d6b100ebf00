"""Licences of articles: one name for the ways in which publishers state the same licence."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

KINDS = ("any", "non-commercial", "commercial")  # uses that a licence must allow
PUBLIC_DOMAIN, ZERO = "public domain", "CC0"
_ADDRESS = re.compile(
    r"creativecommons\.org/(?:licen[cs]es/(by(?:-(?:nc|nd|sa))*)|publicdomain/(zero|mark))"
    r"(?:/(\d\.\d))?"
)
_CODE = re.compile(r"\bcc[ -]?(?:(by(?:[ -](?:nc|nd|sa))*)|(zero|0))(?![a-z])(?:[ -]?v?(\d\.\d))?")
# Longer parts first. A name in words has no "by": Attribution-NonCommercial 4.0 International.
_WORDS = {
    "attribution": "by",
    r"non-? ?commercial": "nc",
    r"no-? ?deriv(?:ative)?s?(?: works)?": "nd",
    r"share-? ?alike": "sa",
}
_NAME = re.compile(
    r"creative commons (attribution(?:[ -]*(?:non-? ?commercial|no-? ?deriv(?:ative)?s?(?: works)?"
    r"|share-? ?alike))*)(?: licen[cs]e)?(?:[ ,]*(?:version )?v?(\d\.\d))?"
)
_ROW = np.dtype([("pmcid", np.uint64), ("name", "S16")])
_PARTS = ("nc", "sa", "nd")  # in the order of their names


def license_name(published: str) -> str:
    """Return "CC BY-NC 4.0", "CC0" or "public domain" for a licence as published, else "".

    The address of a licence, its code ("CC-BY", "cc by-nc-nd/4.0") and its name in words are
    recognised, alone or inside a sentence. A text that states several different licences has no
    name (but for CC0 beside another, which is for the data), and neither does any other licence:
    both are unknown.
    """
    text = " ".join(published.replace("_", "-").replace("\u2010", "-").lower().split())
    names = {_named(parts, zero, version) for parts, zero, version in _ADDRESS.findall(text)}
    rest = _ADDRESS.sub(" ", text)
    names |= {_named(parts, zero, version) for parts, zero, version in _CODE.findall(rest)}
    for words, version in _NAME.findall(rest):
        for pattern, part in _WORDS.items():
            words = re.sub(pattern, part, words)
        names.add(_named(words, "", version))
    if re.fullmatch(r"(in the )?public domain\.?", rest):
        names.add(PUBLIC_DOMAIN)
    # A name without its version does not contradict the same name with one.
    names = {name for name in names if not any(other.startswith(f"{name} ") for other in names)}
    if len(names) > 1:  # such a waiver is for the data of an article, the other for its text
        names -= {PUBLIC_DOMAIN, ZERO}
    return names.pop() if len(names) == 1 else ""


def allows(name: str, kind: str) -> bool:
    """Return whether a licence, by its `license_name`, allows a use of `KINDS`.

    Licences with NC allow non-commercial use, all others of Creative Commons and the public domain
    both. An unknown licence allows "any" only.
    """
    if kind == "any":
        return True
    return bool(name) and (kind == "non-commercial" or "-NC" not in name)


def write_license_table(path: Path, licenses: Iterable[tuple[str, str]]) -> None:
    """Write the names of licences by PMCID for `LicenseTable`, without those that have no name."""
    named = ((pmcid, license_name(published)) for pmcid, published in licenses)
    rows = ((int(pmcid.upper().removeprefix("PMC")), name) for pmcid, name in named if name)
    table = np.fromiter(rows, _ROW)
    np.save(path, table[np.argsort(table["pmcid"], kind="stable")])


class LicenseTable:
    """Names of licences by PMCID, in a file of some bytes an article that processes share."""

    def __init__(self, path: str | Path):
        self._table = np.load(path, mmap_mode="r")

    def get(self, pmcid: str) -> str:
        """Return the name of an article's licence, "" if the table has none."""
        number = int(pmcid.upper().removeprefix("PMC"))
        place = int(np.searchsorted(self._table["pmcid"], number, side="right")) - 1
        if place < 0 or self._table["pmcid"][place] != number:
            return ""
        return self._table["name"][place].decode("ascii")


def _named(parts: str, zero: str, version: str) -> str:
    if zero == "mark":
        return PUBLIC_DOMAIN
    if zero:
        return ZERO
    there = set(re.split(r"[ -]+", parts))
    name = "-".join(["CC BY", *(part.upper() for part in _PARTS if part in there)])
    return f"{name} {version}".strip()
