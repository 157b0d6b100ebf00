import re

import pytest
from jinja2 import UndefinedError
from lxml import html

from biomedlm_jax.html_page import Figure, Listing, Section, Table, render_page

PNG = b"\x89PNG\r\n\x1a\n"
ROWS = [["BioMedLM", 57.3, 1_234_567, None], ["<b>other</b>", "50.3 [48, 52]", 2, True]]


def test_all_parts_are_there_and_text_is_escaped():
    sections = [
        Section("Scores", ["A <script>alert(1)</script> paragraph.", Table("abcd", ROWS, "of 3")]),
        Section("Curve", [Figure(PNG, 'a "figure"'), Listing("worst & first", "a\n  <i>b</i>")]),
        Section("Empty", [Table(["a"], [])]),
    ]
    text = render_page("T & <T>", sections, facts={"model <m>": "x<y", "questions": 10_000})
    page = html.fromstring(text)
    assert page.findtext(".//h1") == "T & <T>"
    assert [e.text for e in page.iterfind(".//dd")] == ["x<y", "10,000"]
    assert [e.get("href") for e in page.iterfind(".//nav/a")] == ["#s1", "#s2", "#s3"]
    assert not page.xpath("//script | //b | //i")
    cells = [[cell.text for cell in row] for row in page.xpath("//section[1]//tbody/tr")]
    assert cells == [
        ["BioMedLM", "57.3", "1,234,567", "-"],
        ["<b>other</b>", "50.3 [48, 52]", "2", "yes"],
    ]
    right = [e.get("class") == "number" for e in page.xpath("//section[1]//tbody/tr[1]/td")]
    assert right == [False, True, True, True]
    assert page.find(".//img").get("src") == "data:image/png;base64,iVBORw0KGgo="
    assert page.find(".//img").get("alt") == 'a "figure"'
    assert page.findtext(".//pre") == "a\n  <i>b</i>"


def test_nothing_is_loaded_from_elsewhere():
    text = render_page("T", [], facts={})
    assert "default-src 'none'" in text
    assert re.findall(r"(?:src|href)=\"([^\"]*)\"", text) == ["data:,"]
    assert "http" not in text.replace("http-equiv", "")


def test_a_part_without_what_it_needs_is_an_error():
    with pytest.raises(UndefinedError):
        render_page("T", [{"title": "no parts"}], facts={})  # ty: ignore[invalid-argument-type]


def test_what_html_does_not_have_is_shown_as_escape_sequences():
    text = render_page("a\ud800b\0", [], facts={})
    assert r"<h1>a\ud800b\0</h1>" in text
    text.encode()
