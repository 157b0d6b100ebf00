"""Damaged files of a run, an export and token rows are named, and never used."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from biomedlm_jax.cli import main
from biomedlm_jax.errors import InputError
from biomedlm_jax.integrity import SUMS
from biomedlm_jax.training import fit
from biomedlm_jax.training.saved_steps import choose_step

STEPS = {
    "training.steps": 6,
    "training.evaluate_every": 6,
    "checkpoint.every": 2,
    "checkpoint.keep": 9,
}
ITEMS = ("model", "optimizer", "data")


@pytest.fixture(scope="module")
def finished(faults, dataset, tmp_path_factory) -> Path:
    """A finished run with checkpoints of steps 2, 4 and 6; copy it."""
    run = tmp_path_factory.mktemp("damage") / "run"
    assert main(faults.pretrain_arguments(dataset, run, **STEPS)) == 0
    assert faults.steps(run) == [2, 4, 6]
    return run


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    monkeypatch.setattr(fit, "plot_losses", lambda run: None)


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def resume(faults, dataset, run, *flags) -> int:
    return main([*faults.pretrain_arguments(dataset, run, **STEPS), *flags])


def flip(file: Path) -> str:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)
    return "was changed after it was written"


def truncate(file: Path) -> str:
    file.write_bytes(file.read_bytes()[:-1])
    return "was changed after it was written"


def empty(file: Path) -> str:
    file.write_bytes(b"")
    return "was changed after it was written"


def remove(file: Path) -> str:
    file.unlink()
    return "is missing"


def add(file: Path) -> str:
    file.with_name(f"{file.name}.more").write_bytes(b"more")
    return f"is not in {SUMS}"


def largest(folder: Path) -> Path:
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def last_line(capsys) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("item", ITEMS)
@pytest.mark.parametrize("change", [flip, truncate, empty, remove, add])
def test_one_file_of_the_newest_checkpoint(run, capsys, change, item):
    newest = run / "checkpoints" / "6"
    file = max(
        (f for f in (newest / item).rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
    )
    problem = change(file)
    name = str(file.relative_to(newest)) + (".more" if change is add else "")
    with pytest.raises(InputError) as error:
        choose_step(run, fallback=False)
    expected = f"the checkpoint {newest}: {name} {problem}; the newest whole one is step 4; "
    assert str(error.value) == f"{expected}--fallback continues from there"

    assert main(["verify", str(run)]) == 2
    out, text = capsys.readouterr()
    assert f"checkpoints/6: DAMAGED: {name} {problem}" in out
    assert out.count("DAMAGED") == 1
    assert text == f"biomedlm verify: error: {run} is damaged in 1 part: checkpoints/6\n"
    check = ["sha256sum", "--check", "--quiet", SUMS]
    assert subprocess.run(check, cwd=newest, capture_output=True).returncode == (change is not add)

    assert choose_step(run, fallback=True) == 4
    folders = sorted(path.name for path in newest.parent.iterdir())
    assert folders == ["2", "4", "6.damaged"]
    assert main(["verify", str(run)]) == 0


def test_every_file_of_a_checkpoint(run):
    """A flipped bit in any file, also in those that Orbax would not read."""
    newest = run / "checkpoints" / "6"
    files = [f for f in newest.rglob("*") if f.is_file() and f.stat().st_size]
    for file in files:
        content = file.read_bytes()
        flip(file)
        if str(file.relative_to(newest)) in ("_CHECKPOINT_METADATA", "commit_success.txt"):
            assert choose_step(run, fallback=False) == 6  # of times only
        else:
            with pytest.raises(InputError, match=re.escape(str(newest))):
                choose_step(run, fallback=False)
        file.write_bytes(content)
    assert len(files) > 15
    assert subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=newest).returncode == 0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lambda text: "", "SHA256SUMS is empty"),
        (lambda text: text[: len(text) // 2], "is not in SHA256SUMS"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-1]), "is not in SHA256SUMS"),
        (lambda text: text.replace("  data/metadata", "  data/other"), "data/other is missing"),
        (lambda text: text.replace("a", "\x01"), "SHA256SUMS is damaged: got the line"),
        (lambda text: "\x00" * len(text) + "\n", "SHA256SUMS is damaged: got the line"),
        (None, "SHA256SUMS is missing; the newest whole one is step 4; --fallback continues"),
    ],
    ids=["empty", "cut", "one line less", "another name", "damaged", "zeros", "missing"],
)
def test_the_list_of_hashes(run, capsys, content, problem):
    sums = run / "checkpoints" / "6" / SUMS
    if content is None:
        sums.unlink()
    else:
        sums.write_text(content(sums.read_text()))
    with pytest.raises(InputError, match=problem) as error:
        choose_step(run, fallback=False)
    assert f"the checkpoint {run / 'checkpoints' / '6'}: " in str(error.value)
    assert main(["verify", str(run)]) == 2
    assert "checkpoints/6: DAMAGED" in capsys.readouterr().out
    assert choose_step(run, fallback=True) == 4


def test_the_command_refuses_and_with_permission_continues(faults, dataset, finished, run, capsys):
    newest = run / "checkpoints" / "6"
    shard = largest(newest / "optimizer")
    flip(shard)
    before = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
    assert resume(faults, dataset, run) == 2
    assert last_line(capsys) == (
        f"biomedlm pretrain: error: the checkpoint {newest}: {shard.relative_to(newest)} was "
        "changed after it was written; the newest whole one is step 4; --fallback continues from "
        "there"
    )
    assert {f: f.read_bytes() for f in run.rglob("*") if f.is_file()} == before
    assert resume(faults, dataset, run, "--fallback") == 0
    faults.assert_same_state(faults.saved_state(run), faults.saved_state(finished))
    assert faults.lines_of(run) == faults.lines_of(finished)
    assert (run / "checkpoints" / "6.damaged").is_dir()
    assert main(["verify", str(run)]) == 0


def test_what_was_never_finished_is_passed_over(faults, dataset, finished, run, capsys):
    folder = run / "checkpoints"
    for mark in (SUMS, "commit_success.txt"):
        (folder / "6" / mark).unlink()
    (folder / "8").mkdir()
    (folder / f"10{'.orbax-checkpoint-tmp'}").mkdir()  # of a process that was killed
    assert resume(faults, dataset, run) == 0
    faults.assert_same_state(faults.saved_state(run), faults.saved_state(finished))
    assert sorted(path.name for path in folder.iterdir()) == [
        *("2", "4", "6", "6.unfinished", "8.unfinished")
    ]
    assert faults.started_at(run) == 4
    assert main(["inspect", str(run)]) == 0
    assert "set aside: checkpoints/6.unfinished" in capsys.readouterr().out


def test_no_checkpoint_is_whole(run):
    for step in (2, 4, 6):
        flip(run / "checkpoints" / str(step) / "data" / "metadata")
    with pytest.raises(InputError, match=r"6: data/metadata was .*; no checkpoint is whole$"):
        choose_step(run, fallback=False)


def test_a_damaged_model_is_not_used(run, tmp_path, capsys):
    newest = run / "checkpoints" / "6"
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "cell"}\n')
    export = ["export-hf", f"--model={run}", f"--out={tmp_path / 'export'}"]
    generate = [
        "generate",
        f"--model={run}",
        f"--prompts={tmp_path / 'prompts.jsonl'}",
        f"--out={tmp_path / 'answers.jsonl'}",
    ]
    flip(newest / "optimizer" / "manifest.ocdbt")
    assert main(export) == 0  # it reads the model alone
    shutil.rmtree(tmp_path / "export")
    for change in (flip, remove):
        file = largest(newest / "model")
        problem = change(file)
        name = str(file.relative_to(newest))
        for command in (export, generate):
            assert main(command) == 2
            assert last_line(capsys) == (
                f"biomedlm {command[0]}: error: the checkpoint {newest}: {name} {problem}; restore "
                "a copy of it, or move it away to use an older one: [2, 4]"
            )
    assert not (tmp_path / "export").exists()


def test_a_run_of_an_earlier_version(faults, dataset, finished, run, capsys):
    for file in run.rglob(SUMS):
        file.unlink()
    export = ["export-hf", f"--model={run}", f"--out={run.parent / 'export'}"]
    advice = f"; if an earlier version wrote it, run biomedlm verify {run} --write_sums first"
    assert resume(faults, dataset, run) == 2
    assert last_line(capsys).endswith(f"{SUMS} is missing; no checkpoint is whole{advice}")
    assert main(export) == 2
    assert last_line(capsys).endswith(advice)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "4", "6"]
    assert main(["verify", str(run), "--write_sums"]) == 0
    assert capsys.readouterr().out.count("SHA256SUMS is written") == 3
    assert main(["verify", str(run)]) == 0
    assert (run / "checkpoints" / "6" / SUMS).read_text() == (
        finished / "checkpoints" / "6" / SUMS
    ).read_text()
    assert resume(faults, dataset, run) == 0
    assert main(export) == 0


def test_every_file_of_an_export(finished, tmp_path, capsys):
    export = tmp_path / "export"
    assert main(["export-hf", f"--model={finished}", f"--out={export}"]) == 0
    assert main(["verify", str(export)]) == 0
    check = ["sha256sum", "--check", "--quiet", SUMS]
    assert subprocess.run(check, cwd=export).returncode == 0
    files = sorted(f for f in export.iterdir() if f.name != SUMS)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {f.name for f in files}
    for file in files:
        content = file.read_bytes()
        for change in (flip, truncate, empty, remove):
            capsys.readouterr()
            problem = change(file)
            assert main(["verify", str(export)]) == 2
            assert f".: DAMAGED: {file.name} {problem}\n" in capsys.readouterr().out
            assert subprocess.run(check, cwd=export, capture_output=True).returncode == 1
            file.write_bytes(content)


def test_every_file_of_token_rows(faults, dataset, tmp_path, capsys):
    rows = shutil.copytree(dataset, tmp_path / "rows")
    assert main(["verify", str(rows)]) == 0
    assert subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=rows).returncode == 0
    for file in sorted(f for f in rows.rglob("*") if f.is_file() and f.name != SUMS):
        content, name = file.read_bytes(), str(file.relative_to(rows))
        for change in (flip, truncate, remove, add):
            capsys.readouterr()
            problem = change(file)
            assert main(["verify", str(rows)]) == 2
            more = ".more" if change is add else ""
            assert f".: DAMAGED: {name}{more} {problem}" in capsys.readouterr().out
            file.write_bytes(content)
            file.with_name(f"{file.name}.more").unlink(missing_ok=True)
