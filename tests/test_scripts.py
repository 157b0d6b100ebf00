import re
import shutil
import subprocess
from pathlib import Path

import pytest

from biomedlm_jax.cli import COMMANDS
from biomedlm_jax.commands import bench, plan, pretrain

SCRIPTS = sorted((Path(__file__).parents[1] / "scripts").glob("*.*"))
FLAGS = {"bench": bench.FLAGS, "plan": plan.FLAGS, "pretrain": pretrain.FLAGS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_launchers_are_bash_and_call_commands_that_exist(path):
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    calls = re.findall(r"^[^#\n]*biomedlm\"? ([a-z-]+)([^\n]*)", text, re.MULTILINE)
    calls = [(name, rest) for name, rest in calls if name in COMMANDS]
    assert calls
    for name, rest in calls:
        for flag in re.findall(r"--([a-z_]+)[= ]", rest):
            assert flag == "config" or flag in FLAGS[name], f"{path.name}: {name} has no --{flag}"


def test_a_launcher_without_its_settings_says_what_it_needs():
    tpu = next(path for path in SCRIPTS if path.name == "tpu_pod.sh")
    done = subprocess.run(
        ["bash", tpu], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode != 0
    assert "TPU: name of the TPU" in done.stderr
