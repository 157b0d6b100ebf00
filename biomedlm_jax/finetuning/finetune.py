"""finetune(): teach a model to answer questions or to write texts; finetune_all(): a sweep."""

import copy
import itertools
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from biomedlm_jax.files import write_json
from biomedlm_jax.finetuning.config import SweepSettings
from biomedlm_jax.finetuning.question_recipe import finetune_questions
from biomedlm_jax.finetuning.text_recipe import finetune_text
from biomedlm_jax.settings import read_settings

RECIPES = {"questions": finetune_questions, "text": finetune_text}
FIGURES = ("dev_accuracy", "dev_loss")  # of which a sweep writes each rate's mean


def finetune(config: ConfigDict, model: str | Path, workdir: str | Path) -> dict:
    """Fine-tune `model`, a run or a Hugging Face directory; resumes if `workdir` has the run.

    `config.recipe` is "questions" (see `finetune_questions`) or "text" (see `finetune_text`), whose
    figures are returned; `workdir/model` is the model to use. Ctrl-C (or SIGTERM) ends the step,
    saves and raises KeyboardInterrupt. Raises ValueError or FileNotFoundError, before anything is
    compiled or written, if config, data, model and directory do not fit together.
    """
    recipe = config.get("recipe")
    if recipe not in RECIPES:
        raise ValueError(f"got config.recipe={recipe!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[recipe](config, model, workdir)


def finetune_all(config: ConfigDict, model: str | Path, workdir: str | Path) -> list[dict]:
    """Fine-tune once, or once for every pair of `config.sweep`; finished runs are not repeated.

    An empty `learning_rates` or `seeds` stands for the config's own. The runs are in
    `workdir/lr<rate>-seed<seed>`, and `workdir/sweep.json` has every result and each rate's mean
    over seeds. Returns the results, each with its `workdir`.
    """
    workdir = Path(workdir)
    sweep = read_settings(SweepSettings, config.get("sweep", {}), where="config.sweep")
    if not sweep.learning_rates and not sweep.seeds:
        return [{"workdir": str(workdir), **finetune(config, model, workdir)}]
    results = []
    for rate, seed in itertools.product(
        sweep.learning_rates or (config.optimizer.learning_rate,),
        sweep.seeds or (config.training.seed,),
    ):
        one = copy.deepcopy(config)
        one.optimizer.learning_rate, one.training.seed = float(rate), seed
        one.sweep.learning_rates = one.sweep.seeds = ()
        run = workdir / f"lr{rate:g}-seed{seed}"
        result = finetune(one, model, run)
        results.append({"workdir": str(run), "learning_rate": float(rate), "seed": seed, **result})
    if jax.process_index() == 0:
        write_json(workdir / "sweep.json", {"runs": results, "learning_rates": _means(results)})
    return results


def _means(results: list[dict]) -> list[dict]:
    """Return the mean and standard deviation (n - 1) of the dev figure of each learning rate."""
    figure = next(name for name in FIGURES if name in results[0])
    means = []
    for rate in sorted({result["learning_rate"] for result in results}):
        values = [result[figure] for result in results if result["learning_rate"] == rate]
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        summary = {"mean": float(np.mean(values)), "deviation": deviation}
        means.append({"learning_rate": rate, "seeds": len(values), "figure": figure, **summary})
    return means
