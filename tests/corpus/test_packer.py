"""packer.py: the ids are those of the documents, however the work is divided."""

import numpy as np
import pytest

from biomedlm_jax.corpus import packer
from biomedlm_jax.corpus.documents import Document
from biomedlm_jax.corpus.packer import (
    COUNTS,
    SPLITS,
    Encoder,
    Encoding,
    plain_text_tokenizer,
    read_rows,
    split_of,
    token_byte_counts,
)
from biomedlm_jax.corpus.tokenizer import END_OF_TEXT, save_tokenizer

END = 299


def encode(tokenizer, documents, *, separator=END, validation_fraction=0.2, **options):
    encoding = Encoding(
        separator=separator, dtype="uint16", validation_fraction=validation_fraction
    )
    encoder = Encoder(tokenizer, encoding, **options)
    ids = {split: [np.empty(0, "uint16")] for split in SPLITS}
    for split, part in encoder.ids(documents):
        assert part.dtype == "uint16"
        ids[split].append(part)
    return encoder, {split: np.concatenate(parts).tolist() for split, parts in ids.items()}


@pytest.mark.parametrize("batch_bytes", [1, 500, 1 << 20])
@pytest.mark.parametrize(("separator", "threads"), [(END, 1), (END, 8), (None, 2)])
def test_ids_are_those_of_the_documents_of_each_split(
    small_tokenizer, documents, separator, threads, batch_bytes, monkeypatch
):
    monkeypatch.setattr(packer, "BATCH_BYTES", batch_bytes)
    encoder, ids = encode(small_tokenizer, documents, separator=separator, threads=threads)
    after = [] if separator is None else [separator]
    for split in SPLITS:
        texts = [
            document.text
            for document in documents
            if split_of(document.text.encode(), validation_fraction=0.2) == split
        ]
        stream = [i for text in texts for i in [*small_tokenizer.encode(text).ids, *after]]
        assert ids[split] == stream
        assert encoder.counts[split] == {
            "documents": len(texts),
            "text_bytes": sum(len(text.encode()) for text in texts),
            "tokens": len(stream),
        }
        assert len(texts) > 10


def test_without_documents_all_counts_are_zero(small_tokenizer):
    encoder, ids = encode(small_tokenizer, [Document("ka", "")], validation_fraction=0)
    assert encoder.counts["train"]["tokens"] == len(ids["train"]) == 2
    assert encoder.counts["validation"] == dict.fromkeys(COUNTS, 0)


def test_the_documents_are_read_only_a_little_ahead(small_tokenizer, documents, monkeypatch):
    monkeypatch.setattr(packer, "BATCH_BYTES", 1)
    read = []
    encoding = Encoding(separator=END, dtype="uint16", validation_fraction=0)
    for _ in Encoder(small_tokenizer, encoding).ids(
        read.append(document) or document for document in documents
    ):
        assert len(read) == packer.AHEAD + 1
        break


def test_an_error_of_the_reader_reaches_the_caller(small_tokenizer, documents):
    def broken():
        yield from documents
        raise ValueError("line 7")

    with pytest.raises(ValueError, match="line 7"):
        encode(small_tokenizer, broken())


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
    encoder, ids = encode(
        small_tokenizer, [Document(t, "") for t in texts], validation_fraction=0, separator=None
    )
    stream = [i for text in texts for i in reference(text)["input_ids"]]
    assert END not in stream
    assert ids["train"] == stream
    assert encoder.special_text == {END_OF_TEXT: 2}
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


@pytest.mark.parametrize("read_ids", [1, 7, 1 << 20])
def test_rows_are_cut_from_spans_of_files(tmp_path, read_ids, monkeypatch):
    monkeypatch.setattr(packer, "READ_IDS", read_ids)
    ids = np.arange(100, dtype="int32")
    (tmp_path / "ids").write_bytes(ids.tobytes())
    spans = [(tmp_path / "ids", 90, 100), (tmp_path / "ids", 3, 4), (tmp_path / "ids", 10, 40)]
    stream = np.concatenate([ids[90:100], ids[3:4], ids[10:40]])
    for length in (1, 4, 41, 50):
        rows = [*read_rows(spans, length=length, dtype="int32"), np.empty((0, length), "int32")]
        whole = stream[: stream.size // length * length]
        assert np.array_equal(np.concatenate(rows), whole.reshape(-1, length))
    with pytest.raises(OSError, match=r"the file ends before id 100: .*ids"):
        list(read_rows([(tmp_path / "ids", 90, 101)], length=4, dtype="int32"))
