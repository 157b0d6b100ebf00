"""Does pre-training help? Fine-tune the model and its random initialisation with the same settings.

Both are trained on the same questions in the same order. Both are tested on questions about
families that no training question mentions.
"""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from biomedlm_jax.finetuning.finetune import finetune
from biomedlm_jax.interop.huggingface import export_hf, load
from biomedlm_jax.model.families import make_model
from biomedlm_jax.qa.evaluation import evaluate
from biomedlm_jax.qa.presentation import p_text


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


def as_text(summaries: list[dict]) -> str:
    """Return both accuracies with their intervals over families, chance, and the paired test."""
    pretrained, random = summaries
    paired, count, groups = (pretrained[key] for key in ("baseline", "n", "groups"))
    return f"""\
   fine-tuned from        accuracy in % [95 % interval]
   the pre-trained model  {_interval(pretrained["accuracy"], ".1f")}
   random parameters      {_interval(random["accuracy"], ".1f")}
   difference             {_interval(paired["difference"], "+.1f")}, {p_text(paired["p_value"])}
   chance                 {100 * pretrained["chance"]:.1f}
   {count} questions about {groups} families; intervals and test resample families"""


def _interval(score: dict, form: str) -> str:
    value, low, high = (format(100 * score[end], form) for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
