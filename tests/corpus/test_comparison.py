"""comparison.py: counts equal those of the tokenizers themselves."""

import random
from itertools import islice

import pytest
from tokenizers import Tokenizer

from biomedlm_jax.corpus.comparison import TERMS, compare_tokenizers
from biomedlm_jax.corpus.documents import read_documents
from biomedlm_jax.corpus.tokenizer import (
    END_OF_TEXT,
    load_tokenizer,
    tokenizer_hash,
    train_tokenizer,
)

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
    for tokenizers, given in (({}, texts), ({"t": trained}, [])):
        with pytest.raises(ValueError, match=r"got \d+ tokenizers and \d+ bytes"):
            compare_tokenizers(tokenizers, given)


def test_real_abstracts_keep_a_term_whole_that_gpt2_splits(real_data):
    gpt2 = load_tokenizer(real_data / "gpt2_tokenizer")
    assert (gpt2.get_vocab_size(), gpt2.token_to_id(END_OF_TEXT)) == (50_257, 50_256)
    assert gpt2.encode("Hello world").ids == [15496, 995]
    paths = [real_data / "pubmed_text/abstracts_ccby.jsonl.gz"]
    texts = [document.text for document in read_documents(paths, text_field="title,abstract")]
    ours = train_tokenizer(islice(texts, 2000), vocab_size=8_000)
    reports = compare_tokenizers({"gpt2": gpt2, "ours": ours}, texts[2000:])
    assert reports[0].whole_terms == []
    assert reports[0].terms["myocardium"] == ["my", "ocard", "ium"]
    assert reports[1].whole_terms == ["probiotic"]
    assert tuple(reports[1].terms) == TERMS
