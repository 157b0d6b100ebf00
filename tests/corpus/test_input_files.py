import hashlib
import json
import os
import re
import warnings

import pytest

from biomedlm_jax.corpus import input_files as module
from biomedlm_jax.corpus.corpus_builder import build_corpus
from biomedlm_jax.corpus.documents import Skipped
from biomedlm_jax.corpus.input_files import batches, check_sizes, describe, input_files
from biomedlm_jax.corpus.sources import parse_sources
from biomedlm_jax.errors import InputError


def test_input_files_are_sorted_within_each_path_and_listed_once(tmp_path):
    for name in ("b.txt", "d/c.jsonl.gz", "d/a.txt", ".hidden.txt", ".git/x.txt", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.txt").symlink_to(tmp_path / "b.txt")
    names = [os.path.relpath(path, tmp_path) for path in input_files([tmp_path])]
    assert names == ["b.txt", "d/a.txt", "d/c.jsonl.gz"]
    paths = [tmp_path / "d/c.jsonl.gz", tmp_path / "**/*.txt", str(tmp_path)]
    names = [os.path.relpath(path, tmp_path) for path in input_files(paths)]
    assert names == ["d/c.jsonl.gz", "b.txt", "d/a.txt"]
    assert input_files(str(tmp_path / "b.txt")) == [tmp_path / "b.txt"]
    odd = tmp_path / "a[1].txt"
    odd.touch()
    assert input_files([odd]) == [odd]


def test_every_file_of_a_directory_is_accounted_for(tmp_path):
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    names = ("a.txt", "b.pdf", ".c.txt", ".git/d.txt", "e.parquet.gz", "sub/f.ndjson", "sub/g.csv")
    for name in (*(f"corpus/{name}" for name in names), "elsewhere/h.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text('{"text": "x"}')
    (corpus / "linked").symlink_to(elsewhere)
    (corpus / "sub" / "loop").symlink_to(corpus)
    (elsewhere / "back").symlink_to(elsewhere)
    for pattern in (corpus, tmp_path / "corp*"):  # a directory, and one that a glob matches
        skipped = Skipped()
        files = [os.path.relpath(path, corpus) for path in input_files([pattern], skipped.files)]
        assert files == ["a.txt", "linked/h.txt", "sub/f.ndjson"]
        omitted = sorted(os.path.relpath(path, corpus) for path in skipped.files)
        assert omitted == [".c.txt", ".git", "b.pdf", "e.parquet.gz", "sub/g.csv"]
    assert "5 files, hidden or of unknown format: " in str(skipped)
    (corpus / "gone.txt").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"gone\.txt is a broken symbolic link"):
        input_files([corpus])


def test_files_of_several_splits_and_missing_parts_are_told(tmp_path):
    for name in ("en/train-00000-of-00002", "en/validation-00000-of-00001", "pretest"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.jsonl").write_bytes(b'{"text": "text"}\n')
    with pytest.warns(RuntimeWarning) as caught:
        assert len(input_files([tmp_path])) == 3
    splits, parts = (str(warning.message) for warning in caught)
    assert re.search(r"several splits are read: \S*train-0\S*, \S*validation-0\S*; name", splits)
    assert parts.endswith("en has 1 of the 2 parts of train.jsonl; fetch the others")
    (tmp_path / "en" / "train-00001-of-00002.jsonl").write_bytes(b'{"text": "text"}\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(input_files([tmp_path / "en" / "train*", tmp_path / "pretest.jsonl"])) == 3


def test_of_a_corpus_only_its_documents_are_read(tmp_path):
    for name, text in (("one", "a b"), ("two", "c d")):
        source = tmp_path / f"{name}.jsonl"
        source.write_text(json.dumps({"text": text}) + "\n")
        build_corpus(parse_sources([f"text:{source}"]), tmp_path / "corpora" / name)
    (tmp_path / "corpora" / "more.txt").write_text("e f")
    skipped = []
    names = [
        str(path.relative_to(tmp_path)) for path in input_files([tmp_path / "corpora"], skipped)
    ]
    shard = "documents-00000-of-00001.jsonl.zst"
    assert names == ["corpora/more.txt", f"corpora/one/{shard}", f"corpora/two/{shard}"]
    assert skipped == []
    assert len(input_files([tmp_path / "corpora" / "one"])) == 1
    for path in (f"{tmp_path}/corpora/*/*.zst", f"{tmp_path}/corpora/one/manifest.json"):
        with pytest.raises(InputError, match=r"one/.* has no documents, .* name .*/one/, or '"):
            input_files([path])
    assert len(input_files([f"{tmp_path}/corpora/*/documents-*"])) == 2
    (tmp_path / "corpora" / "one" / shard).unlink()
    with pytest.raises(InputError, match=f"one/{shard} is missing; copy the corpus again"):
        input_files([tmp_path / "corpora"])


def test_small_files_share_a_batch(tmp_path, monkeypatch):
    files = []
    for number, size in enumerate((10, 20, 90, 200, 5, 5, 5)):
        files.append(tmp_path / f"{number}.txt")
        files[-1].write_bytes(b"x" * size)
    monkeypatch.setattr(module, "BATCH_BYTES", 100)
    monkeypatch.setattr(module, "BATCH_FILES", 2)
    sizes = [[int(file.stem) for file in batch] for batch in batches(files)]
    assert sizes == [[0, 1], [2], [3], [4, 5], [6]]
    assert list(batches([])) == []
    packed = [tmp_path / "a.xml.gz", tmp_path / "b.tgz"]  # as much work as four times their bytes
    for file in packed:
        file.write_bytes(b"x" * 20)
    assert [len(batch) for batch in batches([files[0], *packed])] == [2, 1]


def test_a_described_file_that_grows_is_refused(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"abc")
    inputs = [describe(file)]
    digest = hashlib.sha256(b"abc").hexdigest()
    assert inputs == [{"path": str(file), "bytes": 3, "sha256": digest}]
    check_sizes(inputs)
    file.write_bytes(b"abcd")
    with pytest.raises(InputError, match=r"a.txt changed while it was read; start again"):
        check_sizes(inputs)
