"""tokens.py: the same documents give the same rows, and a directory is whole or not there."""

import hashlib
import json
from itertools import islice

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from biomedlm_jax.corpus import packer, tokens
from biomedlm_jax.corpus.documents import read_documents
from biomedlm_jax.corpus.rows import Rows
from biomedlm_jax.corpus.tokenizer import (
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from biomedlm_jax.corpus.tokens import build_tokens
from biomedlm_jax.errors import InputError


def read(out, split: str = "train") -> np.ndarray:
    rows = Rows(out, split)
    return rows.__getitems__(range(len(rows)))


@pytest.mark.parametrize("separator", ["eos", "none"])
def test_each_split_is_its_documents_in_order(build, out, documents, small_tokenizer, separator):
    manifest = build(separator=separator)
    after = [small_tokenizer.token_to_id(END_OF_TEXT)] if separator == "eos" else []
    for split, counts in manifest["splits"].items():
        stream = [
            i
            for document in documents
            if packer.split_of(document.text.encode(), validation_fraction=0.2) == split
            for i in [*small_tokenizer.encode(document.text).ids, *after]
        ]
        rows = read(out, split)
        assert rows.ravel().tolist() == stream[: len(stream) // 16 * 16]
        assert counts["rows"] == len(rows) > 10
        assert counts["sha256"] == hashlib.sha256(rows.tobytes()).hexdigest()


def test_documents_can_begin_with_bos(build, out, documents, small_tokenizer, tmp_path):
    with pytest.raises(InputError, match="has one token as bos and eos; fix: use separator=eos"):
        build(separator="bos_eos")
    other = Tokenizer.from_str(small_tokenizer.to_str())
    other.add_special_tokens(["<s>"])
    save_tokenizer(other, tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "special_tokens_map.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "bos_token": "<s>"}))
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    begin, end = map(tokenizer.token_to_id, ("<s>", END_OF_TEXT))
    manifest = build_tokens(documents, tokenizer, out, length=16, separator="bos_eos")
    texts = [document.text for document in documents]
    texts = [t for t in texts if packer.split_of(t.encode(), validation_fraction=0.005) == "train"]
    stream = [i for text in texts for i in [begin, *tokenizer.encode(text).ids, end]]
    assert read(out).ravel().tolist() == stream[: len(stream) // 16 * 16]
    assert manifest["splits"]["train"]["tokens"] == len(stream)
    config = {**json.loads(file.read_text()), "bos_token": None}
    file.write_text(json.dumps(config))
    without = load_tokenizer(tmp_path / "tokenizer")
    with pytest.raises(InputError, match="has no bos token"):
        build_tokens(documents, without, out, length=16, separator="bos_eos", overwrite=True)


def test_a_build_does_not_depend_on_how_the_work_was_divided(
    build, other_documents, tmp_path, monkeypatch
):
    one, many = tmp_path / "one", tmp_path / "many"
    manifest = build(one)
    monkeypatch.setattr(packer, "BATCH_BYTES", 100)
    monkeypatch.setattr(tokens, "SHARD_BYTES", 64 * 16)
    assert build(many)["fingerprint"] == manifest["fingerprint"]
    assert len(list((many / "rows").glob("*train*"))) > 1
    assert np.array_equal(read(one), read(many))
    assert build(tmp_path / "other", other_documents)["fingerprint"] != manifest["fingerprint"]


def test_a_vocabulary_beyond_16_bits(build, out):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*alphabet, *(f"entry{i}" for i in range(66_000)), END_OF_TEXT]
    large = Tokenizer(models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=[]))
    large.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    manifest = build(tokenizer=large)
    rows = read(out)
    assert manifest["dtype"] == rows.dtype == "int32"
    assert rows.max() == manifest["eos_id"] == 66_256


def truncating(tokenizer: Tokenizer) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.enable_truncation(8)
    return copy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "got length=1; a row needs at least 2"),
        ({"separator": "dot"}, "got separator='dot'; expected one of eos, bos_eos, none"),
        ({"validation_fraction": 1.0}, r"got validation_fraction=1.0; expected \[0, 1\)"),
        ({"length": 10**9}, "not enough for one row of 1000000000"),
        ({"tokenizer": truncating}, r"call no_truncation\(\)"),
        ({"tokenizer": lambda _: Tokenizer(models.BPE())}, "expected a byte-level BPE"),
        ({"inputs": ["nowhere.txt"]}, "nowhere.txt"),
    ],
)
def test_bad_arguments_leave_nothing(build, small_tokenizer, tmp_path, options, message):
    if "tokenizer" in options:
        options = {"tokenizer": options["tokenizer"](small_tokenizer)}
    with pytest.raises(InputError, match=message):
        build(**options)
    assert list(tmp_path.iterdir()) == []


