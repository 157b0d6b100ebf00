"""tokens.py, packing.py, rows.py: rows are the concatenated ids, and nothing is half-made."""

import hashlib
import json
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from biomedlm_jax import cli
from biomedlm_jax.benchmarks.tokens import run_benchmark
from biomedlm_jax.corpus import packing, tokens
from biomedlm_jax.corpus.documents import Document, Skipped, read_documents
from biomedlm_jax.corpus.packing import split_of
from biomedlm_jax.corpus.rows import Rows
from biomedlm_jax.corpus.tokenizer import END_OF_TEXT, load_tokenizer, tokenizer_hash
from biomedlm_jax.corpus.tokenizer import train_tokenizer as train
from biomedlm_jax.corpus.tokens import build_tokens, read_manifest

LENGTH = 16


def documents(count: int = 150, seed: int = 0) -> list[Document]:
    """Texts of very different lengths, a few of them long, one of them twice."""
    draw = random.Random(seed)
    syllables = ["ka", "thrombin", "é", " dose", "-12 ", "\n\n", "mg", " of", " the", "漢"]
    lengths = draw.choices((1, 9, 40, 400), k=count)
    texts = ["a" + "".join(draw.choices(syllables, k=length)) for length in lengths]
    return [Document(text, f"texts:{i}") for i, text in enumerate([*texts, texts[0]])]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train((document.text for document in documents()), vocab_size=300)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def build(out, tokenizer, texts=None, **options):
    options = {"length": LENGTH, "validation_fraction": 0.2, **options}
    return build_tokens(documents() if texts is None else texts, tokenizer, out, **options)


def read(out, split: str = "train") -> np.ndarray:
    rows = Rows(out, split)
    return rows.__getitems__(range(len(rows)))


@pytest.mark.parametrize("separator", ["eos", "none"])
def test_rows_are_the_concatenated_ids_of_each_split(out, tokenizer, separator, monkeypatch):
    monkeypatch.setattr(packing, "BATCH_BYTES", 500)  # so that many batches are on their way
    manifest = build(out, tokenizer, separator=separator)
    after = [tokenizer.token_to_id(END_OF_TEXT)] if separator == "eos" else []
    for split in ("train", "validation"):
        texts = [
            document.text
            for document in documents()
            if split_of(document.text.encode(), validation_fraction=0.2) == split
        ]
        stream = [i for text in texts for i in [*tokenizer.encode(text).ids, *after]]
        counts, rows = manifest["splits"][split], read(out, split)
        assert rows.ravel().tolist() == stream[: rows.size]
        assert counts.pop("sha256") == hashlib.sha256(rows).hexdigest()
        assert counts == {
            "documents": len(texts),
            "text_bytes": sum(len(text.encode()) for text in texts),
            "tokens": len(stream),
            "rows": len(stream) // LENGTH,
            "dropped_tokens": len(stream) % LENGTH,
        }
        assert counts["rows"] > 10


def test_a_build_does_not_depend_on_how_the_work_was_cut(tmp_path, tokenizer, monkeypatch):
    one, many = tmp_path / "one", tmp_path / "many"
    manifest = build(one, tokenizer)
    monkeypatch.setattr(packing, "BATCH_BYTES", 100)
    monkeypatch.setattr(tokens, "SHARD_BYTES", 64 * LENGTH)
    assert build(many, tokenizer)["fingerprint"] == manifest["fingerprint"]
    assert len(list((many / tokens.ROWS).glob("*train*"))) > 1
    assert np.array_equal(read(one), read(many))
    other = build(tmp_path / "other", tokenizer, documents(seed=1))
    assert other["fingerprint"] != manifest["fingerprint"]


