"""Score answers to instructions: accuracy, F1 of labels and of entities.

    biomedlm score-answers --instructions=test.jsonl --answers=answers.jsonl --json=scores.json

--answers are JSON lines with the id of an instruction and its answer, as `generate` writes them.
Entities are compared by type and text where the answer lists them, and by type and tokens where it
tags every token (seqeval's default mode). An answer that is neither counts as wrong.
"""

import sys

from rich.console import Console
from rich.table import Table

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.errors import InputError, counted

FLAGS = Flags()
FLAGS.define("instructions", None, "File that build-instructions wrote.", required=True)
FLAGS.define("answers", None, "File of answers to all of its lines.", required=True)
FLAGS.define("field", "answers", "Field with the answer, a text or a list of one text.")
RESAMPLE = "What the intervals resample: single examples, or groups (documents)."
FLAGS.define("resample", "example", RESAMPLE, choices=("example", "group"))
FLAGS.define("seed", 0, "Seed of the bootstrap.", least=0)
FLAGS.define("items", None, "File to write each answer to, with what it missed, as JSON lines.")
FLAGS.add("json")
SHARES = ("exact_match", "accuracy", "sentence_accuracy", "precision", "recall")
SHARES += ("micro_f1", "macro_f1")


def run(options: Flags) -> None:
    """Score, and print a table for each dataset."""
    from pathlib import Path

    from biomedlm_jax.files import write_jsonl
    from biomedlm_jax.finetuning import answer_scores

    if options.items and Path(options.items).exists():
        raise InputError(f"{options.items} exists; name another file")
    references = answer_scores.read_references(options.instructions)
    answers = answer_scores.read_answers(options.answers, field=options.field)
    given = options.pick("resample", "seed")
    scores, items = answer_scores.score_answers(references, answers, **given)
    options.write_json(scores)
    if options.items:
        write_jsonl(options.items, items)  # in ASCII, so that any answer survives
    width = None if sys.stdout.isatty() else 10_000  # a pipe or a file has no width
    console = Console(markup=False, emoji=False, highlight=False, width=width)
    for name, one in scores.items():
        table = Table("%", "value", "95 % interval", title=name, title_justify="left")
        for share in SHARES:
            if share in one:
                value, low, high = (f"{100 * number:.2f}" for number in one[share].values())
                table.add_row(share, value, f"{low} to {high}")
        labels = Table("label", "gold", "predicted", "precision", "recall", "F1")
        for label, of in one["by_label"].items():
            shares = (f"{100 * of[key]:.2f}" for key in ("precision", "recall", "f1"))
            labels.add_row(label, f"{of['gold']:,}", f"{of['predicted']:,}", *shares)
        console.print(table, labels)
        left_out = one.get("left_out_of_f1")
        without = f"; precision, recall and F1 leave out {left_out!r}" if left_out else ""
        print(f"{counted(one['examples'], 'example')}{without}; {one['definition']}")
        print(f"answers that could not be read, which count as wrong: {one['unread']:,}")
