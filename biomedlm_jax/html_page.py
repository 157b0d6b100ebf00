"""Self-contained HTML pages of figures, tables and text, without scripts or parts elsewhere."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined


@dataclass(frozen=True)
class Table:
    """A table; a cell that is a number, or text that begins with a digit, is aligned right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A PNG image and what it shows, in words."""

    png: bytes
    caption: str

    @property
    def url(self) -> str:
        """Return the image as a data URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Listing:
    """Text that a click opens, line breaks kept: a long item, a command, its output."""

    summary: str
    text: str


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; a part that is a string is a paragraph."""

    title: str
    parts: Sequence[str | Table | Figure | Listing]


def render_page(title: str, sections: Sequence[Section], *, facts: Mapping[str, object]) -> str:
    """Return a page, `facts` (names and values) below its title; all text is escaped.

    NUL and half of a surrogate pair, which HTML does not have, are shown as escape sequences.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.globals["kind"] = lambda part: type(part).__name__  # ty: ignore[invalid-assignment]
    environment.filters["shown"] = _shown
    environment.tests["numeric"] = _is_numeric
    text = resources.files("biomedlm_jax").joinpath("html_page.html").read_text(encoding="utf-8")
    page = environment.from_string(text)
    shown = page.render(title=title, sections=sections, facts=facts)
    return shown.encode("utf-8", "backslashreplace").decode().replace("\0", r"\0")


def _shown(value: object) -> str:
    """Return a value as a reader expects it: separators, four digits, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.4g}"
    return str(value)


def _is_numeric(value: object) -> bool:
    text = _shown(value).lstrip("+-<> ")
    return value is None or text[:1].isdigit()
