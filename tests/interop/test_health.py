"""What `biomedlm verify` reports; tests/faults/test_damage.py has damage of a run that trained."""

import json
import re
import shutil

import pytest

from biomedlm_jax.corpus.corpus_builder import build_corpus
from biomedlm_jax.corpus.documents import Document
from biomedlm_jax.corpus.sources import parse_sources
from biomedlm_jax.corpus.tokenizer import save_tokenizer, tokenizer_hash, train_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_json
from biomedlm_jax.integrity import SUMS, write_sums
from biomedlm_jax.interop.finetuned import save_finetuned
from biomedlm_jax.interop.health import Part, check_directory


def flip(file, place=None):
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    file.write_bytes(content)


def damaged(path, **options) -> dict[str, list[str]]:
    return {part.name: part.problems for part in check_directory(path, **options) if part.problems}


def lines(path, **options) -> list[str]:
    return [part.line() for part in check_directory(path, **options)]


@pytest.fixture
def run(tmp_path, tokenizer):
    """A run directory with two finished checkpoints and one that was never finished."""
    path = tmp_path / "run"
    for step in (2, 4):
        folder = path / "checkpoints" / f"{step}"
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "weights").write_bytes(bytes(range(256)))
        (folder / "data").write_text("{}")
        (folder / "_CHECKPOINT_METADATA").write_text(f"{step}")  # is not hashed
        write_sums(folder)
    (path / "checkpoints" / "6").mkdir()
    save_tokenizer(tokenizer, path)
    start = {"model": {"layers": 2}, "tokenizer": tokenizer_hash(tokenizer)}
    write_json(path / "run.json", {"recipe": "pretrain", "started_from": start})
    write_json(path / "config.json", {"model": {"layers": 2, "dropout": 0.0}})
    (path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": 1.5}\n')
    (path / "events.jsonl").write_text('{"time": 1.0, "event": "start"}\n')
    return path


def test_a_whole_run(run):
    (run / "checkpoints" / "4" / "_CHECKPOINT_METADATA").write_text("another time")
    assert lines(run) == [
        "record: whole",
        "checkpoints/2: 2 files are whole",
        "checkpoints/4: 2 files are whole",
        "checkpoints/6: never finished; resuming the run renames it",
    ]


def test_files_of_a_checkpoint(run):
    first, second = (run / "checkpoints" / step for step in "24")
    flip(first / "model" / "weights")
    (second / "data").unlink()
    (second / "model" / "more").touch()
    assert damaged(run) == {
        "checkpoints/2": ["model/weights was changed after it was written"],
        "checkpoints/4": ["data is missing", f"model/more is not in {SUMS}"],
    }
    line = lines(run)[2]
    assert line == "checkpoints/4: DAMAGED: data is missing (and 1 more)"


def test_a_finished_checkpoint_without_hashes(run):
    for step in "24":
        (run / "checkpoints" / step / SUMS).unlink()
        (run / "checkpoints" / step / "commit_success.txt").touch()  # of Orbax, also earlier
    assert damaged(run) == {f"checkpoints/{step}": [f"{SUMS} is missing"] for step in "24"}
    assert f"checkpoints/2: {SUMS} is written" in lines(run, add_sums=True)
    assert damaged(run) == {}
    flip(run / "checkpoints" / "2" / "data")
    assert [*damaged(run, add_sums=True)] == ["checkpoints/2"]  # nothing is covered up
    assert not (run / "checkpoints" / "6" / SUMS).exists()


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("run.json", "{", r"run\.json"),
        ("config.json", '{"model": {"layers": 3}}', "config.json has layers=3, run.json 2"),
        ("config.json", '{"model": [', r"config\.json"),
        ("config.json", '{"model": 3}', r"config\.json has no model"),
        ("run.json", '{"started_from": [1]}', r"run\.json has no started_from"),
        ("tokenizer.json", "{", "tokenizer"),
        ("metrics.jsonl", '{"step": 1}\n{"st\x01p": 2}\n', "metrics.jsonl has 1 damaged lines"),
        ("metrics.jsonl", "\x00" * 40 + "\n", "metrics.jsonl has 1 damaged lines"),
        ("events.jsonl", '{"time": 1.0}\n{"time', "events.jsonl has 1 damaged lines"),
    ],
)
def test_the_record_of_a_run(run, name, content, problem):
    (run / name).write_text(content)
    (problems,) = damaged(run).values()
    assert re.search(problem, problems[0])


def test_a_line_that_a_crash_cut_off_is_no_damage(run):
    with (run / "events.jsonl").open("a") as file:
        file.write('{"time": 2.0, "eve')
    assert damaged(run) == {}


