"""comparison.py: counts equal those of the tokenizers themselves."""

import random
import string
from itertools import islice

import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer

from biomedlm_jax.corpus.comparison import compare_tokenizers, whole_terms
from biomedlm_jax.corpus.documents import read_documents
from biomedlm_jax.corpus.term_lists import published_splits
from biomedlm_jax.corpus.tokenizer import (
    END_OF_TEXT,
    load_tokenizer,
    tokenizer_hash,
    train_tokenizer,
)
from tests.corpus.tokenizer_kinds import KINDS, save_kind, sentences

SIZE = 400


def corpus(seed: int = 0) -> list[str]:
    """Sentences of invented words whose pairs repeat often enough for `SIZE` entries."""
    rng = random.Random(seed)
    parts = ["cardi", "neur", "osis", "itis", "ology", "gen", "ase", "hyper", "myo", "é", "β-"]
    words = ["".join(rng.choices(parts, k=3)) for _ in range(100)]
    return [" ".join(rng.choices(words, k=30)) + "." for _ in range(50)]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(corpus(), vocab_size=SIZE)


def test_comparison_counts_what_each_tokenizer_makes(trained):
    bytes_only = train_tokenizer(corpus(), vocab_size=257)
    texts = corpus(1) * 6  # more than one batch
    entries = sorted(entry for entry in trained.get_vocab() if entry.startswith("Ġhyper"))
    term = next(entry[1:] for entry in entries if entry[1:].isascii())
    reports = compare_tokenizers({"b": bytes_only, "t": trained}, iter(texts), [term, "zygote"])
    size = sum(len(text.encode()) for text in texts)
    assert [report.name for report in reports] == ["b", "t"]
    assert [report.bytes for report in reports] == [size, size]
    assert [report.vocab_size for report in reports] == [257, SIZE]
    assert [report.hash for report in reports] == [*map(tokenizer_hash, (bytes_only, trained))]
    assert reports[0].tokens == size
    assert reports[1].tokens == sum(len(trained.encode(text).ids) for text in texts)
    assert reports[1].bytes_per_token == size / reports[1].tokens > 1.5
    assert reports[0].whole_terms == []
    assert reports[1].whole_terms == [term]
    assert reports[1].terms[term] == [term]
    assert "".join(reports[1].terms["zygote"]) == "zygote"
    for tokenizers, given in (({}, texts), ({"t": trained}, []), ({"t": trained}, ["- + -"])):
        with pytest.raises(ValueError, match=r"got \d+ tokenizers and \d+ bytes"):
            compare_tokenizers(tokenizers, given)
    with pytest.raises(ValueError, match="got the term '--'; expected one with a letter or digit"):
        compare_tokenizers({"t": trained}, texts, [], {"signs": ["--"]})


def words_of(text: str) -> list[tuple[int, int]]:
    """Where the words of an ASCII text are, found otherwise than in the module."""
    places, position = [], 0
    for part in text.split():
        position = text.index(part, position)
        word = part.strip(string.punctuation)
        start = position + part.index(word) if word else position
        places += [(start, start + len(word))] if word else []
        position += len(part)
    return places


@pytest.mark.parametrize("kind", KINDS)
def test_whole_words_equal_those_of_transformers(kind, tmp_path):
    """A word is whole if all its characters are of one token, which is not the unknown one."""
    save_kind(kind, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*sentences(1), "The x zzz \u0416\u0416 IL-6!", "..."]
    terms = ["cardiosis", "neurology itis", "IL-6", "zygote qq"]

    def covers(text: str, places) -> list[bool]:
        encoded = theirs(text, add_special_tokens=False)
        tokens = [{encoded.char_to_token(i) for i in range(*place)} for place in places]
        unknown = theirs.unk_token_id if kind in ("wordpiece", "unigram") else None
        return [len(t) == 1 and encoded["input_ids"][min(t)] != unknown for t in tokens]

    of_texts = [covers(text, words_of(text)) for text in texts]
    of_terms = {term: covers(f" {term}", words_of(f" {term}")) for term in terms}
    ids = [theirs(text, add_special_tokens=False)["input_ids"] for text in texts]
    (report,) = compare_tokenizers({"t": load_tokenizer(tmp_path)}, texts, terms, {"l": terms})
    assert report.texts == len(texts)
    assert report.words == sum(map(len, of_texts))
    assert report.tokens == sum(map(len, ids))
    assert report.tokens_per_word == report.tokens / report.words
    assert report.whole_words == sum(map(sum, of_texts)) / report.words
    assert 0 < report.whole_words < 1
    decoded = [theirs.decode(i, clean_up_tokenization_spaces=False) for i in ids]
    assert report.changed_texts == sum(map(str.__ne__, decoded, texts))
    assert report.whole_terms == [term for term in terms if all(of_terms[term])]
    assert whole_terms(load_tokenizer(tmp_path), terms) == report.whole_terms
    of_list = report.lists["l"]
    assert (of_list.terms, of_list.words) == (4, 6)
    assert of_list.whole_terms == len(report.whole_terms)
    assert of_list.whole_words == sum(map(sum, of_terms.values()))
    assert [*of_list.split] == [term for term in terms if not all(of_terms[term])]


def test_pieces_of_characters_that_tokens_share_are_entries_of_the_vocabulary():
    entries = {"<unk>": 0, "<0xC3>": 1, "<0xA9>": 2, "a": 3, "\u2581": 4, "\u2581a": 5}
    model = models.BPE(vocab=entries, merges=[("\u2581", "a")], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    (report,) = compare_tokenizers({"t": tokenizer}, ["a a"], ["a\u00e9", "aa", "a"])
    assert report.terms == {"a\u00e9": ["a", "<0xC3>", "<0xA9>"], "aa": ["a", "a"], "a": ["a"]}
    assert report.whole_terms == ["a"]
    assert (report.tokens, report.words, report.whole_words) == (2, 2, 1.0)


@pytest.mark.slow
def test_real_abstracts_keep_a_term_whole_that_gpt2_splits(real_data):
    gpt2 = load_tokenizer(real_data / "gpt2_tokenizer")
    assert (gpt2.get_vocab_size(), gpt2.token_to_id(END_OF_TEXT)) == (50_257, 50_256)
    assert gpt2.encode("Hello world").ids == [15496, 995]
    paths = [real_data / "pubmed_text/abstracts_ccby.jsonl.gz"]
    texts = [document.text for document in read_documents(paths, text_field="title,abstract")]
    ours = train_tokenizer(islice(texts, 2000), vocab_size=8_000)
    published = published_splits().splits
    reports = compare_tokenizers({"gpt2": gpt2, "ours": ours}, texts[2000:], [*published])
    assert reports[0].whole_terms == []
    for term, pieces in published.items():
        assert pieces in (None, reports[0].terms[term])
    assert reports[1].whole_terms == ["probiotic"]
    for report in reports:
        assert report.changed_texts == 0
        assert report.round_trips.survived == report.round_trips.texts
