import dataclasses
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from biomedlm_jax.chips import chip
from biomedlm_jax.cli import COMMANDS
from biomedlm_jax.commands import bench, plan, pretrain
from biomedlm_jax.corpus.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from biomedlm_jax.files import read_json, write_json
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.model.families import make_config
from biomedlm_jax.planning.compiled import Collective, Figures
from biomedlm_jax.planning.planner import Plan, Row
from biomedlm_jax.training.state import random_model

PATH = "/usr/bin:/bin"
ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "scripts").glob("*.s*"))
FLAGS = {"bench": bench.FLAGS, "plan": plan.FLAGS, "pretrain": pretrain.FLAGS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_bash_and_use_existing_flags(path):
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


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help_prints_the_usage_and_runs_nothing(path, flag):
    done = subprocess.run(
        ["bash", path, "--workdir=RUN", flag], capture_output=True, text=True, env={"PATH": PATH}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"scripts/{path.name}" in done.stdout
    assert "--config=configs/pretrain.py:" in done.stdout
    assert "#" not in done.stdout  # neither comment marks nor code


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_missing_settings_are_one_line_and_exit_code_2(path):
    done = subprocess.run(["bash", path], capture_output=True, text=True, env={"PATH": PATH})
    assert done.returncode == 2
    assert re.fullmatch(r"expected .+, got .+; fix: .+\n", done.stderr)


# A fake gcloud. The pod has the state $STATE, the directory $WORKER stands for all workers, and
# `create` fails with the message $REFUSES if it is set.
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
# A fake biomedlm. It records its arguments, one per line, and exits with $CODE (if ONCE is set, the
# second time with 0).
BIOMEDLM = """#!/usr/bin/env bash
printf '%s\\n' "$@" >> "$WORKER/arguments"
if [ -n "${ONCE:-}" ] && [ "$(grep -c pretrain "$WORKER/arguments")" -gt 1 ]; then exit 0; fi
exit "${CODE:-0}"
"""
UNTRACKED = (".venv/bin/python", "runs/a", "quickstart/run/a", "tokens/a.npy", "mine/a")


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def launch_pod(tmp_path: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess:
    """Run a copy of tpu_pod.sh with the fake gcloud."""
    launcher = tmp_path / "here" / "scripts" / "tpu_pod.sh"
    write_program(launcher, (ROOT / "scripts" / "tpu_pod.sh").read_text(encoding="utf-8"))
    for name in ("biomedlm_jax/cli.py", "a b.py", *UNTRACKED):
        write_program(tmp_path / "here" / name, "")
    for command in (["init", "-q"], ["add", "scripts", "biomedlm_jax", "a b.py"]):
        subprocess.run(["git", *command], cwd=tmp_path / "here", check=True, env={"PATH": PATH})
    write_program(tmp_path / "bin" / "gcloud", GCLOUD)
    worker = tmp_path / "worker"
    write_program(worker / "biomedlm_jax" / ".venv" / "bin" / "biomedlm", BIOMEDLM)
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


def test_workers_receive_tracked_files_and_unchanged_arguments(tmp_path):
    done = launch_pod(tmp_path, "--config.data.path=it's $HOME", "--config=a b.py")
    assert done.returncode == 0, done.stderr
    arguments = (tmp_path / "worker" / "arguments").read_text().splitlines()
    assert arguments[:2] == ["pretrain", "--distributed"]
    assert arguments[2:4] == ["--config.data.path=/a folder", "--workdir=/b"]
    assert arguments[4:] == ["--config.data.path=it's $HOME", "--config=a b.py"]
    with tarfile.open(tmp_path / "worker" / "biomedlm_jax.tar.gz") as package:
        files = {name for name in package.getnames() if not package.getmember(name).isdir()}
    assert files == {"a b.py", "biomedlm_jax/cli.py", "scripts/tpu_pod.sh"}


@pytest.mark.parametrize(
    ("settings", "code", "calls", "message"),
    [
        ({"CODE": "2"}, 2, "describe scp ssh ssh", ""),
        ({"CODE": "130"}, 130, "describe scp ssh ssh", ""),
        (
            {"CODE": "143", "FAILURES": "2", "ONCE": "1"},
            0,
            "describe scp ssh ssh " * 2,
            "training ended with exit code 143; next attempt in 0 s",
        ),
        (
            {"CODE": "1", "FAILURES": "2"},
            1,
            "describe scp ssh ssh " * 2,
            "stopped after 2 failures",
        ),
        ({"STATE": "STOPPED", "WAITS": "2"}, 1, "describe start " * 2, "got STOPPED in 2 checks"),
        ({"STATE": "CREATING", "WAITS": "3"}, 1, "describe " * 3, "got CREATING in 3 checks"),
        ({"STATE": "ABSENT", "WAITS": "2"}, 1, "describe create " * 2, "got ABSENT in 2 checks"),
        ({"STATE": "FAILED", "WAITS": "2"}, 1, "describe delete " * 2, "got FAILED in 2 checks"),
        (
            {"STATE": "ABSENT", "REFUSES": "no such zone", "CREATES": "3"},
            1,
            "describe create " * 3,
            "rejected `create` 3 times in a row; its last output:\nno such zone\n",
        ),
        (
            {"STATE": "ABSENT", "REFUSES": "There is no more capacity", "WAITS": "7"},
            1,
            "describe create " * 7,
            "got ABSENT in 7 checks",
        ),
        ({"DELETE": "1"}, 0, "describe scp ssh ssh delete", ""),
        ({"DELETE": "1", "CODE": "2"}, 2, "describe scp ssh ssh", "tpu-vm delete t --zone=z"),
        ({"DELETE": "0"}, 0, "describe scp ssh ssh", "tpu-vm delete t --zone=z"),
    ],
)
def test_retries_are_limited(tmp_path, settings, code, calls, message):
    done = launch_pod(tmp_path, **settings)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "worker" / "calls").read_text().split() == calls.split()
    assert message in done.stderr


@pytest.mark.parametrize("name", ["DATA", "RUN"])
def test_of_buckets_only_those_of_google_are_accepted(tmp_path, name):
    done = launch_pod(tmp_path, **{name: "s3://bucket/a"})
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"expected gs://... or a mounted path in {name}, got s3://bucket/a; fix: " in done.stderr
    assert not (tmp_path / "worker" / "calls").exists()
    done = launch_pod(tmp_path, **{name: "gs://bucket/a"})
    assert done.returncode == 0, done.stderr
    assert "=gs://bucket/a" in (tmp_path / "worker" / "arguments").read_text()


SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@" >> "$PLACE/srun"
exit "$CODE"
"""


@pytest.mark.parametrize(
    ("code", "failures", "requeued", "line"),
    [
        (0, 0, False, ""),
        (2, 0, False, ""),
        (130, 0, False, ""),
        (143, 3, True, "exit code 143; requeued in 0 s"),
        (138, 0, True, "exit code 138; requeued in 0 s"),
        (1, 0, True, "exit code 1; requeued in 30 s"),
        (134, 2, True, "exit code 134; requeued in 120 s"),
        (1, 8, True, "exit code 1; requeued in 480 s"),
        (1, 9, False, "exit code 1; stopped after 10 failures in a row"),
    ],
)
def test_slurm_requeues_what_a_restart_can_fix(tmp_path, code, failures, requeued, line):
    write_program(tmp_path / "bin" / "srun", SRUN)
    write_program(tmp_path / "bin" / "scontrol", '#!/bin/sh\necho "$@" >> "$PLACE/scontrol"\n')
    values = {"PATH": f"{tmp_path / 'bin'}:{PATH}", "PLACE": str(tmp_path), "PAUSE": "0"}
    values |= {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "CODE": str(code)}
    (tmp_path / "biomedlm-7.failures").write_text(f"{failures}\n")
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "slurm_gpu.sbatch", "--config=a b.py"],
        capture_output=True,
        text=True,
        timeout=60,
        env=values,
    )
    assert (tmp_path / "srun").read_text().splitlines()[-1] == "--config=a b.py"
    assert (tmp_path / "scontrol").exists() == requeued
    assert done.returncode == (0 if requeued else code)
    assert line in done.stderr


@pytest.mark.skipif(not Path("/proc/sys/kernel/random/boot_id").exists(), reason="not Linux")
def test_each_mount_command_runs_once_per_boot(tmp_path):
    mount = """echo "it's $WORKER" >> "$WORKER/mounted" # a b"""
    for settings in ({"MOUNT": mount}, {"MOUNT": mount}, {"MOUNT": f"true &&\n{mount}"}):
        done = launch_pod(tmp_path, **settings)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "worker" / "mounted").read_text() == f"it's {tmp_path / 'worker'}\n" * 2
    assert (tmp_path / "worker" / "arguments").read_text().count("pretrain") == 3
    done = launch_pod(tmp_path, MOUNT="exit 2", FAILURES="2")
    assert done.returncode == 1
    assert "MOUNT failed; stopped after 2 failures" in done.stderr
    assert (tmp_path / "worker" / "arguments").read_text().count("pretrain") == 3


def test_missing_python_is_installed_with_apt(tmp_path):
    worker = tmp_path / "worker"
    launch_pod(tmp_path, PYTHON="python3.99")
    write_program(tmp_path / "bin" / "sudo", '#!/bin/sh\necho "$@" >> "$WORKER/sudo"\nexit 1\n')
    done = subprocess.run(
        ["bash", "-c", (worker / "install").read_text()],
        cwd=worker,
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path / 'bin'}:{PATH}", "WORKER": str(worker)},
    )
    assert done.returncode == 1
    assert "expected python3.99 on this worker, and apt cannot install it; fix: " in done.stderr
    assert "apt-get" in (worker / "sudo").read_text()


