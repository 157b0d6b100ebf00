"""ngrams.py against lm-evaluation-harness's words and against sets of substrings."""

import random
import re
import unicodedata

import numpy as np
import pytest
from lm_eval.decontamination.janitor import Janitor, word_ngrams

from biomedlm_jax.corpus import ngrams
from biomedlm_jax.corpus.ngrams import NgramIndex, characters, excerpt, words
from biomedlm_jax.errors import InputError

RNG = random.Random(0)
PIECES = [
    "renal",
    "Renal",
    "β-block",
    "(p<0.05)",
    "é",
    "e\u0301",
    "\ufb01x",
    " ",
    "\n",
    "_",
    ".",
    "a",
]
TEXTS = [" ".join(RNG.choices(PIECES, k=RNG.randint(0, 60))) for _ in range(40)]


def slow_ngrams(text: str, unit: str, length: int) -> list[str]:
    """All n-grams of a text in order, one character at a time."""
    text = unicodedata.normalize("NFKC", text)
    if unit == "words":
        kept = "".join(c for c in text.casefold() if c.isalnum() or c.isspace()).split()
        return [" ".join(kept[i : i + length]) for i in range(len(kept) - length + 1)]
    kept = "".join(c for c in text if c.isalnum())
    return [kept[i : i + length] for i in range(len(kept) - length + 1)]


def test_words_are_those_of_the_harness():
    text = "The beta-blocker's effect (P<0.05), at 3.5 mg/kg:\n\n 40% -- see 'Fig. 2_b'."
    assert words(text) == Janitor().normalize_string(text).split()
    expected = word_ngrams(Janitor().normalize_string(text), 3)
    assert slow_ngrams(text, "words", 3) == list(expected)
    assert words("E\u0301tude STRASSE \ufb01x") == words("étude straße fix")
    assert "".join(map(chr, characters("A b-1.5\n\ufb01 é_²").tolist())) == "Ab15fié2"


@pytest.mark.parametrize(("unit", "length"), [("words", 2), ("words", 5), ("characters", 13)])
@pytest.mark.parametrize("block", [12, 1 << 20])
def test_what_is_found_is_in_the_sets_of_substrings(unit, length, block, monkeypatch, tmp_path):
    monkeypatch.setattr(ngrams, "BLOCK", block)
    texts, documents = TEXTS[:20], [*TEXTS[20:], TEXTS[3] + " end", ""]
    NgramIndex.of(texts, unit, length).save(tmp_path)
    index = NgramIndex.load(tmp_path, unit, length)
    expected = [slow_ngrams(text, unit, length) for text in texts]
    assert index.ngrams().tolist() == [len(one) for one in expected]
    hits = 0
    for document in documents:
        there = {*slow_ngrams(document, unit, length)}
        matched = index.find(document)
        assert matched.starts.tolist() == sorted({*matched.starts.tolist()})
        places = matched.starts - index.offsets[matched.texts]
        got = {*zip(matched.texts.tolist(), places.tolist(), strict=True)}
        assert got == {
            (n, i) for n, one in enumerate(expected) for i, gram in enumerate(one) if gram in there
        }
        hits += len(got)
        for text, place in [*got][:5]:
            shown = excerpt(texts[text], unit, place, length)
            assert shown in unicodedata.normalize("NFKC", texts[text])
            assert slow_ngrams(shown, unit, length) == [expected[text][place]]
    assert hits > 30


def test_equal_hashes_are_compared(monkeypatch):
    def constant(ids, unit, length):
        return np.zeros(max(0, ids.size - length + 1), np.uint64)

    monkeypatch.setattr(ngrams, "_hashes", constant)
    index = NgramIndex.of(["one two three"], "words", 3)
    assert index.find("one two four").starts.size == 0
    assert index.find("so one two three").starts.size == 0  # only the first of equal hashes
    assert index.find("One, two: three").starts.tolist() == [0]


def test_texts_without_ngrams():
    for texts in ([], ["", "short text"]):
        index = NgramIndex.of(texts, "words", 13)
        assert index.ngrams().tolist() == [0] * len(texts)
        assert index.find("any text " * 20).starts.size == 0
    with pytest.raises(InputError, match=re.escape("got n-grams of 1 words; expected at least 2")):
        NgramIndex.of(["a"], "words", 1)
