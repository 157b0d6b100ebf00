import json
import os
import runpy
import statistics
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.qa import finetuning, sweep
from biomedlm_jax.qa.setup import check_config
from biomedlm_jax.qa.sweep import finetune_all

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model of one layer, and twelve questions."""
    path = tmp_path_factory.mktemp("world")
    words = ["aspirin", "heparin", "insulin", "statin", "liver", "kidney", "heart", "what treats"]
    tokenizer = train_tokenizer([" ".join(words)] * 20, vocab_size=290)
    config = GPTConfig(vocab_size=290, context_length=32, layers=1, width=64, heads=4)
    export_hf(GPT(config, key=jax.random.key(0)), tokenizer, path / "base")
    dice = np.random.default_rng(0)
    text = ""
    for i in range(12):
        options = dice.permutation(words[:4]).tolist()
        row = {"question": f"what treats {words[4 + i % 3]}", "options": options, "label": i % 4}
        text += json.dumps({"id": f"q{i}", **row}) + "\n"
    for split in ("train", "dev"):
        (path / f"{split}.jsonl").write_text(text)
    (path / "secret").mkdir()
    (path / "secret" / "train.jsonl").write_text(text)
    unanswered = [
        {k: v for k, v in json.loads(r).items() if k != "label"} for r in text.split("\n")[:-1]
    ]
    (path / "secret" / "dev.jsonl").write_text("".join(json.dumps(r) + "\n" for r in unanswered))
    return path


@pytest.fixture
def config(world):
    config = runpy.run_path(str(ROOT / "configs" / "finetune_medqa.py"))["get_config"]()
    config.task.name, config.task.max_length = f"jsonl:{world}", 24
    config.training.epochs, config.training.batch_size = 1, 8
    config.optimizer.learning_rate = 1e-3
    config.logging.tensorboard = False
    return config


def test_every_rate_and_seed_runs_once_and_rates_have_means(config, tmp_path, monkeypatch):
    config.sweep.learning_rates, config.sweep.seeds = (1e-5, 3e-5), (1, 2, 3)
    found = {(1e-5, 1): 40.0, (1e-5, 2): 50.0, (1e-5, 3): 45.0}
    found |= {(3e-5, 1): 60.0, (3e-5, 2): 30.0, (3e-5, 3): 41.0}
    calls = []

    def fake(config, model, workdir):
        rate, seed = config.optimizer.learning_rate, config.training.seed
        calls.append((rate, seed, Path(workdir).name))
        assert not config.sweep.learning_rates
        assert not config.sweep.seeds
        workdir.mkdir(parents=True)
        return {"step": 9, "dev_accuracy": found[rate, seed], "epoch": 1}

    monkeypatch.setattr(sweep, "finetune", fake)
    results = finetune_all(config, "base", tmp_path / "sweep")
    assert {(rate, seed) for rate, seed, _ in calls} == set(found)
    assert len({name for *_, name in calls}) == 6
    assert config.sweep.seeds == (1, 2, 3)  # the caller's config is as it was
    written = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert written["runs"] == results
    for of_rate in written["learning_rates"]:
        values = [v for (rate, _), v in found.items() if rate == of_rate["learning_rate"]]
        assert of_rate["seeds"] == 3
        assert of_rate["mean"] == pytest.approx(statistics.mean(values))
        assert of_rate["deviation"] == pytest.approx(statistics.stdev(values))
    assert [m["learning_rate"] for m in written["learning_rates"]] == [1e-5, 3e-5]


def test_a_stopped_sweep_goes_on_where_it_stopped(config, world, tmp_path, monkeypatch):
    config.sweep.seeds = (1, 2)
    original, steps = finetuning.compile_step, []

    def counting(*arguments, **options):
        step = original(*arguments, **options)

        def stepping(*values):
            steps.append(None)
            if len(steps) == 3:  # the second run's first step
                raise KeyboardInterrupt
            return step(*values)

        return stepping

    monkeypatch.setattr(finetuning, "compile_step", counting)
    with pytest.raises(KeyboardInterrupt):
        finetune_all(config, world / "base", tmp_path)
    assert not (tmp_path / "sweep.json").exists()
    first = (tmp_path / "lr0.001-seed1" / "metrics.jsonl").read_bytes()
    results = finetune_all(config, world / "base", tmp_path)
    assert len(steps) == 3 + 2
    assert (tmp_path / "lr0.001-seed1" / "metrics.jsonl").read_bytes() == first
    (mean,) = json.loads((tmp_path / "sweep.json").read_text())["learning_rates"]
    assert mean["mean"] == pytest.approx(np.mean([r["dev_accuracy"] for r in results]))
    assert [r["seed"] for r in results] == [1, 2]
    # Seeds draw another head and another order.
    losses = [json.loads((Path(r["workdir"]) / "metrics.jsonl").open().readline()) for r in results]
    assert losses[0]["loss"] != losses[1]["loss"]


@pytest.mark.parametrize(
    ("group", "name", "value", "said"),
    [
        ("task", "row_format", "papper", "row_format='papper'; choose one of paper, released"),
        ("task", "max_length", 0, "config.task.max_length=0; it must be at least 1"),
        ("task", "name", "medqaa", "medqaa"),
        ("training", "batch_size", 13, "training.batch_size=13, and there are 12 questions"),
        ("training", "epochs", 0, "config.training.epochs=0; it must be at least 1"),
        ("task", "max_length", 64, "max_length=64, and the model has 32 positions"),
        ("lora", "rank", -1, "config.lora.rank=-1 must be at least 0"),
        ("lora", "alpha", 0.0, "config.lora.alpha=0.0 above 0"),
        ("mesh", "data", 3, "mesh data=3"),
        ("mesh", "tensor", 8, "does not divide the model's heads of 4"),
        ("optimizer", "warmup_ratio", 1.5, "warmup_ratio=1.5"),
        ("optimizer", "learning_rate", 0.0, "learning_rate=0.0"),
        ("optimizer", "beta2", 1.0, "beta2"),
        ("optimizer", "epsilon", 0.0, "epsilon"),
        ("optimizer", "clip_norm", -1.0, "clip_norm"),
        ("optimizer", "weight_decay", -0.1, "weight_decay"),
        ("model", "attention_dropout", 1.5, "attention_dropout=1.5"),
        ("task", "max_length", 2, "max_length"),
        ("sweep", "seeds", ("one",), "seeds"),
        ("sweep", "learning_rates", ("fast",), "learning_rates"),
        ("sweep", "seeds", (1, 1), "seeds"),
        ("training", "seed", -1, "seed"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    config, world, tmp_path, monkeypatch, group, name, value, said
):
    # What passes all checks would be compiled next.
    monkeypatch.setattr(finetuning, "Checkpointer", lambda *a, **o: pytest.fail("not refused"))
    config[group][name] = value
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        finetune_all(config, world / "base", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_questions_without_an_answer(config, world, tmp_path):
    config.task.name = f"jsonl:{world / 'secret'}"
    with pytest.raises(ValueError, match=r"12 of 12 questions of .* have no answer"):
        finetune_all(config, world / "base", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["bioasq", "medmcqa", "medqa", "pubmedqa"])
def test_the_published_configs(name):
    file = ROOT / "configs" / f"finetune_{name}.py"
    config = runpy.run_path(str(file))["get_config"]()
    check_config(config)
    optimizer = config.optimizer.to_dict()
    wanted = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0}
    assert {name: optimizer[name] for name in wanted} == wanted
    assert (optimizer["clip_norm"], optimizer["warmup_ratio"]) == (1.0, 0.5)
    assert config.task.name == name
    assert (config.task.row_format, config.task.max_length) == ("paper", 512)
    assert file.name in runpy.run_path(str(file))["__doc__"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["--config.training.epohcs=3"], "epohcs"),
        (["--config.training.epochs=many"], "many"),
        (
            ["--config.task.row_format=released", "--config.training.accumulation=2"],
            "set --config.training.accumulation=1",
        ),
        (["--config.sweep.seeds=(1,2)", "--config.sweep.learning_rates=(1e-5,)"], "nowhere"),
    ],
)
def test_at_the_command_line_it_is_one_line(overrides, said, tmp_path):
    # In a process of its own: ml_collections defines each override as a flag, once.
    command = [sys.executable, "-m", "biomedlm_jax.cli", "finetune"]
    command += ["--config=configs/finetune_medqa.py", f"--model={tmp_path}"]
    command += [f"--workdir={tmp_path / 'run'}", "--config.task.path=nowhere", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=dict(os.environ))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert said in done.stderr
    assert not (tmp_path / "run").exists()
