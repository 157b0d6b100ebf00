"""A sweep: the same fine-tuning for every learning rate and seed of the config."""

import copy
import itertools
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from biomedlm_jax.qa.finetuning import finetune
from biomedlm_jax.qa.setup import check_config
from biomedlm_jax.training.run import write_json


def finetune_all(config: ConfigDict, model: str | Path, workdir: str | Path) -> list[dict]:
    """Fine-tune once, or once for every pair of `config.sweep`; what is finished is not repeated.

    An empty `learning_rates` or `seeds` stands for the config's own. The runs lie in
    `workdir/lr<rate>-seed<seed>`, and `workdir/sweep.json` has every result and each rate's mean
    over seeds. Returns the results, each with its `workdir`.
    """
    check_config(config)
    rates, seeds = config.sweep.learning_rates, config.sweep.seeds
    workdir = Path(workdir)
    if not rates and not seeds:
        return [{"workdir": str(workdir), **finetune(config, model, workdir)}]
    results = []
    pairs = itertools.product(
        rates or (config.optimizer.learning_rate,), seeds or (config.training.seed,)
    )
    for rate, seed in pairs:
        one = copy.deepcopy(config)
        one.optimizer.learning_rate, one.training.seed = float(rate), int(seed)
        one.sweep.learning_rates = one.sweep.seeds = ()
        folder = workdir / f"lr{rate:g}-seed{seed}"
        found = finetune(one, model, folder)
        results.append(
            {"workdir": str(folder), "learning_rate": float(rate), "seed": int(seed), **found}
        )
    write_json(workdir / "sweep.json", {"runs": results, "learning_rates": _means(results)})
    return results


def _means(results: list[dict]) -> list[dict]:
    """Mean and standard deviation (n - 1) of the dev accuracy of each learning rate."""
    means = []
    for rate in sorted({result["learning_rate"] for result in results}):
        found = [r["dev_accuracy"] for r in results if r["learning_rate"] == rate]
        deviation = float(np.std(found, ddof=1)) if len(found) > 1 else None
        means.append(
            {
                "learning_rate": rate,
                "seeds": len(found),
                "mean": float(np.mean(found)),
                "deviation": deviation,
            }
        )
    return means
