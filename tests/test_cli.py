import os
import subprocess
import sys
from pathlib import Path

import pytest

from biomedlm_jax.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]


def test_overview_lists_every_command_without_importing_jax():
    code = "import sys; from biomedlm_jax.cli import main; main([]); print('jax' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "False"
    for name in COMMANDS:
        assert f"\n  {name} " in out.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_that_commands_flags_only(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--" in text
    assert "--logtostderr" not in text  # a flag of absl's own


def one_line(capsys) -> str:
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("biomedlm")
    return lines[0]


def test_unknown_command(capsys):
    assert main(["pretrian"]) == 2
    assert "pretrian" in (line := one_line(capsys))
    assert "pretrain" in line


def test_unknown_flag(capsys):
    assert main(["quickstart", "--stepz=3"]) == 2
    assert "stepz" in one_line(capsys)


def test_positional_argument(capsys):
    assert main(["quickstart", "here"]) == 2
    assert "'here'" in one_line(capsys)


def test_bench_takes_its_subject_by_position(capsys):
    assert main(["bench", "tokens"]) == 2
    assert "bench tokens needs --input and --tokenizer" in one_line(capsys)
    assert main(["bench", "cooking"]) == 2
    assert "cooking" in one_line(capsys)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--config.training.stepz=3", "stepz"),
        ("--config.training.steps=many", "many"),
        ("--config.model.heads=7", "config.data.path is empty"),
    ],
)
def test_config_overrides_that_cannot_be(override, said, tmp_path):
    # In a process of its own: ml_collections defines each override as a flag, once.
    arguments = ["--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}", override]
    done = subprocess.run(
        [sys.executable, "-m", "biomedlm_jax.cli", "pretrain", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert said in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_reader_that_has_seen_enough():
    program = "import sys; from biomedlm_jax import cli; sys.exit(cli.main([]))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["pretrain", "--config=no.py", "--workdir=x"], "error: no such config file: no.py"),
        (["train-tokenizer"], "error: --input is required. --out is required."),
        (
            ["pretrain", f"--config={ROOT}/configs/tiny.py", "--config.training.batchsize=3"],
            "error: the config has no setting 'batchsize'. Did you mean \"batch_size\"",
        ),
        (
            ["pretrain", f"--config={ROOT}/configs/tiny.py", "--workdir=gs://bucket/run"],
            "got --workdir=gs://bucket/run; paths are those of a file system: mount the bucket",
        ),
        (["bench", "train", "--peers=foo"], "got the peer 'foo'; name one as 'torch ATTENTION"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, line):
    program = [sys.executable, "-m", "biomedlm_jax.cli", *arguments]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_plan_names_the_topologies_it_knows():
    arguments = ["--config=configs/biomedlm_2_7b.py", "--topology=v5e:17x17"]
    done = subprocess.run(
        [sys.executable, "-m", "biomedlm_jax.cli", "plan", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "16x16" in done.stderr
