"""finetune(): teach a model questions, texts or chats; finetune_all(): a sweep."""

import copy
import itertools
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from biomedlm_jax.buckets import as_path
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_json
from biomedlm_jax.finetuning.config import (
    ChatSettings,
    QuestionSettings,
    SweepSettings,
    TextSettings,
)
from biomedlm_jax.finetuning.question_recipe import finetune_questions
from biomedlm_jax.finetuning.text_recipe import finetune_text
from biomedlm_jax.qa.statistics import mean_and_deviation
from biomedlm_jax.settings import read_settings

RECIPES: dict[str, tuple[Any, Any]] = {
    "questions": (QuestionSettings, finetune_questions),
    "text": (TextSettings, finetune_text),
    "chat": (ChatSettings, finetune_text),
}


def finetune(
    config: ConfigDict,
    model: str | Path,
    workdir: str | Path,
    *,
    fallback: bool = False,
    replay: str | Path | None = None,
) -> dict:
    """Fine-tune `model`, a run or a Hugging Face directory; resumes if `workdir` has the run.

    Returns the figures of `config.recipe`: see `finetune_questions` and `finetune_text`.
    `workdir/model` is the model to use. Ctrl-C or SIGTERM saves and raises KeyboardInterrupt.
    Raises InputError for bad input, before anything is compiled or written. `fallback`, `replay`
    and other errors are those of `fit`.
    """
    recipe = config.get("recipe")
    if recipe not in RECIPES:
        raise InputError(f"got config.recipe={recipe!r}; expected one of {', '.join(RECIPES)}")
    kind, run = RECIPES[recipe]
    settings = read_settings(kind, config)
    mesh = settings.mesh.make()
    with jax.set_mesh(mesh):
        file = None if replay is None else as_path(replay)
        given = {"fallback": fallback, "replay": file}
        return run(settings, mesh, model, as_path(workdir).absolute(), **given)


def finetune_all(
    config: ConfigDict, model: str | Path, workdir: str | Path, **options: Any
) -> list[dict]:
    """Fine-tune once, or for every pair of `config.sweep`; finished runs are not repeated.

    Runs are in `workdir/lr<rate>-seed<seed>`; `workdir/sweep.json` has all results and each rate's
    mean over seeds. `options` are those of `finetune`. Returns the results, each with its
    `workdir`.
    """
    workdir = as_path(workdir)
    sweep = read_settings(SweepSettings, config.get("sweep", {}), where="config.sweep")
    if not sweep.learning_rates and not sweep.seeds:
        return [{"workdir": str(workdir), **finetune(config, model, workdir, **options)}]
    results = []
    rates = sweep.learning_rates or (config.optimizer.learning_rate,)
    for rate, seed in itertools.product(rates, sweep.seeds or (config.training.seed,)):
        one = copy.deepcopy(config)
        one.optimizer.learning_rate, one.training.seed = float(rate), seed
        one.sweep.learning_rates = one.sweep.seeds = ()
        run = workdir / f"lr{rate:g}-seed{seed}"
        result = finetune(one, model, run, **options)
        results.append({"workdir": str(run), "learning_rate": float(rate), "seed": seed, **result})
    if jax.process_index() == 0:
        write_json(workdir / "sweep.json", {"runs": results, "learning_rates": _means(results)})
    return results


def _means(results: list[dict]) -> list[dict]:
    """Return the mean and standard deviation (n - 1) of the dev figure of each learning rate."""
    figure = "dev_accuracy" if "dev_accuracy" in results[0] else "dev_loss"
    values: dict[float, list[float]] = {}
    for result in results:
        values.setdefault(result["learning_rate"], []).append(result[figure])
    return [
        {"learning_rate": rate, "seeds": len(v), "figure": figure, **mean_and_deviation(v)}
        for rate, v in sorted(values.items())
    ]
