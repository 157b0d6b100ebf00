"""Updates that are not finite are skipped and recorded; spikes are treated as the settings say.

A loss is poisoned in the compiled step, at the steps whose dropout keys it recognises.
"""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import mostly_slow

from biomedlm_jax.cli import main
from biomedlm_jax.corpus.rows import Rows
from biomedlm_jax.finetuning import question_recipe, text_recipe
from biomedlm_jax.training import fit, pretrain, spikes
from biomedlm_jax.training.metrics import read_events, read_metrics
from biomedlm_jax.training.state import step_key

SEED = 3
SIX = {
    "training.steps": 6,
    "training.evaluate_every": 6,
    "training.seed": SEED,
    "checkpoint.every": 1,
    "checkpoint.keep": 99,
    "optimizer.schedule": "cosine",
    "optimizer.final_lr_fraction": 0.1,
    "optimizer.warmup_steps": 2,
}
KINDS = {
    "nan": lambda model, bad: jnp.log(jnp.where(bad, -1.0, 1.0)),
    # Each gradient is finite, and their norm is not: clipping would make them zeros.
    "norm": lambda model, bad: jnp.where(bad, 1e30, 0.0) * model.wpe[...].sum(),
    "spike": lambda model, bad: jnp.where(bad, 100.0, 0.0),
}


