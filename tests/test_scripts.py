import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from biomedlm_jax.cli import COMMANDS
from biomedlm_jax.commands import bench, plan, pretrain

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "scripts").glob("*.*"))
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


# A gcloud whose pod is in the state $STATE, and whose workers are the folder $WORKER. It refuses to
# make a pod when $REFUSES says why.
GCLOUD = """#!/usr/bin/env bash
echo "$4" >> "$WORKER/calls"
case "$4" in
  describe) echo "$STATE" ;;
  create)
    echo "$*" >> "$WORKER/creates"
    if [ -n "${REFUSES:-}" ]; then echo "$REFUSES" >&2; exit 1; fi
    ;;
  scp) cp "$6" "$WORKER/biomedlm_jax.tar.gz" ;;
  ssh)
    command="${7#--command=}"
    case "$command" in *pip*) printf '%s' "$command" > "$WORKER/install"; exit 0 ;; esac
    cd "$WORKER" && mkdir -p biomedlm_jax && exec bash -c "$command"
    ;;
esac
"""
# A biomedlm that writes down its arguments, one a line, and ends with $CODE.
BIOMEDLM = """#!/usr/bin/env bash
printf '%s\\n' "$@" >> "$WORKER/arguments"
exit "${CODE:-0}"
"""
PATH = "/usr/bin:/bin"
UNTRACKED = (".venv/bin/python", "runs/a", "quickstart/run/a", "tokens/a.npy", "mine/a")


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def launch_pod(tmp_path: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess:
    """Run a copy of tpu_pod.sh with a gcloud that asks nobody."""
    launcher = tmp_path / "here" / "scripts" / "tpu_pod.sh"
    program(launcher, (ROOT / "scripts" / "tpu_pod.sh").read_text(encoding="utf-8"))
    for name in ("biomedlm_jax/cli.py", "a b.py", *UNTRACKED):
        program(tmp_path / "here" / name, "")
    for command in (["init", "-q"], ["add", "scripts", "biomedlm_jax", "a b.py"]):
        subprocess.run(["git", *command], cwd=tmp_path / "here", check=True, env={"PATH": PATH})
    program(tmp_path / "bin" / "gcloud", GCLOUD)
    worker = tmp_path / "worker"
    program(worker / "biomedlm_jax" / ".venv" / "bin" / "biomedlm", BIOMEDLM)
    values = {
        "TPU": "t",
        "ZONE": "z",
        "TYPE": "y",
        "DATA": "/a folder",
        "RUN": "/b",
        "STATE": "READY",
    }
    values |= {"PATH": f"{tmp_path / 'bin'}:{PATH}", "RETRY_SECONDS": "0"}
    return subprocess.run(
        ["bash", launcher, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**values, "WORKER": str(worker), **settings},
    )


def test_a_pod_gets_the_repository_and_the_arguments_as_they_are(tmp_path):
    done = launch_pod(tmp_path, "--config.data.path=it's $HOME", "--config=a b.py")
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "worker" / "arguments").read_text().splitlines()
    assert said[:2] == ["pretrain", "--distributed"]
    assert said[2:4] == ["--config.data.path=/a folder", "--workdir=/b"]
    assert said[4:] == ["--config.data.path=it's $HOME", "--config=a b.py"]
    with tarfile.open(tmp_path / "worker" / "biomedlm_jax.tar.gz") as package:
        files = {name for name in package.getnames() if not package.getmember(name).isdir()}
    assert files == {"a b.py", "biomedlm_jax/cli.py", "scripts/tpu_pod.sh"}


