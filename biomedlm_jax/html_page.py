"""Self-contained HTML pages of figures, tables and text, without scripts or parts elsewhere."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, StrictUndefined

# A number with its unit or interval: -1,234.5, 1e-05, 50.0 % [40.0, 60.0], 0.9 to 1.2, p < 0.1.
_NUMBER = r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?( %)?"
_NUMERIC = re.compile(rf"nan|-?inf|(p [<=] )?{_NUMBER}( \[{_NUMBER}, {_NUMBER}\])?( to {_NUMBER})?")
_BLANK = ("", "-")
_PHONE, _PADDING = 44, 3  # characters of a line on a phone, and around a cell
_STACKED = 200  # cells of the longest table that is stacked there


@dataclass(frozen=True)
class Link:
    """A link to a file beside the page; `url` is relative and quoted."""

    text: str
    url: str


@dataclass(frozen=True)
class Table:
    """A table; a column of numbers alone, with units or intervals, is aligned right.

    On a phone the rows of a table that is too wide are shown one below another, each cell with the
    name of its column. A longer one, of more than 200 cells, is scrolled.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Return which columns are of numbers; "-" and empty cells may be among them."""
        columns = [*zip(*self.rows, strict=True)] or [()] * len(self.columns)
        filled = [[c for c in map(_shown, cells) if c not in _BLANK] for cells in columns]
        return [bool(cells) and all(map(_NUMERIC.fullmatch, cells)) for cells in filled]

    @property
    def kind(self) -> str:
        """Return the style: "pairs" of names and values, "stacked" on a phone, or none."""
        if len(self.columns) == 2:
            return "pairs"
        lines = [self.columns, *self.rows]
        widths = [max(map(len, map(_shown, cells))) for cells in zip(*lines, strict=True)]
        few = len(self.columns) * len(self.rows) <= _STACKED
        return "stacked" if few and sum(widths) + _PADDING * len(widths) > _PHONE else ""


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
    parts: Sequence[str | Table | Figure | Listing | Link]


def render_page(title: str, sections: Sequence[Section], *, facts: Mapping[str, object]) -> str:
    """Return a page, `facts` (names and values) below its title; all text is escaped.

    NUL and half of a surrogate pair, which HTML does not have, are shown as escape sequences.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.globals["kind"] = lambda part: type(part).__name__  # ty: ignore[invalid-assignment]
    environment.filters["shown"] = _shown
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
    return value.text if isinstance(value, Link) else str(value)