def poison_loss(patch, kind, steps, module=pretrain, name="next_token_loss", *, parts=1):
    """Poison a recipe's loss at some steps, and in the last of `parts` of their updates."""
    original = getattr(module, name)
    keys = [step_key(SEED, step - 1) for step in steps]
    if parts > 1:  # in one part only
        keys = [jax.random.fold_in(key, parts - 1) for key in keys]
    data = np.stack([jax.random.key_data(key) for key in keys])

    @functools.wraps(original)
    def poisoned(model, batch, *, dropout_key=None, **options):
        loss = original(model, batch, dropout_key=dropout_key, **options)
        if dropout_key is None:  # an evaluation
            return loss
        bad = (jax.random.key_data(dropout_key)[None] == data).all(axis=1).any()
        return loss + KINDS[kind](model, bad)

    patch.setattr(module, name, poisoned)


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """The plot of a finished run takes a third of its time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "plot_losses", lambda run: None)
        yield


@pytest.fixture
def poison(monkeypatch):
    return functools.partial(poison_loss, monkeypatch)


def train(faults, dataset, run, *flags, **settings) -> int:
    return main([*faults.pretrain_arguments(dataset, run, **{**SIX, **settings}), *flags])


def without(events, *names):
    return [{k: v for k, v in e.items() if k not in names} for e in events]


def skips_of(run) -> list[dict]:
    return without([e for e in read_events(run) if e["event"] == "skip"], "time")


def assert_unchanged(faults, run, step):
    """Model and optimizer of a step are those of the step before."""
    before, after = (faults.saved_state(run, number) for number in (step - 1, step))
    for state in (before, after):
        state.pop("data")
        (number,) = (name for name in state if name.endswith("['step']"))
        state.pop(number)
    assert len(after) > 10
    faults.assert_same_state(after, before)


@pytest.fixture(scope="module")
def skipped(faults, dataset, tmp_path_factory) -> Path:
    """A run of six steps whose third loss is NaN."""
    run = tmp_path_factory.mktemp("numerics") / "run"
    with pytest.MonkeyPatch.context() as patch:
        poison_loss(patch, "nan", [3])
        assert train(faults, dataset, run) == 0
    return run


def test_the_update_is_skipped_and_recorded(faults, skipped, dataset):
    assert_unchanged(faults, skipped, 3)
    with pytest.raises(AssertionError):
        assert_unchanged(faults, skipped, 4)
    record = json.loads((skipped / "skipped" / "3.json").read_text())
    assert [path.name for path in (skipped / "skipped").iterdir()] == ["3.json"]
    (event,) = skips_of(skipped)
    assert event == {**record, "event": "skip", "rows": []}
    assert (record["step"], record["reason"], record["loss"]) == (3, "not finite", "nan")
    position = json.loads((skipped / "checkpoints" / "3" / "data" / "metadata").read_text())
    assert position["skips"] == {"count": 1, "in_a_row": 1}
    rows = Rows(dataset, "train")
    batches = pretrain.Batches(dataset, split="train", batch_size=8, seed=position["data"]["seed"])
    batch = [next(batches) for _ in range(3)][-1]
    np.testing.assert_array_equal(np.stack([rows[i] for i in record["rows"]]), batch)
    batches.close()


def test_the_figures_leave_it_out(skipped):
    lines = read_metrics(skipped)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 6
    assert [bool(np.isnan(loss)) for loss in losses] == [False, False, True, False, False, False]
    (evaluated,) = (line for line in lines if "train_loss" in line)
    finite = [loss for loss in losses if np.isfinite(loss)]
    assert evaluated["train_loss"] == pytest.approx(np.mean(finite), rel=1e-6)
    assert np.isfinite(evaluated["validation_loss"])


def test_a_skipped_update_does_not_advance_the_schedule(faults, skipped):
    peak = 3e-3
    # Warmup of two steps from 0; cosine to a tenth over the other four.
    cosine = [0.1 + 0.9 * (1 + np.cos(np.pi * i / 4)) / 2 for i in range(4)]
    rates = [line["learning_rate"] for line in read_metrics(skipped) if "loss" in line]
    first, second = rates[:2]
    assert 0 <= first < second <= peak
    np.testing.assert_allclose(
        rates[2:], [peak * cosine[i] for i in (0, 0, 1, 2)], rtol=1e-5
    )  # the third is what the skipped update would have had
    counts = {
        name: value for name, value in faults.saved_state(skipped, 6).items() if "count" in name
    }
    assert counts
    assert {int(value) for value in counts.values()} == {5}


@pytest.mark.parametrize(
    "kept",
    [2, pytest.param(3, marks=pytest.mark.slow)],
    ids=["before the skip", "after the skip"],
)
def test_a_resumed_run_is_bit_identical(faults, skipped, dataset, tmp_path, poison, kept):
    run = shutil.copytree(skipped, tmp_path / "run")
    for step in range(kept + 1, 7):
        shutil.rmtree(run / "checkpoints" / str(step))
    poison("nan", [3])
    assert train(faults, dataset, run) == 0
    faults.assert_same_state(faults.saved_state(run), faults.saved_state(skipped))
    # NaN is not equal to itself.
    assert str(faults.lines_of(run)) == str(faults.lines_of(skipped))
    assert len(skips_of(run)) == (2 if kept == 2 else 1)  # events only grow


@pytest.mark.slow
def test_an_infinite_norm_in_one_part_of_a_batch(faults, dataset, tmp_path, poison):
    run = tmp_path / "run"
    poison("norm", [2], parts=2)
    accumulation = {"training.accumulation": 2, "training.batch_size": 16, "training.steps": 3}
    assert train(faults, dataset, run, **accumulation, **{"training.evaluate_every": 0}) == 0
    assert_unchanged(faults, run, 2)
    (event,) = skips_of(run)
    assert (event["step"], event["grad_norm"]) == (2, "inf")
    assert np.isfinite(float(event["loss"]))
    assert len(json.loads((run / "skipped" / "2.json").read_text())["rows"]) == 16
    state = faults.saved_state(run, 3)
    assert all(np.isfinite(x).all() for x in state.values() if isinstance(x, np.ndarray))


def test_many_in_a_row_end_the_run(faults, skipped, dataset, tmp_path, poison, capsys):
    run = shutil.copytree(skipped, tmp_path / "run")
    for step in range(4, 7):
        shutil.rmtree(run / "checkpoints" / str(step))
    poison("nan", range(3, 7))
    # One was skipped before the restart.
    assert train(faults, dataset, run, **{"faults.skipped_in_a_row": 3}) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(
        "biomedlm pretrain: error: 3 updates in a row were skipped, until step 5 with loss nan"
    )
    assert "; the last good checkpoint is step 4; " in last
    assert f"--replay={run / 'skipped' / '5.json'} looks for the cause" in last
    faults.assert_same_state(
        {k: v for k, v in faults.saved_state(run, 4).items() if k.startswith("['model']")},
        {k: v for k, v in faults.saved_state(skipped, 2).items() if k.startswith("['model']")},
    )


def test_a_replay_names_the_operation(faults, skipped, dataset, tmp_path, poison, capsys):
    poison("nan", [3])
    before = {f: f.read_bytes() for f in skipped.rglob("*") if f.is_file()}
    file = skipped / "skipped" / "3.json"
    assert train(faults, dataset, skipped, f"--replay={file}") == 0
    text = capsys.readouterr().err
    assert "step 3, rows [" in text
    assert "with the parameters of step 2\n" in text
    assert "nan generated by primitive: log. in <lambda>, " in text
    assert Path(__file__).name in text
    assert {f: f.read_bytes() for f in skipped.rglob("*") if f.is_file()} == before

    other = tmp_path / "other.json"
    other.write_text((skipped / "run.json").read_text())
    assert train(faults, dataset, skipped, f"--replay={other}") == 2
    assert "is no record of a skipped update; name a file in RUN/skipped" in capsys.readouterr().err
    other.write_text(file.read_text().replace('"step": 3', '"step": 2'))
    assert train(faults, dataset, skipped, f"--replay={other}") == 2
    assert "has other rows than step 2 of this data" in capsys.readouterr().err
    assert train(faults, dataset, skipped, f"--replay={tmp_path / 'none.json'}") == 2
    assert "no such file" in capsys.readouterr().err
    faults.make_rows(tmp_path / "rows", seed=1)
    assert train(faults, tmp_path / "rows", skipped, f"--replay={file}") == 2
    assert {f: f.read_bytes() for f in skipped.rglob("*") if f.is_file()} == before


@pytest.mark.slow
def test_a_replay_without_the_weights_that_it_would_begin_with(
    faults, dataset, skipped, tmp_path, poison, capsys
):
    run, init = tmp_path / "run", f"--init={skipped}"
    poison("nan", [2])
    settings = {"training.steps": 2, "training.evaluate_every": 0, "checkpoint.keep": 1}
    settings |= {"optimizer.warmup_steps": 0}
    assert train(faults, dataset, run, init, **settings) == 0
    assert faults.steps(run) == [2]
    replay = f"--replay={run / 'skipped' / '2.json'}"
    assert train(faults, dataset, run, replay, **settings) == 2
    text = capsys.readouterr().err
    assert f"{run} keeps no checkpoint before step 2; give --init={skipped} again" in text
    assert train(faults, dataset, run, replay, init, **settings) == 0
    text = capsys.readouterr().err
    assert "with the parameters of step 0\n" in text
    assert "nan generated by primitive: log." in text


@pytest.fixture(scope="module")
def calm(faults, dataset, tmp_path_factory) -> Path:
    """A run of five steps."""
    run = tmp_path_factory.mktemp("spikes") / "run"
    assert train(faults, dataset, run, **SPIKE, **{"training.steps": 5}) == 0
    return run


SPIKE = {
    "optimizer.schedule": "constant",
    "optimizer.final_lr_fraction": 1.0,
    "training.evaluate_every": 0,
}


@pytest.mark.parametrize("kind", mostly_slow(["off", "log", "skip", "stop"], ["skip"]))
def test_a_spike(faults, dataset, calm, tmp_path, poison, monkeypatch, capsys, kind):
    run = shutil.copytree(calm, tmp_path / "run")
    monkeypatch.setattr(spikes, "LEAST", 3)  # losses before there is a limit
    poison("spike", [6])
    settings = {**SPIKE, "training.steps": 6, "faults.spike": kind}
    code = train(faults, dataset, run, **settings)
    error = capsys.readouterr().err
    events = [e["event"] for e in read_events(run) if e["event"] in ("skip", "spike")]
    assert (code, events) == {
        "off": (0, []),
        "log": (0, ["spike"]),
        "skip": (0, ["skip"]),
        "stop": (2, ["spike"]),
    }[kind]
    assert ("above the limit of" in error) == (kind != "off")
    assert (run / "skipped" / "6.json").exists() == (kind == "skip")
    if kind == "stop":
        assert "; the last good checkpoint is step 5; " in error.splitlines()[-1]
        assert faults.steps(run)[-1] == 5
    elif kind == "skip":
        assert_unchanged(faults, run, 6)
    else:
        with pytest.raises(AssertionError):
            assert_unchanged(faults, run, 6)


@pytest.mark.parametrize(
    ("variant", "module", "loss"),
    [
        pytest.param("medqa", question_recipe, "question_loss", marks=pytest.mark.slow),
        pytest.param("meqsum", text_recipe, "target_loss", marks=pytest.mark.slow),
    ],
)
def test_both_kinds_of_fine_tuning(faults, finetuning, tmp_path, poison, variant, module, loss):
    run = tmp_path / "run"
    poison("nan", [2], module, loss)
    size = {"medqa": 6, "meqsum": 8}[variant]
    settings = {"training.batch_size": size, "training.epochs": 1, "training.seed": SEED}
    settings |= {"checkpoint.every": 1, "checkpoint.keep": 99}
    if variant == "meqsum":
        settings |= {"generation.max_new_tokens": 2}
    flags = faults.as_flags(settings)
    assert main([*finetuning[variant], *flags, f"--workdir={run}"]) == 0
    assert_unchanged(faults, run, 2)
    (event,) = skips_of(run)
    assert (event["step"], event["loss"]) == (2, "nan")
    lines = read_metrics(run)
    losses = [line["loss"] for line in lines if "loss" in line]
    finite = [loss for loss in losses if np.isfinite(loss)]
    assert len(finite) == len(losses) - 1
    (evaluated,) = (line for line in lines if "epoch" in line)
    assert evaluated["train_loss"] == pytest.approx(np.mean(finite), rel=1e-6)
    # An epoch is one permutation of all rows, or questions.
    rows = json.loads((run / "skipped" / "2.json").read_text())["rows"]
    count = {"medqa": 18}.get(variant) or _row_count(rows, size)
    order = np.random.default_rng([SEED, 0]).permutation(count)
    assert rows == order[size : 2 * size].tolist()


def _row_count(rows, size) -> int:
    """The number of packed rows whose permutation has these as its second batch."""
    counts = range(max(rows) + 1, 41)
    orders = {n: np.random.default_rng([SEED, 0]).permutation(n).tolist() for n in counts}
    return next(n for n, order in orders.items() if order[size : 2 * size] == rows)