@pytest.mark.parametrize(
    ("settings", "code", "calls", "said"),
    [
        ({"CODE": "2"}, 2, "describe scp ssh ssh", ""),
        ({"CODE": "1", "FAILURES": "2"}, 1, "describe scp ssh ssh " * 2, "after 2 failures"),
        ({"STATE": "STOPPED", "WAITS": "2"}, 1, "describe start " * 2, "is STOPPED after 2 looks"),
        ({"STATE": "CREATING", "WAITS": "3"}, 1, "describe " * 3, "is CREATING after 3 looks"),
        ({"STATE": "ABSENT", "WAITS": "2"}, 1, "describe create " * 2, "is ABSENT after 2 looks"),
        ({"STATE": "FAILED", "WAITS": "2"}, 1, "describe delete " * 2, "is FAILED after 2 looks"),
        (
            {"STATE": "ABSENT", "REFUSES": "no such zone", "CREATES": "3"},
            1,
            "describe create " * 3,
            "not be made, 3 times in a row; giving up. gcloud said:\nno such zone\n",
        ),
        (
            {"STATE": "ABSENT", "REFUSES": "There is no more capacity", "WAITS": "7"},
            1,
            "describe create " * 7,
            "is ABSENT after 7 looks",
        ),
        ({"DELETE": "1"}, 0, "describe scp ssh ssh delete", ""),
        ({"DELETE": "1", "CODE": "2"}, 2, "describe scp ssh ssh", "tpu-vm delete t --zone=z"),
        ({"DELETE": "0"}, 0, "describe scp ssh ssh", "tpu-vm delete t --zone=z"),
    ],
)
def test_a_pod_is_not_waited_for_or_started_for_ever(tmp_path, settings, code, calls, said):
    done = launch_pod(tmp_path, **settings)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "worker" / "calls").read_text().split() == calls.split()
    assert said in done.stderr


@pytest.mark.parametrize("name", ["DATA", "RUN"])
def test_a_bucket_that_is_not_mounted_is_refused_at_once(tmp_path, name):
    done = launch_pod(tmp_path, **{name: "gs://bucket/a"})
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"{name} is gs://bucket/a: give a path of a mounted file system" in done.stderr
    assert not (tmp_path / "worker" / "calls").exists()


@pytest.mark.skipif(not Path("/proc/sys/kernel/random/boot_id").exists(), reason="not Linux")
def test_a_worker_mounts_once_and_again_what_is_new(tmp_path):
    mount = """echo "it's $WORKER" >> "$WORKER/mounted" # a b"""
    for settings in ({"MOUNT": mount}, {"MOUNT": mount}, {"MOUNT": f"true &&\n{mount}"}):
        done = launch_pod(tmp_path, **settings)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "worker" / "mounted").read_text() == f"it's {tmp_path / 'worker'}\n" * 2
    assert (tmp_path / "worker" / "arguments").read_text().count("pretrain") == 3
    done = launch_pod(tmp_path, MOUNT="exit 2", FAILURES="2")
    assert done.returncode == 1
    assert "MOUNT failed; giving up after 2 failures" in done.stderr
    assert (tmp_path / "worker" / "arguments").read_text().count("pretrain") == 3


def test_a_worker_without_the_python_asks_apt_and_says_so(tmp_path):
    worker = tmp_path / "worker"
    launch_pod(tmp_path, PYTHON="python3.99")
    program(tmp_path / "bin" / "sudo", '#!/bin/sh\necho "$@" >> "$WORKER/sudo"\nexit 1\n')
    done = subprocess.run(
        ["bash", "-c", (worker / "install").read_text()],
        cwd=worker,
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path / 'bin'}:{PATH}", "WORKER": str(worker)},
    )
    assert done.returncode == 1
    assert "python3.99 is not on this worker, and apt does not install it" in done.stderr
    assert "apt-get" in (worker / "sudo").read_text()


def test_a_pod_is_a_spot_one_unless_it_is_not_to_be(tmp_path):
    for spot in "10":
        launch_pod(tmp_path, STATE="ABSENT", WAITS="1", SPOT=spot)
    first, second = (tmp_path / "worker" / "creates").read_text().splitlines()
    assert "--spot" in first
    assert "--spot" not in second
    assert second.endswith("--zone=z")


def test_one_gpu_is_measured_with_the_shape_of_its_config(tmp_path):
    for name in ("scripts/one_gpu.sh", "configs/gpt_125m.py"):
        program(tmp_path / name, (ROOT / name).read_text(encoding="utf-8"))
    program(tmp_path / ".venv" / "bin" / "biomedlm", BIOMEDLM)
    python = f'#!/usr/bin/env bash\nexec "{sys.executable}" "$@"\n'
    program(tmp_path / ".venv" / "bin" / "python", python)
    arguments = ["--config=configs/gpt_125m.py", "--config.data.path=a b", "--workdir=RUN"]
    done = subprocess.run(
        ["bash", tmp_path / "scripts" / "one_gpu.sh", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "WORKER": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "arguments").read_text().split("\n")[:-1]
    assert said[:4] == ["plan", *arguments[:2], "--topology=local"]
    shape = ["--layers=12", "--width=768", "--heads=12", "--vocab_size=28896", "--length=1024"]
    assert said[4:11] == ["bench", "train", *shape]
    assert said[-4:] == ["pretrain", *arguments]