def test_the_split_is_a_stable_share_of_the_texts():
    texts = [f"text {i}".encode() for i in range(4000)]
    split = [split_of(text, validation_fraction=0.1) for text in texts]
    assert 320 < split.count("validation") < 480
    assert split == [split_of(text, validation_fraction=0.1) for text in texts]
    larger = [split_of(text, validation_fraction=0.3) for text in texts]  # only adds to validation
    assert all(b == "validation" for a, b in zip(split, larger, strict=True) if a == "validation")
    assert {split_of(text, validation_fraction=0) for text in texts} == {"train"}


def test_manifest(out, tokenizer, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in documents()) + "no JSON\n")
    skipped = Skipped()
    texts = read_documents([file], on_error="skip", skipped=skipped)
    manifest = build(out, tokenizer, texts, inputs=[file], skipped=skipped)
    assert manifest == read_manifest(out)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert manifest["inputs"] == [
        {"path": str(file), "bytes": file.stat().st_size, "sha256": sha256}
    ]
    assert manifest["skipped"] == {"bad": 1, "empty": 0, "subsets": {}}
    assert (manifest["vocab_size"], manifest["eos_id"], manifest["dtype"]) == (300, 299, "uint16")
    assert manifest["tokenizer_hash"] == tokenizer_hash(load_tokenizer(out))
    # What was read, and from where, is told but does not make other rows.
    again = build(tmp_path / "again", tokenizer)
    assert again["fingerprint"] == manifest["fingerprint"]


def test_a_vocabulary_beyond_16_bits(out):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*alphabet, *(f"entry{i}" for i in range(66_000)), END_OF_TEXT]
    large = Tokenizer(models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=[]))
    large.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    manifest = build(out, large)
    rows = read(out)
    assert manifest["dtype"] == rows.dtype == "int32"
    assert rows.max() == manifest["eos_id"] == 66_256


def test_rows_are_read_in_any_order_and_by_tfds_alone(out, tokenizer):
    build(out, tokenizer)
    rows = Rows(out, "train")
    everything = np.stack(list(rows))
    assert everything.shape == (len(rows), LENGTH)
    order = random.Random(0).choices(range(len(rows)), k=50)
    assert np.array_equal(rows.__getitems__(order), everything[order])
    assert np.array_equal(rows[-1], everything[-1])
    with pytest.raises(IndexError):
        rows[len(rows)]
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(out / "rows").as_data_source("train")
    assert np.array_equal([record["tokens"] for record in source], everything)


def test_a_split_without_rows(out, tokenizer):
    build(out, tokenizer, validation_fraction=0)
    assert list(Rows(out, "validation")) == []


def unfit(change) -> Tokenizer:
    tokenizer = train((document.text for document in documents()), vocab_size=280)
    change(tokenizer)
    return tokenizer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "got length=1; a row has at least 2"),
        ({"separator": "dot"}, "one of eos, none"),
        ({"validation_fraction": 1.0}, r"got validation_fraction=1.0; it is in \[0, 1\)"),
        ({"texts": documents(3), "length": 10_000}, "not enough for one row of 10000"),
        ({"tokenizer": unfit(lambda t: t.enable_truncation(8))}, r"call no_truncation\(\)"),
        ({"tokenizer": Tokenizer(models.BPE())}, "only a byte-level BPE"),
        ({"inputs": ["nowhere.txt"]}, "nowhere.txt"),
    ],
)
def test_bad_arguments_leave_nothing(out, tokenizer, options, message):
    options = {"tokenizer": tokenizer, **options}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(out, **options)
    assert list(out.parent.iterdir()) == []


def test_never_overwrites_unasked_nor_anything_else(out, tokenizer):
    out.mkdir()  # an empty directory is nothing to lose
    build(out, tokenizer)
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(FileExistsError, match="pass --overwrite"):
        build(out, tokenizer)
    assert (out / "manifest.json").read_bytes() == before
    build(out, tokenizer, documents(seed=1), overwrite=True)
    assert (out / "manifest.json").read_bytes() != before
    (out / "rows").rename(out / "checkpoints")  # a run keeps the manifest of its rows
    with pytest.raises(FileExistsError, match="something else than token rows"):
        build(out, tokenizer, overwrite=True)
    (out / "manifest.json").unlink()
    with pytest.raises(FileExistsError, match="something else than token rows"):
        build(out, tokenizer, overwrite=True)
    file = out.parent / "file"
    file.touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        build(file, tokenizer, overwrite=True)
    assert sorted(path.name for path in out.parent.iterdir()) == ["file", "tokens"]


