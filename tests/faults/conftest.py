"""Runs through the command line as real processes, places where they stop, and what they leave.

`PRELUDE` runs in a process before the command. It records the batch of every update in
`order.PROCESS.txt`, the step of every save in `saves.PROCESS.txt`, and at the place that `PLACE`
names ("hashed:2": when it is reached for the second time) it writes the file `MARK` and waits, so
that a test ends the process exactly there.
"""

import hashlib
import json
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from processes import Process

from biomedlm_jax.corpus.documents import Document
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens
from biomedlm_jax.interop.finetuned import save_finetuned
from biomedlm_jax.model.families import make_model
from biomedlm_jax.model.gpt2 import GPT2Config
from biomedlm_jax.training.metrics import read_events, read_metrics
from biomedlm_jax.training.saved_steps import steps

ROOT = Path(__file__).parents[2]
SPEED = ("step_seconds", "tokens_per_second", "mfu")
PATIENCE = 240.0  # seconds for what takes a few on an idle machine
WORDS = ("cell", "gene", "protein", "patient", "trial", "dose", "liver", "kidney", "tumour")
TINY = {
    "optimizer.schedule": "constant",
    "optimizer.final_lr_fraction": 1.0,
    "checkpoint.every": 2,
    "checkpoint.keep": 2,
    "checkpoint.keep_every": 4,
    "logging.every": 1,
    "logging.trackers": (),
}
PRETRAIN = {"training.steps": 12, "training.evaluate_every": 6, "model.layers": 1, **TINY}
ELASTIC = {"training.steps": 8, "training.evaluate_every": 8, "checkpoint.keep": 9}
PRELUDE = """
import hashlib, os, signal, sys, time
from pathlib import Path
import numpy as np, jax
from biomedlm_jax import files
from biomedlm_jax.training import checkpoint, fit, metrics, saved_steps

place, _, visits = os.environ.get("PLACE", "").partition(":")
visits = int(visits or 0)
folder, pause = Path(os.environ["RECORDS"]), float(os.environ["PAUSE"])
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup

def reach(name):
    global visits
    if name == place:
        visits -= 1
        if visits == 0:
            Path(os.environ["MARK"]).touch()
            time.sleep(3600)

def record(name, line):
    if name == "saves" or jax.process_count() == 1:
        with open(folder / f"{name}.{jax.process_index()}.txt", "a") as file:
            file.write(line + "\\n")

def jit_step(*arguments, original=fit.jit_step, **options):
    update = original(*arguments, **options)
    def step(state, batch, *others, **named):
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(batch) if jax.process_count() == 1 else ():
            digest.update(np.asarray(leaf).tobytes())
        record("order", f"{int(state.step)} {digest.hexdigest()}")
        result = update(state, batch, *others, **named)
        reach("step")
        time.sleep(pause)
        return result
    return step

def append(self, line, original=files.AppendedText.append):
    if self.path.name == "metrics.jsonl" and place == "metrics" and visits == 1:
        original(self, "")  # opens the file
        os.write(self._file, line[: len(line) // 2].encode())
        reach("metrics")
    original(self, line)
    if self.path.name == "metrics.jsonl":
        reach("metrics")

def finalize(self, directory, original=checkpoint._HashingHandler.finalize):
    reach("saving")
    original(self, directory)
    reach("hashed")

def save(self, state, *arguments, original=checkpoint.Checkpointer.save, **options):
    record("saves", f"{int(state.step)}")
    original(self, state, *arguments, **options)
    if place == "committed":
        self._orbax.wait_until_finished()
        reach("committed")

def remove_tree(path, original=saved_steps.remove_tree):
    if Path(path).name.endswith("-deleted"):
        reach("prune")
    original(path)

saved_steps.remove_tree = remove_tree
fit.jit_step = jit_step
files.AppendedText.append = append
checkpoint._HashingHandler.finalize = finalize
checkpoint.Checkpointer.save = save
"""
COMMAND = """
from biomedlm_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def as_flags(settings) -> list[str]:
    return [f"--config.{name}={value}" for name, value in settings.items()]


def pretrain_arguments(dataset: Path, run: Path | str, **settings) -> list[str]:
    flags = as_flags({"data.path": dataset, **PRETRAIN, **settings})
    return ["pretrain", f"--config={ROOT}/configs/pretrain.py:tiny", *flags, f"--workdir={run}"]


def start(
    arguments, records: Path, *, devices=1, place="", patch="", pause=0.0, cwd=ROOT
) -> Process:
    """Start a command in a process; `patch` runs before it, after the PRELUDE.

    Every step takes `pause` seconds more: a run that waits for a test costs little.
    """
    records.mkdir(exist_ok=True, parents=True)
    mark = records / "mark"
    mark.unlink(missing_ok=True)
    xla = f"--xla_force_host_platform_device_count={devices} {os.environ['FAST_COMPILATION']}"
    environment = {"XLA_FLAGS": xla, "PLACE": place, "MARK": mark, "RECORDS": records}
    environment["PAUSE"] = pause
    program = f"{PRELUDE}\n{patch}\n{COMMAND}"
    environment = {name: str(value) for name, value in environment.items()}
    return Process(["-c", program, *arguments], env=environment, cwd=cwd)


def start_group(
    arguments, records: Path, *, count=2, devices=8, each=None, **options
) -> list[Process]:
    """Start the processes of one run, which share `devices`.

    `each` are further options of `start` by the number of the process.
    """
    flags = [f"--process_count={count}", f"--coordinator=localhost:{free_port()}"]
    flags += ["--silence_timeout=30"]
    return [
        start(
            [*arguments, *flags, f"--process_id={i}", *(each or {}).get(i, {}).get("flags", [])],
            records,
            devices=devices // count,
            **{**options, **{k: v for k, v in (each or {}).get(i, {}).items() if k != "flags"}},
        )
        for i in range(count)
    ]


def wait_until(condition, *processes: Process, what: str):
    """Wait for a condition while the processes run; return its value."""
    limit = time.monotonic() + PATIENCE
    while not (value := condition()):
        for process in processes:
            if process.poll() is not None and not condition():
                pytest.fail(f"{what}: ended with {process.poll()}: {process.communicate()[1]}")
        if time.monotonic() > limit:
            for process in processes:
                process.kill()
            texts = "\n".join(process.communicate()[1] for process in processes)
            pytest.fail(f"{what}: not in {PATIENCE:g} s: {texts}")
        time.sleep(0.01)
    return value


def ended(*processes: Process) -> list[str]:
    """Wait for the end of processes; return what they wrote to stderr."""
    limit = time.monotonic() + PATIENCE
    try:
        return [p.communicate(timeout=max(1, limit - time.monotonic()))[1] for p in processes]
    finally:
        for process in processes:
            process.kill()


def lines_of(run: Path) -> list[dict]:
    """The lines of a run's metrics, without what depends on its speed."""
    return [{k: v for k, v in r.items() if k not in SPEED} for r in read_metrics(run)]


