"""Does pre-training help? Fine-tune the pre-trained model and a randomly initialised one alike.

Both learn the same questions in the same order, and both answer questions about families of facts
that no training question mentions.
"""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from biomedlm_jax.finetuning.finetune import finetune
from biomedlm_jax.interop.huggingface import export_hf, load
from biomedlm_jax.model.families import make_model
from biomedlm_jax.qa.evaluation import evaluate
from biomedlm_jax.qa.report import p_text, table


def measure_effect(config: ConfigDict, run: str | Path, out: str | Path) -> list[dict]:
    """Fine-tune the model of `run` and its random initialisation; return both test summaries.

    Writes below `out` random/, finetuned-random/, report-random/, finetuned/ and report/. The
    first summary is that of the pre-trained model; its `baseline` is the paired test.
    """
    out = Path(out)
    model, tokenizer = load(run)
    random = make_model(model.config, key=jax.random.key(config.training.seed))
    export_hf(random, tokenizer, out / "random")
    summaries, baseline = [], None
    for start, name in ((out / "random", "-random"), (run, "")):
        finetune(config, start, out / f"finetuned{name}")
        report = out / f"report{name}"
        summaries += evaluate(
            [out / f"finetuned{name}"], report, task=config.task.name, baseline=baseline
        )
        baseline = report
    return summaries[::-1]


def as_markdown(summaries: list[dict]) -> str:
    """Return both accuracies with their intervals over families as a table, and the paired test."""
    baseline, chance = summaries[0]["baseline"], 100 * summaries[0]["chance"]
    value, low, high = (100 * baseline["difference"][end] for end in ("value", "low", "high"))
    return (
        f"{table(summaries)}\nChance is {chance:.1f} %. Difference: {value:+.1f} points "
        f"[{low:+.1f}, {high:+.1f}]; {baseline['test']}: {p_text(baseline['p_value'])}."
    )
