"""PubMedQA's sets: the labelled one has the splits of its authors, the artificial one is training.

labelled    PQA-L, 1,000 articles: 552 yes, 338 no, 110 maybe -> train, dev and test
artificial  PQA-A, answered yes or no by a heuristic: for training only
unlabelled  PQA-U: no answers
"""

import math
import random
from collections import Counter
from pathlib import Path

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json
from biomedlm_jax.qa.formats import Row

WHOLE_SETS = ("pubmedqa", "pubmedqa_rows")  # formats of files that have all splits
FOLDS = 10  # of the 500 questions for training
ANSWERS = ("yes", "no", "maybe")  # in the authors' order, which decides the samples
LABELLED = {"yes": 552, "no": 338, "maybe": 110}
ONE_SPLIT = "fix: --format=pubmedqa_set (config.task.format) reads a file as one split of your own"


def pubmedqa_split(rows: list[Row], file: Path, split: str, fold: int) -> list[Row]:
    """Return the rows of a split of the set that `rows` are all of, recognised by its answers.

    Raises InputError for a split that the set does not have, or for none of the sets.
    """
    given = [row.fields.get("final_decision") for row in rows]
    answers = Counter(None if answer is None else str(answer) for answer in given)
    if dict(answers) == LABELLED:
        return pubmedqa_folds(rows, file, fold)[split]
    if answers.keys() <= {"yes", "no"}:
        if split == "train":
            return rows
        got = "is PubMedQA's artificial set, which is for training"
    elif answers.keys() == {None}:
        got = "is PubMedQA's unlabelled set, which has no splits"
    else:
        counts = ", ".join(f"{n:,} {answer}" for answer, n in answers.most_common(5))
        expected = ", ".join(f"{n} {answer}" for answer, n in LABELLED.items())
        got = f"has the answers {counts}, not those of PubMedQA's labelled set ({expected})"
    raise InputError(f"{file} {got}; there is no {split} split in it; {ONE_SPLIT}")


def pubmedqa_folds(rows: list[Row], file: Path, fold: int) -> dict[str, list[Row]]:
    """Divide PubMedQA's labelled set as its authors did: split -> its rows, in the file's order.

    Their script samples two halves, the second being the test set, and ten folds of the first,
    answer by answer, from one generator with seed 0. Raises InputError for other answers, or for
    other test ids than those of a `test_ground_truth.json` beside the file.
    """
    answers = {str(row.id): str(row.fields.get("final_decision")) for row in rows}
    if wrong := next((n for n, a in answers.items() if a not in ANSWERS), None):
        expected = "expected a final_decision yes, no or maybe"
        raise InputError(f"{file}: id {wrong}: {expected}, got {answers[wrong]!r}")
    rng = random.Random(0)
    training, test = _strata(answers, 2, rng)
    official = file.parent / "test_ground_truth.json"
    if official.is_file() and read_json(official) != {name: answers[name] for name in test}:
        problem = f"{file} does not divide into the test ids of {official}"
        raise InputError(f"{problem}; fix: use the published file, whole and in its order")
    dev = set(_strata({name: answers[name] for name in training}, FOLDS, rng)[fold])
    ids = {"train": set(training) - dev, "dev": dev, "test": set(test)}
    return {split: [row for row in rows if str(row.id) in wanted] for split, wanted in ids.items()}


def _strata(answers: dict[str, str], count: int, rng: random.Random) -> list[list[str]]:
    """Sample `count` parts with the answers in equal shares."""
    parts: list[list[str]] = [[] for _ in range(count)]
    for answer in ANSWERS:
        names = [name for name, given in answers.items() if given == answer]
        rng.shuffle(names)
        size = math.ceil(len(names) / count)
        for n, part in enumerate(parts):
            part += names[n * size : (n + 1) * size]
    if len(parts[-1]) != len(parts[0]):  # rounding up left the last one short: all others give one
        for part in parts[:-1]:
            parts[-1].append(rng.choice(part))
            part.remove(parts[-1][-1])
    return parts
