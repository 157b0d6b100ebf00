"""tokens.py: the same documents give the same rows, and a directory is whole or not there."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from corpus.conftest import flip
from pool_tasks import DASK, DIRECT
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from biomedlm_jax.cli import main
from biomedlm_jax.corpus import packer, row_shards, token_units, tokens
from biomedlm_jax.corpus import parts_folder as folders
from biomedlm_jax.corpus.documents import DocumentReader, Skipped, read_documents
from biomedlm_jax.corpus.parts_folder import parts_folder
from biomedlm_jax.corpus.rows import Rows
from biomedlm_jax.corpus.tokenizer import (
    END_OF_TEXT,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from biomedlm_jax.corpus.tokens import build_tokens, build_tokens_from_files
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
    manifest = build(progress=lambda state: counts.append(state.counts["train"]["rows"]))
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


@pytest.fixture
def files(tmp_path, documents, monkeypatch):
    """`documents` in five files, each a unit of its own; shards of 64 rows."""
    monkeypatch.setattr("biomedlm_jax.corpus.input_files.BATCH_FILES", 1)
    monkeypatch.setattr(tokens, "SHARD_BYTES", 64 * 32)
    files = []
    for number in range(5):
        files.append(tmp_path / "corpus" / f"{number}.jsonl")
        files[0].parent.mkdir(exist_ok=True)
        rows = [{"text": one.text} for one in documents[number * 31 : (number + 1) * 31]]
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


@pytest.fixture
def build_files(files, small_tokenizer, out):
    def build(path=out, read=files, **options):
        options = {"length": 16, "validation_fraction": 0.2, **options}
        return build_tokens_from_files(read, small_tokenizer, path, **options)

    return build


def content(out):
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_files_give_the_bytes_of_their_documents_with_any_number_of_processes(
    build, build_files, files, tmp_path, monkeypatch
):
    expected = build(texts=read_documents(files), inputs=files)
    assert len(list((tmp_path / "tokens" / "rows").iterdir())) > 10
    for name, workers, together in (("one", 1, 1), ("two", 2, 1), ("batches", 1, 3)):
        monkeypatch.setattr("biomedlm_jax.corpus.input_files.BATCH_FILES", together)
        assert build_files(tmp_path / name, workers=workers) == expected
        assert content(tmp_path / name) == content(tmp_path / "tokens")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"corpus", "tokens", "one", "two", "batches"}


@pytest.mark.slow
@pytest.mark.parametrize("flags", [DIRECT, DASK], ids=["DirectRunner", "DaskRunner"])
def test_beam_gives_the_same_bytes(
    build_files, files, small_tokenizer, tmp_path, flags, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(Path(tokens.__file__).parents[2]))
    build_files(tmp_path / "one")
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    options = [f"--input={files[0].parent}", f"--tokenizer={tmp_path / 'tokenizer'}"]
    options += ["--engine=beam", f"--beam_options={' '.join(flags)}", "--length=16"]
    options += ["--validation_fraction=0.2", f"--out={tmp_path / 'two'}"]
    assert main(["build-tokens", *options]) == 0
    assert content(tmp_path / "one") == content(tmp_path / "two")


def fails_after(function, calls, error):
    """`function` for the first `calls` calls."""
    left = iter(range(calls))

    def call(*arguments, **options):
        if next(left, None) is None:
            raise error
        return function(*arguments, **options)

    return call


def test_a_build_of_files_continues_after_an_error(build_files, out, files, tmp_path, monkeypatch):
    expected = build_files(tmp_path / "expected")
    folder, count = (
        parts_folder(out),
        len(list((tmp_path / "expected/rows").glob("*array_record*"))),
    )
    with monkeypatch.context() as patch:
        stops = fails_after(token_units.write_unit, 3, KeyboardInterrupt)
        patch.setattr(token_units, "write_unit", stops)
        with pytest.raises(KeyboardInterrupt):
            build_files()
    assert not out.exists()
    assert len(list(folder.iterdir())) == 3
    damaged = next(folder.glob("unit-*/train.ids"))
    flip(damaged, damaged.stat().st_size // 2)
    with monkeypatch.context() as patch:
        full = OSError(28, "No space left on device")
        patch.setattr(tokens, "make_row_shard", fails_after(tokens.make_row_shard, 4, full))
        patch.setattr(
            token_units, "write_unit", fails_after(token_units.write_unit, 3, AssertionError)
        )
        with pytest.raises(OSError, match="No space left") as raised:
            build_files(workers=1)
        assert raised.value.filename == str(out)
    assert not out.exists()
    damaged = next(folder.glob("train-00001/rows*"))
    flip(damaged, damaged.stat().st_size // 2)
    with monkeypatch.context() as patch:  # 3 shards are there
        patch.setattr(token_units, "write_unit", None)
        reads = fails_after(row_shards.read_rows, count - 3, AssertionError)
        patch.setattr(row_shards, "read_rows", reads)
        assert build_files() == expected
    assert content(out) == content(tmp_path / "expected")
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "expected", "tokens"}


def test_units_serve_any_length_and_other_files_have_others(
    build_files, out, files, tmp_path, monkeypatch
):
    with pytest.raises(InputError, match="not enough for one row of 10000000"):
        build_files(length=10**7)
    units = set(parts_folder(out).iterdir())
    (parts_folder(out) / ".unit-0.0").mkdir()  # of a killed process
    with monkeypatch.context() as patch:
        patch.setattr(token_units, "write_unit", None)
        with pytest.raises(InputError, match="not enough for one row of 20000000"):
            build_files(length=2 * 10**7)
    assert set(parts_folder(out).iterdir()) == units
    # A new first file, and a changed one, leave the units of the others.
    files[3].write_text(files[3].read_text().replace("a", "o"))
    files.insert(0, tmp_path / "corpus" / "first.jsonl")
    files[0].write_text(json.dumps({"text": "new"}))
    with monkeypatch.context() as patch:
        writes = fails_after(token_units.write_unit, 2, AssertionError)
        patch.setattr(token_units, "write_unit", writes)
        manifest = build_files()
    assert manifest == build_files(tmp_path / "expected")
    assert content(out) == content(tmp_path / "expected")


KILLED = """
import sys, time
from biomedlm_jax.corpus import input_files, token_units
from biomedlm_jax.corpus.tokenizer import load_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens_from_files