def last_logged(run: Path) -> int:
    return max((line["step"] for line in read_metrics(run)), default=0)


def started_at(run: Path) -> int:
    """The step after which the run was resumed the last time."""
    return [event["step"] for event in read_events(run) if event["event"] == "start"][-1]


def saved_state(run: Path, step: int | None = None) -> dict:
    """All arrays of a checkpoint, and its data position, by name."""
    step = max(steps(run)) if step is None else step
    folder = run / "checkpoints" / str(step)
    arrays = {**read_item(folder / "model"), **read_item(folder / "optimizer")}
    return {**arrays, "data": json.loads((folder / "data" / "metadata").read_text())}


def saved_model(run: Path) -> dict:
    """All arrays of the newest checkpoint of a model alone."""
    return read_item(run / "checkpoints" / str(max(steps(run))) / "model")


def read_item(folder: Path) -> dict:
    """The arrays of an item of a checkpoint, whatever mesh wrote it."""
    tree = ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder)).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    read = ocp.PyTreeCheckpointer().restore(folder, restore_args=as_numpy)
    leaves = jax.tree_util.tree_leaves_with_path(read)
    return {f"{folder.name}{jax.tree_util.keystr(path)}": leaf for path, leaf in leaves}


def assert_same_state(got: dict, expected: dict) -> None:
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert got[name].dtype == value.dtype
            np.testing.assert_array_equal(got[name], value, err_msg=name)
        else:
            assert got[name] == value


