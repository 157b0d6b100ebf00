import json
import shutil
import statistics
from pathlib import Path

import pytest

from biomedlm_jax.finetuning import finetune as module
from biomedlm_jax.finetuning.finetune import finetune, finetune_all
from biomedlm_jax.training.metrics import read_metrics


def test_the_config_names_the_recipe(question_config, world, tmp_path):
    config = question_config()
    config.recipe = "poem"
    with pytest.raises(ValueError, match="recipe='poem'; expected one of questions, text, chat"):
        finetune(config, world / "base", tmp_path / "run")
    with config.unlocked():
        del config["recipe"]
    with pytest.raises(ValueError, match="recipe=None"):
        finetune(config, world / "base", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("figure", ["dev_accuracy", "dev_loss"])
def test_every_rate_and_seed_runs_once_and_rates_have_means(
    figure, question_config, tmp_path, monkeypatch
):
    config = question_config(sweep__learning_rates=(1e-5, 3e-5), sweep__seeds=(1, 2, 3))
    values = {(1e-5, 1): 40.0, (1e-5, 2): 50.0, (1e-5, 3): 45.0}
    values |= {(3e-5, 1): 60.0, (3e-5, 2): 30.0, (3e-5, 3): 41.0}
    calls = []

    def fake(config, model, workdir):
        rate, seed = config.optimizer.learning_rate, config.training.seed
        calls.append((rate, seed, Path(workdir).name))
        assert config.sweep.learning_rates == config.sweep.seeds == ()
        workdir.mkdir(parents=True)
        return {"step": 9, figure: values[rate, seed]}

    monkeypatch.setattr(module, "finetune", fake)
    results = finetune_all(config, "base", tmp_path / "sweep")
    assert {(rate, seed) for rate, seed, _ in calls} == set(values)
    assert len({name for *_, name in calls}) == 6
    assert config.sweep.seeds == (1, 2, 3)  # the caller's config is unchanged
    written = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert written["runs"] == results
    for summary in written["learning_rates"]:
        of_rate = [v for (rate, _), v in values.items() if rate == summary["learning_rate"]]
        assert (summary["seeds"], summary["figure"]) == (3, figure)
        assert summary["mean"] == pytest.approx(statistics.mean(of_rate))
        assert summary["deviation"] == pytest.approx(statistics.stdev(of_rate))
    assert [m["learning_rate"] for m in written["learning_rates"]] == [1e-5, 3e-5]


@pytest.mark.slow
def test_a_stopped_sweep_resumes(world, question_config, short_question_run, interrupt, tmp_path):
    config = question_config(sweep__seeds=(1, 2), training__epochs=2)
    first = tmp_path / "lr0.003-seed1"  # the sweep's first run, finished
    shutil.copytree(short_question_run[0], first)
    interrupt(1)  # in the second run's first step
    with pytest.raises(KeyboardInterrupt):
        finetune_all(config, world / "base", tmp_path)
    assert not (tmp_path / "sweep.json").exists()
    before = (first / "metrics.jsonl").read_bytes()
    results = finetune_all(config, world / "base", tmp_path)
    assert (first / "metrics.jsonl").read_bytes() == before
    assert [result["seed"] for result in results] == [1, 2]
    (mean,) = json.loads((tmp_path / "sweep.json").read_text())["learning_rates"]
    assert mean["mean"] == pytest.approx(statistics.mean(r["dev_accuracy"] for r in results))
    # Another seed is another head and another order.
    losses = [read_metrics(Path(result["workdir"]))[0]["loss"] for result in results]
    assert losses[0] != losses[1]


def test_without_a_sweep_the_directory_is_the_run(
    world, question_config, short_question_run, capsys
):
    (run, result), config = short_question_run, question_config(training__epochs=2)
    assert finetune_all(config, world / "base", run) == [{"workdir": str(run), **result}]
