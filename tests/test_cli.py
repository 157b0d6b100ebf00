import contextlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from biomedlm_jax.cli import COMMANDS, main
from biomedlm_jax.commands import pretrain
from biomedlm_jax.errors import KEPT, InputError

ROOT = Path(__file__).parents[1]
CONFIG = f"--config={ROOT}/configs/pretrain.py:tiny"


def error_line(capsys) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("biomedlm")
    return lines[0]


def test_overview_lists_every_command_without_importing_jax():
    code = "import sys; from biomedlm_jax.cli import main; main([]); print('jax' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "False"
    for name in COMMANDS:
        assert f"\n  {name} " in out.stdout
    assert all(len(line) <= 100 for line in out.stdout.splitlines())


def test_every_file_in_commands_with_flags_is_in_the_table():
    files = {path.stem for path in (ROOT / "biomedlm_jax" / "commands").glob("*.py")}
    assert files == {name.replace("-", "_") for name in COMMANDS} | {"__init__", "shared_flags"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_that_commands_flags_only(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    flags = [line for line in text.splitlines() if line.startswith("  --")]
    assert flags
    assert all(": " in line for line in flags)
    assert not any("--logtostderr" in line or "--flagfile" in line for line in flags)
    assert not any(word in text for word in ("README", "see the", "docs/"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrian"], "unknown command 'pretrian'; the commands are quickstart,"),
        (["quickstart", "--stepz=3"], "Unknown command line flag 'stepz'. Did you mean: steps ?"),
        (["quickstart", "here"], "got 'here' without a flag; expected --name=value"),
        (["quickstart", "--steps="], "got --steps=; expected a whole number"),
        (["quickstart", "--steps='9'"], "got --steps='9'; expected a whole number"),
        (["quickstart", "--out"], "Missing value for flag --out"),
        (["verify-hf", "--model=x", '--tolerance="1"'], 'got --tolerance="1"; expected a number'),
        (["pretrain", "--distributed='yes'"], "got --distributed='yes'; expected true or false"),
        (["bench", "'foo'"], "got --what='foo'; expected one of train, score, generate, load"),
        (["pretrain"], "error: --config is required. --workdir is required."),
        (["pretrain", "--config=no.py", "--workdir=x"], "error: no such config file: no.py"),
        (["pretrain", "--config", "no.py", "--workdir=x"], "error: no such config file: no.py"),
        (["plan", "--config="], "error: no such config file: the path is empty"),
        (["export-hf", "--model=", "--out="], "error: --model is required. --out is required."),
        (["pretrain", CONFIG, "--workdir=s3://bucket/run"], "mount the bucket"),
        (["finetune", CONFIG, "--model", "S3://bucket/run", "--workdir=x"], "got --model=S3://"),
        (
            ["evaluate", "--model=x", "--out=gs://bucket/x"],
            "a path of a file system: give",
        ),
        (["build-tokens", "--input=x", "--out=GS://bucket/x"], "gcloud storage cp -r copies it"),
        (["train-tokenizer", "--input=gs://bucket/x", "--out=x"], "got --input=gs://bucket/x"),
        (["pretrain", "--workdir=x", "--config.training.steps=3"], "--config=FILE comes before"),
        (
            ["pretrain", f"--config={ROOT}/configs/pretrain.py:huge", "--workdir=x"],
            "pretrain.py:huge: got the variant 'huge'; choose one of biomedlm_2_7b,",
        ),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_bad_flags_are_one_clear_line(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in error_line(capsys)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.training.stepz=3", "has no setting 'stepz'; did you mean 'steps'?"),
        ("--config.optimiser.beta1=0.8", "has no setting 'optimiser'; did you mean 'optimizer'?"),
        ("--config.zz=3", "the config has no setting 'zz'; its file lists them"),
        ("--config.training.steps.x=3", "training.steps.x"),
        ("--config.training.steps=many", "got --config.training.steps=many; expected a whole"),
        ("--config.training.steps=", "got --config.training.steps=; expected a whole number"),
        ("--config.optimizer.learning_rate=nan", "learning_rate=nan"),
        ("--config.training.steps=3", "config.data.path"),
    ],
)
def test_bad_overrides_are_one_clear_line(override, message, tmp_path, capsys):
    assert main(["pretrain", CONFIG, f"--workdir={tmp_path / 'run'}", override]) == 2
    assert message in error_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_call_does_not_keep_the_flags_of_an_earlier_one(monkeypatch):
    steps = []
    monkeypatch.setattr(pretrain, "run", lambda flags: steps.append(flags.config.training.steps))
    assert main(["pretrain", CONFIG, "--workdir=x", "--config.training.steps=3"]) == 0
    assert main(["pretrain", CONFIG, "--workdir=x"]) == 0
    assert main(["pretrain", "--workdir=x"]) == 2
    assert steps == [3, 40]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("two\nlines"), 2),
        (FileNotFoundError(2, "No such file or directory", "x.json"), 1),
        (OSError(28, "No space left on device"), 1),
        (OSError("cannot write; check the disk"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error, code, monkeypatch, capsys):
    def run(flags):
        raise error

    monkeypatch.setattr(pretrain, "run", run)
    assert main(["pretrain", CONFIG, "--workdir=x"]) == code
    expected = {
        OSError: f"error: {error.args[-1:] and error.args[-1]}",
        InputError: r"error: two\nlines",
        FileNotFoundError: "error: No such file or directory: x.json",
        KeyboardInterrupt: "interrupted",
    }
    assert error_line(capsys) == f"biomedlm pretrain: {expected[type(error)]}"
    if code == 2:
        monkeypatch.setenv("BIOMEDLM_TRACEBACK", "1")
        with pytest.raises(type(error)):
            main(["pretrain", CONFIG, "--workdir=x"])


def test_what_is_kept_is_the_last_line_of_an_error(monkeypatch, capsys):
    def run(flags):
        error = errors.pop()
        error.add_note("of a library")
        error.add_note(f"{KEPT}2 parts")
        raise error

    monkeypatch.setattr(pretrain, "run", run)
    errors = [InputError("bad"), OSError(28, "No space left"), KeyboardInterrupt(), SystemExit(143)]
    for code, lines in ((143, []), (130, ["interrupted"]), (1, ["error: No space left"])):
        with pytest.raises(SystemExit) if code == 143 else contextlib.nullcontext():
            assert main(["pretrain", CONFIG, "--workdir=x"]) == code
        lines = [f"biomedlm pretrain: {line}\n" for line in [*lines, "kept: 2 parts"]]
        assert capsys.readouterr().err == "".join(lines)


def test_defects_keep_their_traceback(monkeypatch):
    def run(flags):
        raise KeyError("layers")

    monkeypatch.setattr(pretrain, "run", run)
    with pytest.raises(KeyError):
        main(["pretrain", CONFIG, "--workdir=x"])


def test_a_closed_output_is_a_sigpipe():
    program = "import sys; from biomedlm_jax import cli; sys.exit(cli.main([]))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_warning_is_one_clear_line(capsys, monkeypatch):
    def warn(options):  # pytest records warnings instead of printing them
        sys.stderr.write(warnings.formatwarning("the head\n is odd", RuntimeWarning, "a.py", 1))

    before = warnings.formatwarning
    monkeypatch.setattr(pretrain, "run", warn)
    assert main(["pretrain", CONFIG, "--workdir=x"]) == 0
    assert capsys.readouterr().err == "warning: the head is odd\n"
    assert warnings.formatwarning is before