def order_of(records: Path) -> dict[int, set[str]]:
    """The digests of the batches of every step, in all starts of a run."""
    order: dict[int, set[str]] = {}
    for line in (records / "order.0.txt").read_text().splitlines():
        step, digest = line.split()
        order.setdefault(int(step), set()).add(digest)
    return order


def digest_of(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()


def write_lines(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_rows(path: Path, *, seed: int = 0) -> Path:
    """Token rows of length 32, vocabulary 300."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, 40)) + f" {rng.random()}." for _ in range(200)]
    tokenizer = train_tokenizer(iter(texts), vocab_size=300)
    documents = (Document(text, f"{i}") for i, text in enumerate(texts))
    build_tokens(documents, tokenizer, path, length=32, validation_fraction=0.1)
    return path


@pytest.fixture(scope="session")
def faults() -> SimpleNamespace:
    """The functions of this file."""
    return SimpleNamespace(**globals())


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    return make_rows(tmp_path_factory.mktemp("rows") / "tokens")


@pytest.fixture(scope="session")
def reference(dataset, tmp_path_factory) -> tuple[Path, Path]:
    """An undisturbed run of PRETRAIN on one device, and what its PRELUDE recorded."""
    run = tmp_path_factory.mktemp("reference") / "run"
    process = start(pretrain_arguments(dataset, run), run.parent / "records")
    (text,) = ended(process)
    assert process.returncode == 0, text
    return run, run.parent / "records"


@pytest.fixture(scope="session")
def undisturbed(dataset, tmp_path_factory) -> Path:
    """A run of one process with eight devices that kept every checkpoint; copy it."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    settings = {**ELASTIC, "mesh.data": 2, "mesh.fsdp": 4}
    arguments = pretrain_arguments(dataset, run, **settings)
    process = start(arguments, run.parent / "records", devices=8)
    (text,) = ended(process)
    assert process.returncode == 0, text
    return run


@pytest.fixture(scope="session")
def finetuning(tmp_path_factory) -> dict[str, list[str]]:
    """The arguments of both kinds of fine-tuning, without --workdir."""
    path = tmp_path_factory.mktemp("finetuning")
    tokenizer = train_tokenizer(
        [" ".join([*WORDS, "what treats the", "it is"])] * 20, vocab_size=300
    )
    sizes = {"vocab_size": 300, "context_length": 48, "layers": 1, "width": 32, "heads": 2}
    save_finetuned(path / "base", make_model(GPT2Config(**sizes), key=jax.random.key(0)), tokenizer)
    questions = [
        {
            "id": f"q{i}",
            "question": f"what treats the {WORDS[i % 9]}",
            "options": [WORDS[i % 4], WORDS[4 + i % 5]],
            "label": i % 2,
        }
        for i in range(18)
    ]
    write_lines(path / "questions" / "train.jsonl", questions)
    write_lines(path / "questions" / "dev.jsonl", questions[:5])
    texts = [{"source": f"what is {WORDS[i % 9]} {i}", "target": f"it is {i}"} for i in range(40)]
    write_lines(path / "texts.jsonl", texts)
    common = {**TINY, "optimizer.warmup_ratio": 0.1, "optimizer.learning_rate": 3e-3}
    del common["optimizer.schedule"], common["optimizer.final_lr_fraction"]
    settings = {
        "medqa": {
            "task.name": f"jsonl:{path / 'questions'}",
            "task.format": "questions",
            "task.max_length": 24,
            "training.batch_size": 6,
        },
        "meqsum": {
            "data.train": path / "texts.jsonl",
            "data.source_tokens": 18,
            "data.target_tokens": 12,
            "data.row_tokens": 48,
            "training.batch_size": 6,
            "evaluation.examples": 1,
            "evaluation.final_examples": 1,
            "generation.beams": 2,
            "generation.max_new_tokens": 6,
        },
    }
    return {
        variant: [
            "finetune",
            f"--config={ROOT}/configs/finetune.py:{variant}",
            *as_flags({**common, **values}),
            f"--model={path / 'base'}",
        ]
        for variant, values in settings.items()
    }
