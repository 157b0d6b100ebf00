import signal
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from biomedlm_jax.corpus.batches import validation_batches
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.training import fit, loop
from biomedlm_jax.training import pretrain as recipe
from biomedlm_jax.training.metrics import read_metrics
from biomedlm_jax.training.pretrain import pretrain
from biomedlm_jax.training.saved_steps import latest_step, steps


def without_speed(run: Path) -> list[dict]:
    timed = ("step_seconds", "tokens_per_second", "mfu")
    return [{k: v for k, v in r.items() if k not in timed} for r in read_metrics(run)]


def parameters(run: Path) -> list[np.ndarray]:
    return jax.tree.leaves(jax.tree.map(np.asarray, load(run)[0]))


def test_an_interrupted_run_continues_bit_for_bit(config, finished, tmp_path, monkeypatch):
    original, calls = fit.jit_step, []
    signals = {7: signal.SIGINT, 10: signal.SIGTERM}

    def interrupting(*arguments, **options):
        step = original(*arguments, **options)

        def stepping(*values, **options):
            calls.append(None)
            if len(calls) in signals:
                signal.raise_signal(signals[len(calls)])
            return step(*values, **options)

        return stepping

    monkeypatch.setattr(fit, "jit_step", interrupting)
    for step in signals:
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, tmp_path / "run")
        assert latest_step(tmp_path / "run") == step
    assert pretrain(config, tmp_path / "run")["step"] == 12
    for a, b in zip(parameters(finished), parameters(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert without_speed(tmp_path / "run") == without_speed(finished)


@pytest.mark.parametrize("where", [pytest.param("step", marks=pytest.mark.slow), "evaluation"])
@pytest.mark.parametrize(
    "at", [pytest.param(6, marks=pytest.mark.slow), 12], ids=["in between", "at the end"]
)
def test_a_stop_saves_before_it_evaluates(config, finished, tmp_path, monkeypatch, at, where):
    """A signal comes in a step that is evaluated, or in its evaluation."""
    run, original, signals, evaluations = tmp_path / "run", fit.jit_step, [where], []

    def interrupt(*place):
        if signals == [*place]:
            signal.raise_signal(signals.pop() and signal.SIGTERM)

    def interrupting(*arguments, **options):
        step = original(*arguments, **options)

        def stepping(state, *values, **options):
            if int(state.step) + 1 == at:
                interrupt("step")
            return step(state, *values, **options)

        return stepping

    def batches(*arguments, **options):
        evaluations.append(6 * (len(evaluations) + 1))  # its step
        for number, batch in enumerate(validation_batches(*arguments, **options)):
            if number == 1 and evaluations[-1] == at:
                interrupt("evaluation")
            yield batch

    monkeypatch.setattr(fit, "jit_step", interrupting)
    monkeypatch.setattr(recipe, "validation_batches", batches)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, run)
    assert not signals
    assert latest_step(run) == at
    assert [line["step"] for line in read_metrics(run) if "train_loss" in line] == [6][: at // 12]
    done = pretrain(config, run)
    assert done["step"] == 12
    assert "validation_loss" in done
    for a, b in zip(parameters(finished), parameters(run), strict=True):
        np.testing.assert_array_equal(a, b)
    assert without_speed(run) == without_speed(finished)
    pretrain(config, run)  # the evaluation is not repeated
    assert without_speed(run) == without_speed(finished)


def test_a_run_that_diverges_ends_and_saves_finite_parameters(config, tmp_path):
    config.optimizer.learning_rate = 1e30
    config.optimizer.warmup_steps = 0
    config.training.evaluate_every = 0
    with pytest.raises(InputError, match=r"10 updates in a row were skipped, .* step 8; "):
        pretrain(config, tmp_path / "run")
    for step in steps(tmp_path / "run"):
        model, _ = load(tmp_path / "run", step=step)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model))


def test_a_run_whose_evaluation_is_not_finite_has_not_finished(
    config, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(recipe, "validation_metrics", lambda *_, **__: {"validation_loss": np.nan})
    with pytest.raises(ValueError, match=r"after step 6 has {'validation_loss': nan}: .* diverged"):
        pretrain(config, tmp_path / "run")
    assert "finished" not in capsys.readouterr().err
    assert steps(tmp_path / "run") == [4, 6]  # saved before it was evaluated


def test_a_step_that_runs_ahead_changes_nothing(config, finished, tmp_path, monkeypatch):
    """As on a GPU or TPU: the figures of a step are read while the next one runs."""
    monkeypatch.setattr(loop, "meshes", SimpleNamespace(platform=lambda: "gpu"))
    original, read = loop.SkippedUpdates.check, []

    def check(self, step, *arguments):
        read.append(step)
        original(self, step, *arguments)

    monkeypatch.setattr(loop.SkippedUpdates, "check", check)
    pretrain(config, tmp_path / "run")
    assert read == [*range(1, 13)]
    for a, b in zip(parameters(finished), parameters(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert without_speed(tmp_path / "run") == without_speed(finished)
