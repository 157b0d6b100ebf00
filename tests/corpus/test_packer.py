"""packer.py: rows are the concatenated token ids, however the work is divided."""

import numpy as np
import pytest

from biomedlm_jax.corpus import packer
from biomedlm_jax.corpus.documents import Document
from biomedlm_jax.corpus.packer import (
    COUNTS,
    SPLITS,
    Packer,
    plain_text_tokenizer,
    split_of,
    token_byte_counts,
)
from biomedlm_jax.corpus.tokenizer import END_OF_TEXT, save_tokenizer

LENGTH, END = 16, 299


def pack(tokenizer, documents, *, separator=END, validation_fraction=0.2):
    packing = Packer(
        tokenizer,
        length=LENGTH,
        separator=separator,
        dtype="uint16",
        validation_fraction=validation_fraction,
    )
    rows = {split: [] for split in SPLITS}
    for split, part in packing.rows(documents):
        assert part.dtype == "uint16"
        rows[split].append(part)
    return packing, {split: np.concatenate(parts) for split, parts in rows.items() if parts}


@pytest.mark.parametrize("batch_bytes", [1, 500, 1 << 20])
@pytest.mark.parametrize("separator", [END, None])
def test_rows_are_the_concatenated_ids_of_each_split(
    small_tokenizer, documents, separator, batch_bytes, monkeypatch
):
    monkeypatch.setattr(packer, "BATCH_BYTES", batch_bytes)
    packing, rows = pack(small_tokenizer, documents, separator=separator)
    after = [] if separator is None else [separator]
    for split in SPLITS:
        texts = [
            document.text
            for document in documents
            if split_of(document.text.encode(), validation_fraction=0.2) == split
        ]
        stream = [i for text in texts for i in [*small_tokenizer.encode(text).ids, *after]]
        assert rows[split].ravel().tolist() == stream[: rows[split].size]
        assert packing.counts[split] == {
            "documents": len(texts),
            "text_bytes": sum(len(text.encode()) for text in texts),
            "tokens": len(stream),
            "rows": len(stream) // LENGTH,
            "dropped_tokens": len(stream) % LENGTH,
        }
        assert packing.counts[split]["rows"] > 10


def test_a_text_shorter_than_a_row_is_counted_as_dropped(small_tokenizer):
    packing, rows = pack(small_tokenizer, [Document("ka", "")], validation_fraction=0)
    assert rows["train"].shape == (0, LENGTH)
    dropped = packing.counts["train"]["dropped_tokens"]
    assert dropped == packing.counts["train"]["tokens"] == 2
    assert packing.counts["validation"] == dict.fromkeys(COUNTS, 0)


def test_the_documents_are_read_only_a_little_ahead(small_tokenizer, documents, monkeypatch):
    monkeypatch.setattr(packer, "BATCH_BYTES", 1)
    read = []
    packing = Packer(
        small_tokenizer, length=LENGTH, separator=END, dtype="uint16", validation_fraction=0
    )
    for _ in packing.rows(read.append(document) or document for document in documents):
        assert len(read) == packer.AHEAD + 1
        break


def test_an_error_of_the_reader_reaches_the_caller(small_tokenizer, documents):
    def broken():
        yield from documents
        raise ValueError("line 7")

    with pytest.raises(ValueError, match="line 7"):
        pack(small_tokenizer, broken())


def test_the_split_is_a_stable_fraction_of_the_texts():
    texts = [f"text {i}".encode() for i in range(4000)]
    split = [split_of(text, validation_fraction=0.1) for text in texts]
    assert 320 < split.count("validation") < 480
    assert split == [split_of(text, validation_fraction=0.1) for text in texts]
    larger = [split_of(text, validation_fraction=0.3) for text in texts]  # only adds to validation
    assert all(b == "validation" for a, b in zip(split, larger, strict=True) if a == "validation")
    assert {split_of(text, validation_fraction=0) for text in texts} == {"train"}


def test_text_that_spells_a_special_token_is_plain_text(small_tokenizer, documents, tmp_path):
    from transformers import AutoTokenizer

    save_tokenizer(small_tokenizer, tmp_path / "hf")
    reference = AutoTokenizer.from_pretrained(tmp_path / "hf", split_special_tokens=True)
    texts = [f"the {END_OF_TEXT} dose{END_OF_TEXT}", *(d.text for d in documents[:20])]
    packing, rows = pack(
        small_tokenizer, [Document(t, "") for t in texts], validation_fraction=0, separator=None
    )
    stream = [i for text in texts for i in reference(text)["input_ids"]]
    assert END not in stream
    assert rows["train"].ravel().tolist() == stream[: rows["train"].size]
    assert packing.special_text == {END_OF_TEXT: 2}
    assert small_tokenizer.encode(END_OF_TEXT).ids == [END]  # the caller's is unchanged
    for document in documents:  # ordinary text has the same ids
        ids = plain_text_tokenizer(small_tokenizer).encode(document.text).ids
        assert ids == small_tokenizer.encode(document.text).ids


def test_the_bytes_of_tokens_are_those_of_their_text(small_tokenizer, documents):
    lengths = token_byte_counts(small_tokenizer)
    assert (lengths.shape, lengths[END]) == ((300,), 0)
    for document in documents:
        ids = small_tokenizer.encode(document.text).ids
        assert lengths[ids].sum() == len(document.text.encode())