def test_what_appears_during_a_build_is_not_replaced(out, tokenizer):
    def slow():
        yield from documents()
        out.mkdir()
        (out / "manifest.json").write_text("another process was quicker")

    with pytest.raises(FileExistsError):
        build(out, tokenizer, slow())
    assert (out / "manifest.json").read_text() == "another process was quicker"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_build_changes_nothing(out, tokenizer, error, monkeypatch):
    monkeypatch.setattr(packing, "BATCH_BYTES", 100)

    def broken():
        yield from documents()
        raise error("now")

    with pytest.raises(error, match="now"):
        build(out, tokenizer, broken())
    assert list(out.parent.iterdir()) == []
    build(out, tokenizer)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(error, match="now"):
        build(out, tokenizer, broken(), overwrite=True)
    assert list(out.parent.iterdir()) == [out]
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_bad_directories(out, tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="make token rows with biomedlm build-tokens"):
        read_manifest(out)
    with pytest.raises(ValueError, match=r"no manifest\.json"):
        read_manifest(tmp_path)
    build(out, tokenizer)
    with pytest.raises(ValueError, match="one of train, validation"):
        Rows(out, "test")
    manifest = json.loads((out / "manifest.json").read_text())
    for change, message in (
        ({"version": 0}, "this version reads"),
        ({"vocab_size": 301}, "does not fit its fingerprint"),
        ({"format": None}, "this version reads"),
    ):
        (out / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match=message):
            read_manifest(out)
    for text in ("", "[1]", "{}"):
        (out / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match="not a manifest of token rows"):
            read_manifest(out)


def test_damaged_rows(out, tokenizer):
    build(out, tokenizer)
    rows = Rows(out, "train")
    rows.manifest["vocab_size"] = 299  # the rows hold 299, the end of text
    with pytest.raises(ValueError, match="token id 299, but its vocabulary has 299 entries"):
        rows.__getitems__(range(len(rows)))
    next((out / "rows").glob("*validation*-00000")).unlink()
    with pytest.raises(ValueError, match="validation rows"):
        Rows(out, "validation")


def test_the_command(tmp_path, tokenizer, capsys):
    file, out = tmp_path / "texts.jsonl", tmp_path / "tokens"
    file.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in documents()))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    flags = [f"--input={file}", f"--tokenizer={tmp_path}", f"--out={out}", "--length=32"]
    assert cli.main(["build-tokens", *flags, f"--json={tmp_path / 'figures.json'}"]) == 0
    assert "train       " in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text()) == read_manifest(out)
    assert cli.main(["build-tokens", *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_benchmark_measures_every_side(tmp_path, tokenizer):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in documents()))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    figures = run_benchmark([file], tmp_path, length=LENGTH, repeats=1)
    assert figures["documents"] == len(documents())
    assert all(side["ratio"] > 0 for side in figures["sides"].values())


def test_real_abstracts_come_back_from_their_rows(out, real_data):
    file = real_data / "pubmed_text" / "abstracts_ccby.jsonl.gz"
    texts = list(islice(read_documents([file], text_field="abstract"), 200))
    trained = train((document.text for document in texts), vocab_size=1000)
    build(out, trained, texts, length=256, validation_fraction=0)
    joined = END_OF_TEXT.join(document.text for document in texts)
    back = trained.decode(read(out).ravel().tolist(), skip_special_tokens=False)
    assert joined.startswith(back[:-10])  # the cut may lie inside a character
    assert len(back) > len(joined) - 3000
