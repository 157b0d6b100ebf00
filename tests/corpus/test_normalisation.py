import gzip
import json
import unicodedata

import pytest
from ftfy import fix_encoding
from ftfy.badness import is_bad
from hypothesis import given
from hypothesis import strategies as st

from biomedlm_jax.corpus.articles import Article
from biomedlm_jax.corpus.normalisation import (
    NORMALISATIONS,
    choose,
    flags_of,
    normalise,
    normalise_article,
)
from biomedlm_jax.errors import InputError


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("line_ends", "a\r\nb\rc\n\r\n", "a\nb\nc\n\n"),
        ("controls", "\ufeffa\0\x07\tb\x85\x9f\n so\xadft\u200b\u200d", "a\tb\n soft\u200d"),
        ("nfc", "e\u0301 \u212b \ufb01", "é Å \ufb01"),
        ("spaces", " a\xa0\u2009b\t\tc  \n \n\n\n d \n", "a b c\n\nd"),
    ],
)
def test_each_does_only_its_own(name, text, expected):
    assert normalise(text, [name]) == normalise(text, name) == expected
    assert normalise(text, []) == text


def test_all_run_in_their_order_and_each_can_be_left_out():
    text = "\ufeffe\u0301\r\n\xa0x\0"
    assert normalise(text, "all") == "é\nx"
    assert normalise(text, ["nfc", "line_ends"]) == "\ufeffé\n\xa0x\0"
    assert choose(["spaces", "line_ends"]) == ("line_ends", "spaces")
    assert choose("all") == tuple(NORMALISATIONS)
    assert choose([]) == ()
    expected = "got the normalisation 'nfd'; expected some of line_ends, controls, nfc, spaces, or"
    with pytest.raises(InputError, match=expected):
        choose(["nfc", "nfd"])


@given(st.text(st.sampled_from("ab\u0301\u0327é \t\r\n\xa0\u2000\u200b\ufeff\0\x85한\u1100\u1161")))
def test_a_second_time_changes_nothing(text):
    once = normalise(text, "all")
    assert normalise(once, "all") == once
    assert unicodedata.is_normalized("NFC", once)
    assert "  " not in once
    assert "\n\n\n" not in once


def test_an_article_keeps_its_other_fields():
    article = Article("f:1", "pmc", title="e\u0301", abstract="a\r\nb", body="x", license="e\u0301")
    changed = normalise_article(article, "all")
    assert (changed.title, changed.abstract, changed.license) == ("é", "a\nb", "e\u0301")
    assert normalise_article(article, []) is article


@pytest.mark.parametrize("encoding", ["windows-1252", "latin-1", "mac-roman"])
def test_mojibake_is_flagged_and_not_changed(encoding):
    text = "The effect of β-glucan “oats” at 5 µg, ≥ 3 · 10⁹ naïve cells, Côte d'Ivoire, 37 °C ±"
    assert flags_of(text) == ()
    damaged = text.encode().decode(encoding, "replace")
    assert "mojibake" in flags_of(f"Plain.\n{damaged}")
    assert normalise(damaged.replace("\ufffd", ""), "nfc") == damaged.replace("\ufffd", "")
    assert flags_of("caf\ufffd") == ("replacement",)
    assert flags_of("漢字 Ελληνικά кириллица العربية") == ()


@given(
    st.text(st.sampled_from("é\u2013“”°±βЖ漢🧬\xa0 a?ÃÂâ")),
    st.sampled_from(["latin-1", "sloppy-windows-1252", "sloppy-windows-1253", "cp437", "macroman"]),
    st.sampled_from([("\xa0", " "), ("\x81", "?"), ("\ufffd", "\x1a"), ("", "")]),
)
def test_the_fast_test_misses_nothing_that_ftfy_finds(text, encoding, loss):
    damaged = text.encode().decode(encoding, "replace").replace(*loss)
    if is_bad(damaged) and fix_encoding(damaged) != damaged and len(damaged.splitlines()) == 1:
        assert "mojibake" in flags_of(damaged)


def test_two_real_articles_are_flagged(real_data):
    damaged = {"PMC3462109", "PMC3614914"}
    with gzip.open(real_data / "pubmed_text" / "pmc_fulltext_ccby.jsonl.gz", "rt") as file:
        lines = [line for n, line in enumerate(file) if n % 40 == 0 or line[11:21] in damaged]
    records = [json.loads(line) for line in lines]
    flagged = {record["pmcid"] for record in records if flags_of(record["body"])}
    assert flagged == damaged
    assert len(records) > 60