def test_another_tokenizer_than_the_run_started_from(run, tmp_path):
    other = train_tokenizer(["another text"] * 9, vocab_size=260)
    (run / "tokenizer.json").unlink()
    save_tokenizer(other, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "tokenizer.json", run)
    (problems,) = damaged(run).values()
    assert problems == ["tokenizer.json is not the tokenizer that the run started from"]


def test_flipped_bits_of_entries_and_merges_are_reported(run):
    content = (run / "tokenizer.json").read_bytes()
    for place in range(content.index(b'"vocab"') + 1, len(content) - 9, 97):
        flip(run / "tokenizer.json", place)
        if content[place : place + 1] not in (b" ", b"\n"):
            assert "record" in damaged(run), (place, content[place - 9 : place + 9])
        (run / "tokenizer.json").write_bytes(content)


def test_an_export(release):
    assert [part.name for part in check_directory(release)] == ["."]
    assert damaged(release) == {}
    (release / "notes.txt").write_text("a person's")  # allowed
    assert damaged(release) == {}
    for file in sorted(release.iterdir()):
        if file.name in (SUMS, "notes.txt"):
            continue
        content = file.read_bytes()
        flip(file)
        assert damaged(release) == {".": [f"{file.name} was changed after it was written"]}
        file.write_bytes(content)


def test_the_model_of_a_finetuning_run(run, tmp_path, model, tokenizer):
    save_finetuned(run / "model", model, tokenizer)
    assert damaged(run) == {}
    assert [part.name for part in check_directory(run)][-1] == "model"
    files = [file for file in (run / "model").rglob("*") if file.is_file() and file.name != SUMS]
    largest = max(files, key=lambda file: file.stat().st_size)
    flip(largest)
    name = largest.relative_to(run / "model")
    assert damaged(run) == {"model": [f"{name} was changed after it was written"]}


@pytest.fixture
def rows(tmp_path, tokenizer):
    documents = (Document("cardiology of the neurogram", f"{i}") for i in range(60))
    build_tokens(documents, tokenizer, tmp_path / "rows", length=16, validation_fraction=0.2)
    return tmp_path / "rows"


def test_every_file_of_token_rows(rows):
    assert damaged(rows) == {}
    assert [part.name for part in check_directory(rows)] == [".", "rows"]
    assert "train" in lines(rows)[1]
    for file in sorted(file for file in rows.rglob("*") if file.is_file()):
        content, name = file.read_bytes(), str(file.relative_to(rows))
        flip(file)
        assert "." in damaged(rows), name
        file.unlink()
        assert "." in damaged(rows), name
        file.write_bytes(content)
    (rows / "rows" / "more").touch()
    assert damaged(rows) == {".": [f"rows/more is not in {SUMS}"]}


def test_rows_that_do_not_have_their_hash(rows):
    """Hashes of files that were written again do not cover up other rows."""
    manifest = json.loads((rows / "manifest.json").read_text())
    manifest["splits"]["train"]["sha256"] = "0" * 64
    write_json(rows / "manifest.json", manifest)
    (rows / SUMS).unlink()
    lines(rows, add_sums=True)
    (problems,) = damaged(rows).values()
    assert "rows" in problems[0]


def test_every_file_of_a_corpus(tmp_path):
    source, corpus = tmp_path / "a.jsonl", tmp_path / "corpus"
    source.write_text('{"text": "Aspirin inhibits platelets."}\n')
    build_corpus(parse_sources([f"text:{source}"]), corpus)
    assert lines(corpus) == [".: 4 files are whole", "documents: the manifest lists 1 document"]
    (corpus / "more.txt").write_text("x")
    flip(corpus / "documents-00000-of-00001.jsonl.zst")
    (problems,) = damaged(corpus).values()
    assert problems[0] == "documents-00000-of-00001.jsonl.zst was changed after it was written"
    assert problems[1] == "more.txt is not in SHA256SUMS"
    manifest = json.loads((corpus / "manifest.json").read_text())
    write_json(corpus / "manifest.json", {**manifest, "documents": 2})
    assert "does not match its checksum" in damaged(corpus)["documents"][0]


def test_a_directory_without_hashes(release):
    (release / SUMS).unlink()
    assert damaged(release) == {
        ".": [f"{SUMS} is missing; biomedlm verify --write_sums records the present content"]
    }
    assert lines(release, add_sums=True) == [f".: {SUMS} is written"]
    assert damaged(release) == {}


def test_what_is_no_directory_is_refused(tmp_path, run):
    for path in (tmp_path / "none", run / "run.json"):
        with pytest.raises(InputError, match="no such directory"):
            check_directory(path)
    shutil.rmtree(run / "checkpoints")
    assert lines(run) == ["record: whole"]
    assert Part("a", []).line() == "a: whole"