def test_spot_pods_are_the_default(tmp_path):
    for spot in "10":
        launch_pod(tmp_path, STATE="ABSENT", WAITS="1", SPOT=spot)
    first, second = (tmp_path / "worker" / "creates").read_text().splitlines()
    assert "--spot" in first
    assert "--spot" not in second
    assert second.endswith("--zone=z")


CONFIG = """
from ml_collections import ConfigDict

def get_config(variant):
    shape = {"layers": 12, "width": 768, "heads": 12, "vocab_size": None, "context_length": 1024}
    return ConfigDict({"model": {**shape, "compute_dtype": "auto", "unroll": int(variant)}})
"""


def test_one_gpu_benchmarks_the_shape_of_the_config(tmp_path):
    name = "scripts/one_gpu.sh"
    write_program(tmp_path / name, (ROOT / name).read_text(encoding="utf-8"))
    write_program(tmp_path / "configs" / "a.py", CONFIG)
    write_program(tmp_path / ".venv" / "bin" / "biomedlm", BIOMEDLM)
    python = f'#!/usr/bin/env bash\nexec "{sys.executable}" "$@"\n'
    write_program(tmp_path / ".venv" / "bin" / "python", python)
    arguments = ["--config=configs/a.py:3", "--config.data.path=a b", "--workdir=RUN"]

    def run() -> subprocess.CompletedProcess:
        done = subprocess.run(
            ["bash", tmp_path / "scripts" / "one_gpu.sh", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "WORKER": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        return done

    run()
    calls = (tmp_path / "arguments").read_text().split("\n")[:-1]
    assert calls[:4] == ["plan", *arguments[:2], "--topology=local"]
    shape = ["--layers=12", "--width=768", "--heads=12", "--length=1024", "--dtype=auto"]
    assert calls[4:12] == ["bench", "train", *shape, "--unroll=3"]
    assert calls[-4:] == ["pretrain", *arguments]
    (tmp_path / "bench_train.json").write_text("{}")  # the same command again
    (tmp_path / "arguments").unlink()
    assert "bench_train.json is there: not measured again" in run().stderr
    calls = (tmp_path / "arguments").read_text().split("\n")[:-1]
    assert "bench" not in calls
    assert calls[-4:] == ["pretrain", *arguments]


def run_tool(name: str, *arguments: str, monkeypatch) -> None:
    """Run a Python script of scripts/ in this process."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")


def test_text_baselines_score_answers_and_leave_held_out_groups_out(tmp_path, monkeypatch, capsys):
    pytest.importorskip("rouge_score")
    lines = [
        {"source": "SUBJECT: aspirin dose\nhow much", "target": "aspirin dose", "answer": "dose"},
        {"source": "Is it flu? I cough.", "target": "is it flu", "answer": "is it flu"},
    ]
    train = [
        {"source": lines[0]["source"], "target": "held out", "focus": "a"},
        {"source": "aspirin dose how much", "target": "the same focus", "focus": "a"},
        {"source": "aspirin for me", "target": "aspirin dose", "focus": "b"},
        {"source": "I have the flu", "target": "is it flu", "focus": "c"},
    ]
    for name, records in (("predictions", lines), ("train", train)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / name).write_text(text, encoding="utf-8")
    run_tool(
        "text_baselines.py",
        f"--predictions={tmp_path / 'predictions'}",
        f"--train={tmp_path / 'train'}",
        "--group_field=focus",
        "--constant=is it flu",
        monkeypatch=monkeypatch,
    )
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    rouge1 = {row[0].removeprefix("| "): float(row[1].split()[0]) for row in rows}
    assert rouge1["fine-tuned model"] == pytest.approx((200 / 3 + 100) / 2, abs=0.05)
    assert rouge1['"is it flu"'] == 50
    assert rouge1["first sentence or subject of the source"] == 100
    assert rouge1["target of the nearest training source"] == 100


def test_random_model_writes_a_run(tmp_path, monkeypatch):
    config = """
from ml_collections import ConfigDict

def get_config(variant):
    sizes = {"model_type": "gpt2", "vocab_size": 96, "context_length": 16, "eos_token_id": 95}
    return ConfigDict({"model": {**sizes, "layers": 1, "width": 16, "heads": int(variant)}})
"""
    (tmp_path / "config.py").write_text(config, encoding="utf-8")
    arguments = [f"--config={tmp_path / 'config.py'}:2", f"--out={tmp_path / 'run'}"]
    run_tool("random_model.py", *arguments, monkeypatch=monkeypatch)
    written = make_config(read_json(tmp_path / "run" / "config.json")["model"])
    assert (written.vocab_size, written.heads) == (96, 2)
    logits = load(tmp_path / "run")[0](jnp.zeros((1, 4), int))
    assert jnp.isfinite(logits).all()


def test_the_perplexity_of_clients_is_torchs():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    logits, ids = random.normal(size=(2, 6, 9)), random.integers(0, 9, (2, 6))
    perplexity = runpy.run_path(str(ROOT / "scripts" / "clients.py"))["perplexity"]
    before, after = (
        torch.tensor(logits[:, :-1].reshape(-1, 9)),
        torch.tensor(ids[:, 1:].reshape(-1)),
    )
    expected = torch.nn.functional.cross_entropy(before, after).exp()
    assert perplexity(logits, ids) == pytest.approx(float(expected))


# A fake `biomedlm bench` that writes figures in the layout of its revision, and its calls.
BENCH = """
import json, sys
from pathlib import Path

what = sys.argv[2]
*flags, output = sys.argv[3:]
with open("../calls", "a") as calls:
    print(Path.cwd().name, what, *flags, file=calls)
ours = {"biomedlm_jax": {"median_seconds": SECONDS, "ratio": 1.0}}
cases = {"batch 1": ours, "5 beams": ours}
FIGURES = {"decode": DECODE, "generate": DECODE, "train": TRAIN}
if SECONDS < 0:
    sys.exit("expected seconds, got fewer")
Path(output.removeprefix("--json=")).write_text(json.dumps({"shape": "a", **FIGURES[what]}))
"""


def write_checkout(path: Path, seconds: float, decode: str, train: str, new=False) -> None:
    body = BENCH.replace("SECONDS", str(seconds)).replace("DECODE", decode)
    write_program(path / "biomedlm_jax" / "cli.py", body.replace("TRAIN", train))
    (path / "biomedlm_jax" / "__init__.py").touch()
    (path / "biomedlm_jax" / "benchmarks").mkdir()
    if new:
        (path / "biomedlm_jax" / "benchmarks" / "bench_generate.py").touch()


def test_two_revisions_are_measured_in_alternating_processes(tmp_path, monkeypatch, capsys):
    write_checkout(tmp_path / "a", 2.0, '{"cases": cases}', '{"sides": ours}')
    more = '{"train": ours, "peak memory": {"biomedlm_jax": {"peak_gb": 1.0}}}'
    write_checkout(tmp_path / "b", 1.0, '{"tables": cases}', f'{{"tables": {more}}}', new=True)
    arguments = [f"--old={tmp_path / 'a'}", f"--new={tmp_path / 'b'}", "--rounds=2", "--calls=3"]
    run_tool("compare_revisions.py", *arguments, monkeypatch=monkeypatch)
    rows = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    figures = ["2.0000", "1.0000", "0.500"]
    assert rows[0] == ["seconds", "old", "new", "new / old"]
    assert rows[1:] == [[case, *figures] for case in ("batch 1", "5 beams", "training step")]
    calls = (tmp_path / "calls").read_text().splitlines()
    names = {"a": ("decode", "train"), "b": ("generate", "train")}
    assert [call.split()[:2] for call in calls] == [
        [side, names[side][number]] for number in (0, 1) for side in "abba"
    ]
    for call in calls:
        side, what, *flags = call.split()
        peers = "--peers=" if what == "train" else "--hf="
        peers = [peers] if side == "a" else [peers, "--nodetails"]
        assert flags == [*peers, "--layers=8", "--width=384", "--heads=6", "--rounds=3"]


def test_a_revision_that_cannot_be_measured_is_named(tmp_path, monkeypatch, capsys):
    write_checkout(tmp_path / "a", -1.0, "{}", "{}")
    write_checkout(tmp_path / "b", 1.0, "{}", "{}")
    for old, message in (("a", "expected seconds, got fewer"), ("b", "no figures of biomedlm_jax")):
        arguments = [f"--old={tmp_path / old}", f"--new={tmp_path / 'b'}", "--rounds=1"]
        with pytest.raises(SystemExit, match=rf"bench generate of .*/{old}.*(\n.*)*{message}"):
            run_tool("compare_revisions.py", *arguments, monkeypatch=monkeypatch)
    with pytest.raises(SystemExit, match="2"):
        run_tool("compare_revisions.py", "--old=/", "--new=/", monkeypatch=monkeypatch)
    assert "expected a checkout with biomedlm_jax/cli.py, got /" in capsys.readouterr().err


@pytest.mark.slow
def test_corpus_speed_prints_both_sides(tmp_path):
    figures = tmp_path / "figures.json"
    options = ["--megabytes=0.2", "--files=2", "--workers=2", "--rounds=1", f"--json={figures}"]
    command = [sys.executable, ROOT / "scripts" / "corpus_speed.py", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^2 workers: .* MB/s of XML, .*x, CPU .* of a worker$", done.stdout, re.M)
    sides = read_json(figures)["sides"]
    assert sides["1"]["parent_mb"] > 50
    assert sides["2"]["worker_mb"] > 50


def ablation() -> dict:
    """The functions of the script."""
    return runpy.run_path(str(ROOT / "scripts" / "tokenizer_ablation.py"))


def sentences(seed: int) -> list[str]:
    """120 documents of invented words."""
    random = np.random.default_rng(seed)
    parts = np.array(["cardi", "neur", "osis", "itis", "ology", "gen", "hyper", "myo"])
    words = ["".join(random.choice(parts, 3)) for _ in range(150)]
    return [" ".join(random.choice(words, 60)) + "." for _ in range(120)]


def test_a_tokenizer_that_is_cut_is_one_trained_with_that_size():
    large = train_tokenizer(sentences(0), vocab_size=340)
    small = train_tokenizer(sentences(0), vocab_size=300)
    cut = ablation()["cut_tokenizer"](large, 300)
    assert cut.get_vocab() == small.get_vocab()
    assert json.loads(cut.to_str())["model"] == json.loads(small.to_str())["model"]
    with pytest.raises(SystemExit, match="has fewer than 400 entries"):
        ablation()["cut_tokenizer"](large, 400)


def test_the_bits_of_a_document_are_those_of_its_tokens_one_by_one():
    tokenizer = train_tokenizer(sentences(0), vocab_size=300)
    fields = {"model_type": "gpt2", "vocab_size": 300, "context_length": 16, "eos_token_id": 299}
    model = random_model(make_config({**fields, "layers": 1, "width": 16, "heads": 2}), seed=0)
    texts = [sentences(1)[0][:90], "a", sentences(1)[1][:200]]
    forward = jax.jit(lambda model, row_1xL: model(row_1xL))
    bits = ablation()["document_bits"](model, tokenizer, texts, 16)
    for text, of_text in zip(texts, bits, strict=True):
        ids, expected = [299, *tokenizer.encode(text).ids], 0.0
        for place in range(1, len(ids)):
            start = (place - 1) // 15 * 15  # a row has one token of context and 15 of its own
            context = ids[start:place]
            row = jnp.asarray([context + [7] * (16 - len(context))])  # what follows has no effect
            logits = np.asarray(forward(model, row), np.float64)[0, len(context) - 1]
            expected -= scipy.special.log_softmax(logits)[ids[place]] / np.log(2)
        assert of_text == pytest.approx(expected, rel=1e-5)


def test_the_ablation_compares_documents_in_pairs():
    random = np.random.default_rng(0)
    bytes_N = random.integers(500, 3_000, 80)
    first_SxN = bytes_N * (2 + random.normal(0, 0.3, 80) + random.normal(0, 0.01, (3, 80)))
    second_SxN = first_SxN + bytes_N * random.normal(0.1, 0.05, (3, 80))
    bits = {"domain": first_SxN, "other": second_SxN}
    report = ablation()["summary"](bits, bytes_N)["other"]
    assert report["of_seeds"] == pytest.approx(second_SxN.sum(1) / bytes_N.sum())
    assert report["bits_per_byte"]["value"] == pytest.approx(np.mean(report["of_seeds"]))
    gain_N = (second_SxN - first_SxN).mean(0)
    assert report["documents_better_with_domain"] == (gain_N > 0).sum()
    reference = scipy.stats.bootstrap(
        (gain_N, bytes_N),
        lambda gain, size, axis: gain.sum(axis) / size.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=1,
    ).confidence_interval
    of_documents = report["difference"]
    assert of_documents["value"] == pytest.approx(gain_N.sum() / bytes_N.sum())
    width = reference.high - reference.low
    assert of_documents["low"] == pytest.approx(reference.low, abs=0.05 * width)
    assert of_documents["high"] == pytest.approx(reference.high, abs=0.05 * width)
    both = report["difference_of_documents_and_seeds"]
    assert both["value"] == of_documents["value"]
    assert both["high"] - both["low"] > width


def test_other_settings_of_the_ablation_need_another_directory(tmp_path):
    script, texts = ablation(), sentences(0)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    save_tokenizer(train_tokenizer(texts, vocab_size=400), tmp_path / "general")
    flags = [f"--source=text:{tmp_path / 'a.jsonl'}", f"--general=general={tmp_path / 'general'}"]
    flags += [f"--out={tmp_path / 'out'}", "--vocab_size=300", "--heldout=20", "--workers=1"]
    (tmp_path / "out").mkdir()
    script["prepare"](script["parse"](flags))
    script["prepare"](script["parse"]([*flags, "--steps=7", "--seeds=5", "--match=text"]))
    for other in ("--vocab_size=320", "--length=128", "--width=32", "--heldout_bytes=100"):
        with pytest.raises(SystemExit, match=f"made with another {other.partition('=')[0]}"):
            script["prepare"](script["parse"]([*flags, other]))


def test_each_tokenizer_of_the_ablation_has_its_best_learning_rate(tmp_path):
    script = ablation()
    flags = ["--source=text:a", "--general=gpt2=b", f"--out={tmp_path}", "--steps=200"]
    options = script["parse"]([*flags, "--learning_rates=1e-3,2e-3", "--tuning_steps=60"])
    figures = {"domain": {"steps": 200}, "gpt2": {"steps": 146}}
    losses = {("domain", 60): (2.1, 2.0), ("gpt2", 44): (2.3, 2.4)}  # as many FLOPs each
    for (name, steps), of_name in losses.items():
        for rate, loss in zip((1e-3, 2e-3), of_name, strict=True):
            folder = script["run_folder"](options, name, steps, rate, 1000)
            write_json(folder / "validation.json", {"bits_per_byte": loss})
    chosen = script["tuned_rates"](options, figures, ["domain", "gpt2"])
    assert {name: one["rate"] for name, one in chosen.items()} == {"domain": 2e-3, "gpt2": 1e-3}
    assert chosen["gpt2"]["tried"] == {"0.001": 2.3, "0.002": 2.4}


@pytest.mark.slow
def test_the_tokenizer_ablation_runs_and_resumes(tmp_path):
    texts = sentences(0)
    lines = [json.dumps({"text": text}) + "\n" for text in [*texts, texts[0]]]
    (tmp_path / "articles.jsonl").write_text("".join(lines))
    save_tokenizer(train_tokenizer(sentences(1), vocab_size=400), tmp_path / "general")
    out = tmp_path / "out"
    arguments = [
        f"--source=text:{tmp_path / 'articles.jsonl'}",
        f"--general=general={tmp_path / 'general'}",
        f"--out={out}",
        *("--variant=tiny", "--vocab_size=320", "--length=32", "--heldout=10", "--steps=6"),
        *("--heldout_bytes=200", "--validation_batches=1", "--workers=3"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PJRT_NPROC": "1"}
    environment["XLA_FLAGS"] = os.environ["FAST_COMPILATION"]  # without simulated devices

    def run(seeds: str) -> str:
        command = [sys.executable, ROOT / "scripts" / "tokenizer_ablation.py", *arguments]
        command.append(f"--seeds={seeds}")
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("0")
    runs = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/bits.json")}
    assert len(runs) == 3
    printed = run("0,1")
    assert {path: path.stat().st_mtime_ns for path in runs} == runs  # only the other seed ran
    content = read_json(out / "flops.json")
    assert content["seeds"] == [0, 1]
    assert content["split"]["documents"] == 120  # the copy is left out
    models = content["models"]
    assert [*models] == ["domain", "general", "general_cut"]
    assert models["general_cut"]["parameters"] == models["domain"]["parameters"]
    assert models["general_cut"]["flops"] == models["domain"]["flops"]
    assert models["general"]["flops"] == pytest.approx(models["domain"]["flops"], rel=0.1)
    heldout = read_json(out / "heldout.json")["texts"]
    assert len(heldout) == 10
    for name, one in models.items():
        assert len(one["of_seeds"]) == 2
        tokenizer = load_tokenizer(out / "tokens" / name)
        assert tokenizer.get_vocab_size() == one["vocab_size"]
    assert (out / "flops.png").read_bytes().startswith(b"\x89PNG")
    assert printed.endswith(f"{(out / 'flops.md').read_text()}\n")
    assert "| general_cut | 320 | " in printed


class FakePlanner:
    """Stands for the planner: v5e chips, 0.4 s of operations; state alone fills fewer than 16."""

    def __init__(self, interrupt_at: int = -1):
        self.configs, self.interrupt_at = [], interrupt_at

    def __call__(self, config, topology, *, suggest, progress):
        if len(self.configs) == self.interrupt_at:
            raise KeyboardInterrupt
        self.configs.append(config)
        mesh, batch = config.mesh.to_dict(), config.training.batch_size
        chips = math.prod(mesh.values())
        assert not suggest  # other meshes would be compiled
        sent = Collective("all-gather", "bf16", 2**30, 2, 3, True, "")  # sends 1.5 GiB
        figures = Figures(1.0, {"total": 2**33}, 0.0, 0.0, cycles=1, collectives=[sent])
        row = Row(mesh, {}, {"parameters": 2**40 // chips})
        if chips < 16:
            row = dataclasses.replace(row, problem="out of memory: needs 256 of 16 GiB")
        else:
            seconds = {"operations": 0.4, "kernels": 0.1, "exposed collectives": 0.125}
            row = dataclasses.replace(row, figures=figures, seconds=seconds)
        tokens = batch * config.model.context_length
        known = chip("TPU v5e")
        flops = 0.625 * chips * 197e12 / 2  # half the peak
        kind = ("train", "TPU v5 lite", chips, known, "splash", tokens, flops)
        return Plan(topology, *kind, steps=1, rows=[row])


def test_scaling_continues_after_an_interruption(tmp_path, monkeypatch, capsys):
    arguments = [f"--out={tmp_path / 'scaling'}"]
    stopped, rest = FakePlanner(interrupt_at=3), FakePlanner()
    monkeypatch.setattr("biomedlm_jax.plan", stopped, raising=False)
    with pytest.raises(KeyboardInterrupt):
        run_tool("scaling.py", *arguments, monkeypatch=monkeypatch)
    stopped_at = len(read_json(tmp_path / "scaling" / "scaling.json")["points"])
    assert stopped_at == 3 + 3  # compiled, refused
    monkeypatch.setattr("biomedlm_jax.plan", rest, raising=False)
    run_tool("scaling.py", *arguments, monkeypatch=monkeypatch)
    points = read_json(tmp_path / "scaling" / "scaling.json")["points"]
    keys = [one["key"] for one in points]
    batch = [one for one in points if one.get("breaks") == "batch"]
    assert len(set(keys)) == len(keys) == 3 + len(rest.configs) + len(batch)
    assert {one["problem"] for one in batch} == {
        "1,024 rows do not divide over 2,560 chips",
        "1,600 rows do not divide over 256 chips",
        "1,600 rows do not divide over 1,024 chips",
    }
    for config in (*stopped.configs, *rest.configs):
        mesh, training = config.mesh, config.training
        assert training.batch_size % (mesh.data * mesh.fsdp * training.accumulation) == 0

    # Each figure by hand: 1,024 rows of 1,024 tokens in 0.625 s on 256 chips.
    flagship = next(one for one in points if one["key"].startswith("GPT-2 2.6B, v5e:16x16,"))
    assert flagship["mesh"] == {"data": 8, "fsdp": 32, "tensor": 1}
    assert (flagship["hbm_gib"], flagship["exposed_gib"], flagship["mfu"]) == (8, 3, 0.5)
    assert flagship["collective_share"] == pytest.approx(0.2)
    assert flagship["tokens_per_second_per_chip"] == pytest.approx(2**20 / 0.625 / 256)
    hours = 300e9 / 2**20 * 0.625 / 3600
    assert flagship["run_chip_hours"] == pytest.approx(hours * 256)
    assert flagship["run_days"] == pytest.approx(hours / 24)

    output = capsys.readouterr().out
    assert output == (tmp_path / "scaling" / "scaling.md").read_text(encoding="utf-8") + "\n"
    row = "| 256 | v5e:16x16 | data 8 x fsdp 32 | 1,024 (4) | 8.00 | 0.500 | 0.125 | 20.0% | 0.625 "
    assert output.count(row) == 2  # both weak and strong
    assert "\n4 chips: HBM breaks: out of memory: needs 256 of 16 GiB\n" in output
    table = [line.count("|") for line in output.splitlines() if line.startswith("|")]
    assert set(table) == {14}
    assert (tmp_path / "scaling" / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_scaling_does_not_mix_compiler_versions(tmp_path, monkeypatch, capsys):
    write_json(tmp_path / "scaling.json", {"versions": {"jax": "0", "libtpu": "0"}, "points": []})
    with pytest.raises(SystemExit, match="2"):
        run_tool("scaling.py", f"--out={tmp_path}", monkeypatch=monkeypatch)
    assert "; fix: another --out" in capsys.readouterr().err
