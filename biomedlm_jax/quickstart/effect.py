"""Does pre-training help? Fine-tune the pre-trained model and a randomly initialised one alike.

Both learn the same questions in the same order, and both answer questions about families of facts
that no training question mentions.
"""

from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.table import Table

from biomedlm_jax.finetuning.finetune import finetune
from biomedlm_jax.interop.huggingface import export_hf, load
from biomedlm_jax.model.families import make_model
from biomedlm_jax.qa.evaluation import evaluate
from biomedlm_jax.qa.report import p_text


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


def as_table(summaries: list[dict]) -> Table:
    """Return both accuracies with intervals over families, chance, and the paired test."""
    baseline = summaries[0]["baseline"]
    value, low, high = (f"{100 * baseline['difference'][k]:+.1f}" for k in ("value", "low", "high"))
    table = Table(
        caption=f"Difference {value} points [{low}, {high}]; {baseline['test']}: "
        f"{p_text(baseline['p_value'])}. Intervals resample families."
    )
    for column in ("fine-tuned from", "questions", "families", "accuracy [95 %]"):
        table.add_column(column, justify="right" if table.columns else "left")
    for summary, start in zip(
        summaries, ("the pre-trained model", "random parameters"), strict=True
    ):
        value, low, high = (100 * summary["accuracy"][end] for end in ("value", "low", "high"))
        sizes = f"{summary['n']:,}", f"{summary['groups']:,}"
        table.add_row(start, *sizes, f"{value:.1f} % [{low:.1f}, {high:.1f}]")
    table.add_row("chance", "", "", f"{100 * summaries[0]['chance']:.1f} %")
    return table
