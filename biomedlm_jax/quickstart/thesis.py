"""The paper's thesis in one table: a model that has read a field's texts answers its questions.

Two models are fine-tuned on the same questions in the same order. One has read the abstracts, the
other is the same model before its first step, with random parameters. Both then answer questions
about families of facts that no question of the fine-tuning is about.
"""

from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.table import Table

from biomedlm_jax.interop.huggingface import export_hf, load
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.qa.finetuning import finetune
from biomedlm_jax.qa.report import summarise, write_items
from biomedlm_jax.qa.scoring import CLASSIFIER, score
from biomedlm_jax.qa.tasks import find_task, read_examples
from biomedlm_jax.qa.tuned import load_tuned

PRETRAINED, RANDOM = "pre-trained on the abstracts", "random parameters"


def compare(config: ConfigDict, run: str | Path, out: str | Path) -> list[dict]:
    """Fine-tune the model of `run` and one of random parameters, and test both.

    Writes below `out` the random model (random/), both fine-tuned (tuned/, tuned-random/) and their
    answers to the test split (tuned.jsonl, tuned-random.jsonl). Returns the summaries of the
    pre-trained one, whose `baseline` is the paired test, and of the random one.
    """
    out = Path(out)
    model, tokenizer = load(run)
    random = GPT(model.config, key=jax.random.key(config.training.seed))
    export_hf(random, tokenizer, out / "random")
    task = find_task(config.task.name)
    examples = read_examples(task, split=task.splits[-1])
    answers = {}
    for name, start in (("tuned-random", out / "random"), ("tuned", run)):
        finetune(config, start, out / name)
        tuned, words, head = load_tuned(out / name)
        answers[name] = score(
            tuned,
            words,
            examples,
            task,
            mode=CLASSIFIER,
            row_format=head.row_format,
            max_length=head.max_length,
        )[CLASSIFIER]
        write_items(out / f"{name}.jsonl", answers[name])
    first, second = answers["tuned"], answers["tuned-random"]
    return [
        summarise(first, name=task.name, what=PRETRAINED, baseline=second, baseline_name=RANDOM),
        summarise(second, name=task.name, what=RANDOM),
    ]


def as_table(summaries: list[dict]) -> Table:
    """Both accuracies with their intervals and the chance level, and the paired test below."""
    versus = summaries[0]["baseline"]
    p = f"p = {versus['p_value']:.3f}" if versus["p_value"] >= 0.001 else "p < 0.001"
    ends = versus["difference"]
    table = Table(
        caption=f"difference {100 * ends['value']:+.1f} points "
        f"[{100 * ends['low']:+.1f}, {100 * ends['high']:+.1f}]\n"
        f"McNemar's exact test, two-sided: {p}",
    )
    for column in ("fine-tuned from", "questions", "right [95 %]"):
        table.add_column(column, justify="right" if table.columns else "left")
    for one in summaries:
        share = one["accuracy"]
        value, low, high = (f"{100 * share[end]:.1f}" for end in ("value", "low", "high"))
        table.add_row(one["what"], f"{one['n']:,}", f"{value} % [{low}, {high}]")
    table.add_row("guessing", "", f"{100 * summaries[0]['chance']:.1f} %")
    return table
