import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from cases import mostly_slow

from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.interop.initial import initial_weights
from biomedlm_jax.training import fit
from biomedlm_jax.training.metrics import read_metrics
from biomedlm_jax.training.pretrain import pretrain
from biomedlm_jax.training.saved_steps import latest_step, steps


def without_speed(run: Path) -> list[dict]:
    timed = ("step_seconds", "tokens_per_second", "mfu")
    return [{k: v for k, v in r.items() if k not in timed} for r in read_metrics(run)]


def parameters(run: Path) -> list[np.ndarray]:
    return jax.tree.leaves(jax.tree.map(np.asarray, load(run)[0]))


def test_a_run_directory_is_self_contained(finished):
    names = {"config.json", "run.json", "tokenizer.json", "metrics.jsonl", "checkpoints"}
    assert {*names, "loss.png"} <= {path.name for path in finished.iterdir()}
    assert steps(finished) == [6, 8, 12]  # every 4, before evaluations every 6; 3 are kept
    lines = read_metrics(finished)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 12
    assert losses[-1] < losses[0] - 0.1
    assert all(line["tokens_per_second"] > 0 for line in lines if line["step"] in (3, 11))
    evaluated = [line for line in lines if "bits_per_byte" in line]
    assert [line["step"] for line in evaluated] == [6, 12]
    np.testing.assert_allclose(evaluated[0]["train_loss"], np.mean(losses[:6]), rtol=1e-6)
    assert json.loads((finished / "config.json").read_text())["model"]["model_type"] == "gpt2"
    assert json.loads((finished / "run.json").read_text())["recipe"] == "pretrain"


def test_lines_that_no_checkpoint_kept_are_dropped(config, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        print('{"step": 13, "loss": 1.0}\n{"step": 14, "lo', end="", file=file)
    pretrain(config, run)  # nothing is left to do
    assert without_speed(run) == without_speed(finished)


@pytest.mark.slow
def test_a_run_resumes_on_another_mesh_with_the_same_validation_loss(config, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    for step in (8, 12):
        shutil.rmtree(run / "checkpoints" / str(step))
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
    pretrain(config, run)
    for name, tolerance in {"loss": 1e-4, "validation_loss": 1e-5}.items():
        one, two = (
            [line[name] for line in read_metrics(path) if name in line] for path in (finished, run)
        )
        np.testing.assert_allclose(one, two, atol=tolerance)


def test_an_unfinished_checkpoint_is_passed_over(config, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "checkpoints" / "99").mkdir()
    assert latest_step(run) == 12
    assert pretrain(config, run)["step"] == 12


def buffers(model) -> list[int]:
    shards = [shard for leaf in jax.tree.leaves(model) for shard in leaf.addressable_shards]
    return [shard.data.unsafe_buffer_pointer() for shard in shards]


@pytest.mark.parametrize("rank", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_takes_over_the_arrays_that_it_starts_from(
    config, finished, tmp_path, monkeypatch, rank
):
    init, original, before, after = initial_weights(finished), fit.jit_step, [], []

    def read(abstract):
        model = jax.tree.map(lambda leaf: leaf + 0, init.read(abstract))  # as XLA allocates them
        before.extend(buffers(model))
        return model

    def jit_step(*arguments, **options):
        step = original(*arguments, **options)

        def stepping(state, batch, *frozen, **options):
            after.extend(buffers(frozen if rank else state.model))
            return step(state, batch, *frozen, **options)

        return stepping

    monkeypatch.setattr(fit, "jit_step", jit_step)
    config.optimizer.warmup_steps, config.training.steps, config.lora.rank = 0, 1, rank
    pretrain(config, tmp_path / "run", init=dataclasses.replace(init, read=read))
    assert after == before


def test_checkpoints_that_are_gone_do_not_start_a_run_anew(config, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"has saved checkpoints, and .*checkpoints has none"):
        pretrain(config, run)
    with pytest.raises(InputError, match="has saved checkpoints"):
        pretrain(config, run, fallback=True)
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "left",
    mostly_slow(["run.json", "run.json tokenizer.json", ".run.json.7.new"], ["run.json"]),
)
def test_a_start_that_was_killed_is_repeated(config, finished, tmp_path, left):
    run = tmp_path / "run"
    run.mkdir()
    for name in left.split():
        shutil.copy(finished / name.removeprefix(".").removesuffix(".7.new"), run / name)
    config.training.steps = 12
    pretrain(config, run)
    assert steps(run)[-1] == 12
    names = {path.name for path in finished.iterdir() if path.is_file()}
    assert names - {path.name for path in run.iterdir()} <= {"events.out"}
