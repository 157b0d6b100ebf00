"""PubMedQA's splits: one file of 1,000 articles -> train, dev and test, drawn as by its authors."""

import math
import random
from pathlib import Path

from biomedlm_jax.qa.readers import Row, read_object

FOLDS = 10  # of the 500 questions for training
ANSWERS = ("yes", "no", "maybe")  # in the authors' order, which decides the draws


def pubmedqa_folds(rows: list[Row], file: Path, fold: int) -> dict[str, list[Row]]:
    """Divide PubMedQA's labelled set as its authors did: split -> its rows, in the file's order.

    Their script draws two halves, the second being the test set, and from the first ten folds,
    each time answer by answer, from one generator with seed 0. Doing the same draws gives exactly
    the official 500 test ids, so these are their folds too. The order of the file matters;
    if the official ids, `test_ground_truth.json`, lie beside it, they are compared.

    Raises:
      ValueError: a row without one of the three answers, or the official ids are others.
    """
    answers = {_name(row): row.fields.get("final_decision") for row in rows}
    if wrong := next((n for n, a in answers.items() if a not in ANSWERS), None):
        raise ValueError(
            f"{file}: id {wrong}: got the final_decision {answers[wrong]!r}, which the folds are "
            "made by; it is yes, no or maybe"
        )
    dice = random.Random(0)
    training, test = _strata(answers, 2, dice)
    official = file.parent / "test_ground_truth.json"
    if official.is_file():
        ids = read_object(official.read_bytes(), official)
        if ids != {name: answers[name] for name in test}:
            raise ValueError(
                f"{file} does not divide into the test ids of {official}; the folds need the file "
                "as published, all of it and in its order"
            )
    folds = _strata({name: answers[name] for name in training}, FOLDS, dice)
    dev = set(folds[fold])
    ids = {"train": set(training) - dev, "dev": dev, "test": set(test)}
    return {split: [row for row in rows if _name(row) in wanted] for split, wanted in ids.items()}


def _name(row: Row) -> str:
    return str(row.fields.get("id", row.name))


def _strata(answers: dict[str, str], count: int, dice: random.Random) -> list[list[str]]:
    """Draw `count` parts with the answers in equal shares."""
    parts: list[list[str]] = [[] for _ in range(count)]
    for answer in ANSWERS:
        names = [name for name, given in answers.items() if given == answer]
        dice.shuffle(names)
        size = math.ceil(len(names) / count)
        for n, part in enumerate(parts):
            part += names[n * size : (n + 1) * size]
    if len(parts[-1]) != len(parts[0]):  # rounding up left the last one short: all others give one
        for part in parts[:-1]:
            parts[-1].append(dice.choice(part))
            part.remove(parts[-1][-1])
    return parts