def test_only_token_rows_are_overwritten_and_only_on_request(build, out, other_documents):
    out.mkdir()  # an empty directory is filled
    build()
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(InputError, match="pass --overwrite"):
        build()
    assert (out / "manifest.json").read_bytes() == before
    build(texts=other_documents, overwrite=True)
    assert (out / "manifest.json").read_bytes() != before
    (out / "rows").rename(out / "checkpoints")  # a run keeps the manifest of its rows
    with pytest.raises(InputError, match="something else, which is never overwritten"):
        build(overwrite=True)
    file = out.parent / "file"
    file.touch()
    with pytest.raises(InputError, match="is a file"):
        build(file, overwrite=True)
    assert sorted(path.name for path in out.parent.iterdir()) == ["file", "tokens"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_build_changes_nothing(build, out, documents, error, monkeypatch):
    monkeypatch.setattr(packer, "BATCH_BYTES", 100)

    def broken():
        yield from documents
        raise error("now")

    with pytest.raises(error, match="now"):
        build(texts=broken())
    assert list(out.parent.iterdir()) == []
    build()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(error, match="now"):
        build(texts=broken(), overwrite=True)
    assert list(out.parent.iterdir()) == [out]
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_progress_counts_what_was_packed(build, documents, report_at_both_ends):
    report_at_both_ends(tokens)
    counts = []
    manifest = build(progress=lambda splits: counts.append(splits["train"]["rows"]))
    assert counts == [0, manifest["splits"]["train"]["rows"]]


def test_real_abstracts_come_back_from_their_rows(out, real_data):
    file = real_data / "pubmed_text" / "abstracts_ccby.jsonl.gz"
    texts = list(islice(read_documents([file], text_field="abstract"), 200))
    trained = train_tokenizer((document.text for document in texts), vocab_size=1000)
    build_tokens(texts, trained, out, length=256, validation_fraction=0)
    joined = END_OF_TEXT.join(document.text for document in texts)
    back = trained.decode(read(out).ravel().tolist(), skip_special_tokens=False)
    assert joined.startswith(back[:-10])  # the cut may be inside a character
    assert len(back) > len(joined) - 3000


def test_any_end_token_separates_documents(build, out, small_tokenizer, tmp_path):
    save_tokenizer(small_tokenizer, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": "</s>"}))
    (tmp_path / "other" / "special_tokens_map.json").unlink()
    tokenizer = load_tokenizer(tmp_path / "other")
    manifest = build(tokenizer=tokenizer)
    assert manifest["eos_id"] == tokenizer.token_to_id("</s>") == small_tokenizer.get_vocab_size()
    assert (read(out) == manifest["eos_id"]).any()
    assert load_tokenizer(out).to_str() == tokenizer.to_str()
    assert (out / "tokenizer_config.json").read_bytes() == file.read_bytes()
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": None}))
    with pytest.raises(ValueError, match="no end of text; set eos_token in tokenizer_config"):
        build(tmp_path / "none", tokenizer=load_tokenizer(tmp_path / "other"))


def test_a_tokenizer_that_adds_a_begin_of_text_is_told(build, small_tokenizer, tmp_path):
    plain = build(tmp_path / "plain")
    whole = json.loads(small_tokenizer.to_str())
    end = small_tokenizer.token_to_id(END_OF_TEXT)
    adding = Tokenizer.from_str(json.dumps(whole))
    adding.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, end)]
    )
    with pytest.warns(RuntimeWarning, match=rf"puts the ids \[{end}\] before a text; rows have"):
        rows = build(tmp_path / "adding", tokenizer=adding)
    assert rows["splits"] == plain["splits"]
