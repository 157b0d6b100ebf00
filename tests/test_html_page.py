import re

import pytest
from jinja2 import UndefinedError
from lxml import html

from biomedlm_jax.html_page import Figure, Link, Listing, Section, Table, render_page

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
    assert right == [False, True, True, False]
    assert page.find(".//img").get("src") == "data:image/png;base64,iVBORw0KGgo="
    assert page.find(".//img").get("alt") == 'a "figure"'
    assert page.findtext(".//pre") == "a\n  <i>b</i>"


@pytest.mark.parametrize(
    ("cells", "numeric"),
    [
        (["1,234.5", "-", "", "+5.0 [-5.0, +15.0]", "1e-05", "33.3 % [16.7, 50.0]"], True),
        (["0.9 to 1.2", 3, None, "nan", "-inf", "p < 0.001", "-12 %", 1e-9], True),
        (["33.3 % [16.7, 50.0]", "33.3 % [16.7, 50.0], chosen"], False),
        (["2: x1, x2"], False),
        (["2026-11-28T22:35:19+00:00"], False),
        (["5e0fcba37e8b"], False),
        (["12 cores"], False),
        (["-", None], False),
    ],
)
def test_a_column_of_numbers_alone_is_aligned_right(cells, numeric):
    assert Table(["name", "x"], [["a", cell] for cell in cells]).numeric == [False, numeric]


def test_a_wide_table_is_stacked_on_a_phone_with_the_names_of_its_columns():
    wide = Table(["", "setting", "accuracy"], [["base", "option per token", "33.3 % [16.7, 50.0]"]])
    narrow, long = Table("abc", [[1, 2, 3]]), Table(wide.columns, [*wide.rows] * 67)
    pairs = Table(["name", "value"], [["hash", 64 * "5"]])
    assert [one.kind for one in (wide, narrow, long, pairs)] == ["stacked", "", "", "pairs"]
    page = html.fromstring(render_page("T", [Section("S", [wide])], facts={}))
    cells = page.xpath("//table[@class='stacked']//td")
    assert [e.get("data-name") for e in cells] == ["", "setting", "accuracy"]


def test_links_are_quoted_and_may_be_cells_facts_and_paragraphs():
    link = Link("a <b>", 'x"y/report.html')
    page = html.fromstring(
        render_page("T", [Section("S", [link, Table("ab", [[1, link]])])], facts={"own": link})
    )
    links = [(e.getparent().tag, e.text, e.get("href")) for e in page.iterfind(".//a")]
    assert links == [(tag, link.text, link.url) for tag in ("dd", "p", "td")]


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
