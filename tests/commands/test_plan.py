import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import biomedlm_jax
from biomedlm_jax.cli import main
from biomedlm_jax.commands import plan as command
from biomedlm_jax.planning.planner import Plan, Row

ROOT = Path(__file__).parents[2]
CODE = """
from biomedlm_jax.cli import main
code = main(["plan", "--config=configs/pretrain.py:tiny", "--topology=v5e:3x3"])
import jax
print(code, jax.config.jax_platforms)
"""


@pytest.fixture
def run(monkeypatch):
    monkeypatch.chdir(ROOT)

    def of(variant: str, *arguments: str) -> int:
        return main(["plan", f"--config=configs/pretrain.py:{variant}", *arguments])

    return of


def test_planning_for_a_slice_looks_for_no_device_here():
    # In a process that is free to choose a platform; jax reads the choice when it is imported.
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=True,
    )
    assert done.stdout.split() == ["2", "cpu"], done.stderr
    assert "got topology 'v5e:3x3'; expected v5e: with one of" in done.stderr


def test_the_published_run_on_16_chips_names_what_to_change(run, capsys):
    pytest.importorskip("libtpu")
    assert run("biomedlm_2_7b", "--topology=v5e:4x4") == 2
    message = capsys.readouterr().err
    assert "does not make 16" in message
    assert "set --config.mesh.fsdp=N, or add --search" in message
    assert message.count("\n") == 1


def test_a_config_without_sizes_names_the_flags(run, capsys):
    assert run("tiny") == 2
    message = capsys.readouterr().err
    assert "expected --config.model.vocab_size and --config.model.context_length, or" in message


def test_sizes_that_are_none(run, capsys):
    assert run("tiny", "--tensor=1,x") == 2
    assert (
        "got --tensor=1,x; expected whole numbers above 0, such as 1,2,4" in capsys.readouterr().err
    )


def test_the_plan_is_printed_and_written(monkeypatch, tmp_path, capsys):
    made = Plan("local", "score", "cpu", 1, None, "xla", 256, 1e9, 40, [Row({"data": 1}, {}, {})])
    passed = {}
    monkeypatch.setattr(biomedlm_jax, "plan", lambda *_, **options: passed.update(options) or made)
    flags = ["--config=configs/pretrain.py:tiny", "--step=score", "--tensor=2", "--search"]
    files = [f"--out={tmp_path / 'out'}", f"--json={tmp_path / 'plan.json'}", "--hlo=hlo"]
    monkeypatch.chdir(ROOT)
    assert main(["plan", *flags, *files]) == 0
    text = capsys.readouterr().out
    assert "| one device | yes |" in text
    assert f"wrote {tmp_path / 'out' / 'plan.json'}" in text
    assert json.loads((tmp_path / "plan.json").read_text())["step"] == "score"
    assert passed.pop("progress")
    assert main(["plan", *flags, files[0]]) == 2
    assert main(["plan", *flags, files[1]]) == 2
    errors = capsys.readouterr().err
    assert f"{tmp_path / 'out'} holds something else, which is never overwritten" in errors
    assert "plan.json; expected a file that does not exist yet" in errors
    assert passed == {"search": True, "tensor": (2,), "step": "score", "hlo": "hlo"}


def test_help_names_units():
    text = command.FLAGS.get_help()
    for part in ("in chips", "in devices", "one text file for each mesh"):
        assert part in text