input_files.BATCH_FILES = 1
write, calls = token_units.write_unit, []

def stop(folder, *rest):
    if len(calls) == 2:
        (folder / "train.ids").write_bytes(b"half")
        print("writing", flush=True)
        time.sleep(60)
    calls.append(folder)
    return write(folder, *rest)

token_units.write_unit = stop
tokenizer, out, *files = sys.argv[1:]
options = {"length": 16, "validation_fraction": 0.2}
build_tokens_from_files(files, load_tokenizer(tokenizer), out, **options)
"""


def test_a_killed_build_of_files_leaves_no_half_unit(
    build_files, out, files, small_tokenizer, tmp_path, monkeypatch
):
    save_tokenizer(small_tokenizer, tmp_path / "tokenizer")
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(tmp_path / "tokenizer"),
        str(out),
        *map(str, files),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        with pytest.raises(InputError, match="another process builds these token rows"):
            build_files()
        process.kill()
    assert not out.exists()
    with monkeypatch.context() as patch:  # the tokenizer was read from files there
        writes = fails_after(token_units.write_unit, 3, AssertionError)
        patch.setattr(token_units, "write_unit", writes)
        tokenizer = load_tokenizer(tmp_path / "tokenizer")
        options = {"length": 16, "validation_fraction": 0.2}
        build_tokens_from_files(files, tokenizer, out, **options)
    build_files(tmp_path / "expected")
    assert content(out / "rows") == content(tmp_path / "expected" / "rows")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"corpus", "expected", "tokenizer", "tokens"}


def test_a_full_disk_names_the_file_and_loses_nothing(build_files, out):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # stands for a full disk
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as raised:
            build_files(length=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(raised.value.filename).startswith(str(out.parent))
    assert not out.exists()
    assert not list(parts_folder(out).glob(".*"))
    build_files(length=64)


def test_what_is_skipped_in_each_file_is_counted(build_files, files, tmp_path):
    for number, line in enumerate(('{"text": ""}', "{}", '{"text": "a", "part": "b"}')):
        with files[number].open("a") as file:
            file.write(line + "\n")
    (tmp_path / "corpus" / "c.csv").touch()
    skipped, expected = Skipped(), Skipped()
    reader = DocumentReader(on_error="skip")
    manifest = build_files(read=[tmp_path / "corpus"], reader=reader, skipped=skipped, workers=1)
    list(read_documents([tmp_path / "corpus"], on_error="skip", skipped=expected))
    assert skipped == expected
    assert (expected.bad, expected.empty, len(expected.files)) == (1, 1, 1)
    assert manifest["skipped"]["files"]["names"] == [str(tmp_path / "corpus" / "c.csv")]
    other = DocumentReader(subsets=("b",), subset_field="part", on_error="skip")
    message = r"no documents of the subsets b in 1 file, .*; skipped: 27 bad lines"
    with pytest.raises(InputError, match=message):
        build_files(tmp_path / "none", [files[4]], reader=other)
    with pytest.raises(InputError, match=r"got workers=0; expected at least 1"):
        build_files(tmp_path / "none", workers=0)
    files[0].write_text(files[0].read_text() + "x\n")
    with pytest.raises(InputError, match=r"0.jsonl:33: .*; fix the file, or pass --on_error=skip"):
        build_files(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_progress_counts_unfinished_units_and_never_goes_back(build_files, monkeypatch):
    reports, shown = [], []

    @contextlib.contextmanager
    def regularly(report):
        reports.append(report)
        yield

    def reporting(function):
        def call(*arguments):
            result = function(*arguments)
            reports[0]()
            return result

        return call

    monkeypatch.setattr(tokens, "report_regularly", regularly)
    monkeypatch.setattr(folders, "LIVE_SECONDS", -1)
    for module, name in ((folders, "write_json"), (tokens, "make_unit")):
        monkeypatch.setattr(module, name, reporting(getattr(module, name)))
    manifest = build_files(progress=lambda state: shown.append(dataclasses.replace(state)))
    documents = [state.counts["train"]["documents"] for state in shown]
    read, size = [state.done_bytes for state in shown], shown[-1].all_bytes
    for values in (documents, read):
        assert values == sorted(values)
        assert len({*values}) > 4
    assert documents[0] > 0
    assert documents[-1] == manifest["splits"]["train"]["documents"]
    assert read[-1] == size == sum(file["bytes"] for file in manifest["inputs"])
