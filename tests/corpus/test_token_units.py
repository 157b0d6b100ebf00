"""token_units.py: a unit has the ids of its files, once, and counts of all that was in them."""

import gzip
import hashlib
import json
import os

import numpy as np
import pytest

from biomedlm_jax.corpus import parts_folder, token_units
from biomedlm_jax.corpus.documents import DocumentReader
from biomedlm_jax.corpus.packer import SPLITS, Encoding, split_of
from biomedlm_jax.corpus.token_units import (
    UnitSettings,
    ids_file,
    ids_sha256,
    make_unit,
    text_sha256,
    unit_name,
)
from biomedlm_jax.corpus.tokenizer import END_OF_TEXT
from biomedlm_jax.errors import InputError

END = 299


@pytest.fixture
def files(tmp_path, documents):
    lines = [json.dumps({"text": document.text}) + "\n" for document in documents]
    lines += ["{}\n", json.dumps({"text": " "}) + "\n", json.dumps({"text": END_OF_TEXT}) + "\n"]
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"]
    files[0].write_text("".join(lines[:70]))
    files[1].write_bytes(gzip.compress("".join(lines[70:]).encode()))
    return files


@pytest.fixture
def settings(tmp_path, small_tokenizer):
    file = tmp_path / "tokenizer.json"
    small_tokenizer.save(str(file))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()

    def make(**values):
        encoding = Encoding(separator=END, dtype="uint16", validation_fraction=0.2)
        reader = DocumentReader(on_error="skip")
        given = {"tokenizer": file, "tokenizer_sha256": digest}
        return UnitSettings(**{**given, "encoding": encoding, "reader": reader, **values})

    return make


def test_a_unit_is_the_ids_of_its_files(tmp_path, files, settings, documents, small_tokenizer):
    folder = tmp_path / "unit"
    unit = make_unit(folder, files, settings(), None)
    for split in SPLITS:
        texts = [
            document.text
            for document in documents
            if split_of(document.text.encode(), validation_fraction=0.2) == split
        ]
        stream = [i for text in texts for i in [*small_tokenizer.encode(text).ids, END]]
        ids = np.fromfile(ids_file(folder, split), "uint16")
        assert ids[: len(stream)].tolist() == stream
        assert unit["counts"][split]["tokens"] == ids.size
        raw = ids_file(folder, split).read_bytes()
        assert ids_sha256(ids_file(folder, split)) == hashlib.sha256(raw).hexdigest()
    counts = unit["counts"].values()
    assert sum(count["documents"] for count in counts) == len(documents) + 1
    sizes = [len(document.text.encode()) for document in documents]
    assert sum(count["text_bytes"] for count in counts) == sum(sizes) + len(END_OF_TEXT)
    assert unit["special_text"] == {END_OF_TEXT: 1}
    skipped = unit["skipped"]
    assert (skipped["bad"], skipped["empty"], len(skipped["examples"])) == (1, 1, 1)
    assert [entry["bytes"] for entry in unit["inputs"]] == [file.stat().st_size for file in files]
    text = gzip.decompress(files[1].read_bytes())
    assert unit["texts"][1] == hashlib.sha256(text).hexdigest() != unit["inputs"][1]["sha256"]
    assert unit["texts"][0] == unit["inputs"][0]["sha256"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "SHA256SUMS",
        "part.json",
        "train.ids",
        "validation.ids",
    ]


def test_a_unit_is_made_again_only_if_something_changed(tmp_path, files, settings, monkeypatch):
    made, write = [], token_units.write_unit
    monkeypatch.setattr(token_units, "write_unit", lambda *a: made.append(a[0]) or write(*a))

    def times(chosen, read=files):
        before = len(made)
        make_unit(tmp_path / "unit", read, chosen, None)
        return len(made) - before

    assert times(settings()) == 1
    assert times(settings()) == 0
    moved = tmp_path / "moved.json"  # wherever the tokenizer's file is
    (tmp_path / "tokenizer.json").rename(moved)
    assert times(settings(tokenizer=moved)) == 0
    values = {"separator": END, "dtype": "uint16", "validation_fraction": 0.2}
    for change in ({"separator": None}, {"validation_fraction": 0.3}, {"begin": 1}):
        assert times(settings(tokenizer=moved, encoding=Encoding(**{**values, **change}))) == 1
    assert (
        times(
            settings(tokenizer=moved, reader=DocumentReader(on_error="skip", text_field="text,b"))
        )
        == 1
    )
    assert times(settings(tokenizer=moved, tokenizer_sha256="0" * 64)) == 1
    assert times(settings(tokenizer=moved)) == 1
    files[0].write_text(files[0].read_text().replace("a", "o", 1))  # of the same size
    assert times(settings(tokenizer=moved)) == 1
    ids = tmp_path / "unit" / "train.ids"
    content = ids.read_bytes()
    ids.write_bytes(content[:-2])
    assert times(settings(tokenizer=moved)) == 1
    assert ids.read_bytes() == content
    assert len({unit_name(some) for some in (files, files[:1], files[1:])}) == 3


def test_a_bad_line_and_a_file_that_grows_leave_no_unit(tmp_path, files, settings, monkeypatch):
    strict = settings(reader=DocumentReader())
    with pytest.raises(InputError, match=r"b.jsonl.gz:82: --text_field=text is not among the"):
        make_unit(tmp_path / "unit", files, strict, None)
    write = token_units.write_unit

    def grow(*arguments):
        with files[0].open("a") as file:
            file.write("\n")
        return write(*arguments)

    monkeypatch.setattr(token_units, "write_unit", grow)
    with pytest.raises(InputError, match=r"a.jsonl changed while it was read"):
        make_unit(tmp_path / "unit", files, settings(), None)
    assert not list(tmp_path.glob("unit*"))


def test_threads_are_limited_in_the_environment_of_the_process(
    tmp_path, files, settings, monkeypatch
):
    for name in ("RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")
    make_unit(tmp_path / "all", files, settings(), None)
    assert os.environ["RAYON_NUM_THREADS"] == ""
    for threads, parallel in ((1, "false"), (3, "true")):
        make_unit(tmp_path / f"{threads}", files, settings(), threads)
        assert os.environ["RAYON_NUM_THREADS"] == str(threads)
        assert os.environ["TOKENIZERS_PARALLELISM"] == parallel
        for split in SPLITS:
            one, other = (ids_file(tmp_path / name, split) for name in ("all", str(threads)))
            assert one.read_bytes() == other.read_bytes()


def test_the_counts_can_be_read_while_a_unit_is_made(tmp_path, files, settings, monkeypatch):
    monkeypatch.setattr(parts_folder, "LIVE_SECONDS", -1)
    live, write = [], parts_folder.write_json
    monkeypatch.setattr(
        parts_folder,
        "write_json",
        lambda path, value: (write(path, value), live.append(json.loads(path.read_text()))),
    )
    unit = make_unit(tmp_path / "unit", files, settings(), None)
    *_, last = (counts for counts in live if "read_bytes" in counts)
    assert last["counts"] == unit["counts"]
    assert os.path.getsize(files[0]) <= last["read_bytes"] <= sum(map(os.path.getsize, files))
    assert not (tmp_path / "unit" / parts_folder.LIVE).exists()


def test_a_damaged_file_is_compared_as_it_is(tmp_path):
    file = tmp_path / "a.txt.gz"
    file.write_bytes(gzip.compress(b"text")[:-3])
    assert text_sha256(file, {"sha256": "of the file"}) == "of the file"
