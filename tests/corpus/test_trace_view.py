"""trace_view.py: what is printed and what the page has."""

import re
import xml.etree.ElementTree as ElementTree

from biomedlm_jax.corpus.trace import Span, Trace, TracedDocument
from biomedlm_jax.corpus.trace_view import html_page, name_of, pieces, terminal_text

NAMES = {"id": "PMC1", "pmid": "7", "pmcid": "PMC1"}
DOCUMENT = TracedDocument(NAMES, "A <b>title</b>", "so ", "ab &\ncd", " ef")
TEXT = "Ab & cd ef <i>gh</i>"
WORDS = ((0, 2), (5, 7), (8, 10), (11, 20))
SPANS = (Span(0, 2, 0, 7, 3, 2, (DOCUMENT,)), Span(1, 2, 5, 10, 1, 1))
TRACE = Trace(TEXT, WORDS, SPANS, 2)


def test_pieces_are_the_text_with_the_longest_span_over_each():
    assert [*pieces(TRACE)] == [("Ab & cd ef", 2), (" <i>gh</i>", 0)]
    longer = Trace(TEXT, WORDS, (SPANS[0], Span(1, 3, 5, 20, 1, 1)), 2)
    assert [*pieces(longer)] == [("Ab & ", 2), ("cd ef <i>gh</i>", 3)]
    assert [*pieces(Trace("a", ((0, 1),), (), 2))] == [("a", 0)]


def test_the_terminal_has_counts_documents_and_excerpts():
    plain = terminal_text(TRACE).plain
    assert plain.startswith(f"{TEXT}\n\n3 of 4 words (75%) are in 2 spans of at least 2 words\n")
    assert "2 words, 3 times in 2 documents\n  PMC1, PMID 7: A <b>title</b>\n" in plain
    assert "... so ab & cd ef ..." in plain
    assert "2 words, once in 1 document\n" in plain
    assert [str(span.style) for span in terminal_text(TRACE).spans if "on" in str(span.style)]


def test_the_terminal_gets_no_escape_sequences_of_a_document():
    escape = "\x1b[31m\x9b\x7f"
    document = TracedDocument({"id": escape}, escape, escape, f"ab{escape}cd", escape)
    trace = Trace(f"ab\tcd{escape}\n", ((0, 2), (3, 5)), (Span(0, 2, 0, 5, 1, 1, (document,)),), 2)
    plain = terminal_text(trace).plain
    assert not {"\x1b", "\x9b", "\x7f"} & {*plain}
    assert plain.startswith("ab\tcd\ufffd[31m\ufffd\ufffd\n")
    assert plain.count("[31m") == 6


def test_the_page_is_whole_and_loads_nothing():
    page = html_page(TRACE, title="A & B")
    assert "$" not in page
    assert "<script" not in page
    assert not re.findall(r"""(?:src=|@import|url\(|<link)""", page)
    assert re.findall(r'href="([^"]*)"', page) == ["https://pubmed.ncbi.nlm.nih.gov/7/"]
    body = page[page.index("<div class") :].rpartition("</html>")[0]
    root = ElementTree.fromstring(body)  # every tag is closed, every text escaped
    assert "".join(next(p for p in root.iter("p") if p.get("class") == "text").itertext()) == TEXT
    assert [mark.text for mark in root.iter("mark")][-2:] == ["Ab & cd ef", "ab & cd"]
    assert "No span is in the corpus" in html_page(Trace("a", ((0, 1),), (), 2), title="t")


def test_names():
    for names, shown in (
        ({"pmid": "7"}, "PMID 7"),
        ({"id": "pmid:7", "pmid": "7"}, "PMID 7"),
        ({"doi": "10.1/x"}, "doi 10.1/x"),
        ({}, "a document without an id"),
        ({"id": "x", "pmid": "7", "doi": "y"}, "x, PMID 7"),
    ):
        assert name_of(TracedDocument(names, "", "", "", "")) == shown
