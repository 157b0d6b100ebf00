"""The text inside XML elements of NLM, and formulas of MathML in one line."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Element: TypeAlias = Any  # lxml has no types
Special = Mapping[str, Callable[[Element, list[str]], None]]

_SPACES = re.compile(r"[ \t\r\n]{2,}|[\t\r\n]")
_EXPONENT = re.compile(r"[-+\u2212\u2013]?\d")


class _Names(dict[str, str]):
    """Local names of tags, without their name spaces."""

    def __missing__(self, tag: str) -> str:
        name = tag.rpartition("}")[2]
        if len(self) < 10_000:  # a file can have any number of them
            self[tag] = name
        return name


local_name = _Names().__getitem__


def collapse(text: str) -> str:
    """Make each run of XML white space one space, and none at the ends."""
    if "  " in text or "\n" in text or "\t" in text or "\r" in text:  # much faster than the search
        text = _SPACES.sub(" ", text)
    return text.strip(" \t\r\n")


def inline_text(element: Element, special: Special) -> str:
    """Return the text of an element in one line; `special` has the elements that are not plain."""
    if not len(element):
        return collapse(element.text or "")
    parts: list[str] = []
    append_text(element, parts, special)
    return collapse("".join(parts))


def append_text(element: Element, parts: list[str], special: Special) -> None:
    """Append the texts inside an element to `parts`."""
    if element.text:
        parts.append(element.text)
    for child in element:
        if handle := special.get(local_name(child.tag)):
            handle(child, parts)
        elif len(child):
            append_text(child, parts, special)
        elif child.text:
            parts.append(child.text)
        if child.tail:
            parts.append(child.tail)


def append_superscript(text: str, parts: list[str]) -> None:
    """Append a superscript: a number after a digit is an exponent, 10^9, others are plain text."""
    before = next((part for part in reversed(parts) if part), "")
    if before[-1:].isdigit() and _EXPONENT.match(text):
        parts.append("^")
    parts.append(text)


def append_formula(element: Element, parts: list[str]) -> None:
    """Append MathML in one line: scripts as x_i and x^2, fractions as a/b, roots as √(x)."""
    parts.append(_formula(element))


def _formula(element: Element) -> str:
    name, children = local_name(element.tag), list(element)
    if name in ("annotation", "annotation-xml", "mphantom"):
        return ""
    if not children:
        return (element.text or "").strip(" \t\r\n")
    texts = [_formula(child) for child in children]
    if name in ("msub", "munder") and len(texts) == 2:
        return f"{texts[0]}_{_group(texts[1])}"
    if name in ("msup", "mover") and len(texts) == 2:
        accent = name == "mover" and not texts[1].isalnum()
        return f"{texts[0]}{texts[1]}" if accent else f"{texts[0]}^{_group(texts[1])}"
    if name in ("msubsup", "munderover") and len(texts) == 3:
        return f"{texts[0]}_{_group(texts[1])}^{_group(texts[2])}"
    if name == "mfrac" and len(texts) == 2:
        return f"{_group(texts[0])}/{_group(texts[1])}"
    if name == "mroot" and len(texts) == 2:
        return f"{_group(texts[0])}^(1/{texts[1]})"
    if name == "mtr":
        return " ".join(texts)
    if name == "mtable":
        return "; ".join(texts)
    inside = "".join(texts)
    if name == "msqrt":
        return f"√({inside})"
    if name == "mfenced":
        between = element.get("separators", ",")[:1]
        return f"{element.get('open', '(')}{between.join(texts)}{element.get('close', ')')}"
    return inside


def _group(text: str) -> str:
    plain = len(text) < 2 or text.isalnum() or re.fullmatch(r"[-\u2212]?[\d.]+", text)
    return text if plain else f"({text})"
