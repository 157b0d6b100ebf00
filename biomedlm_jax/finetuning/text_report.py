"""The report of long answers: ROUGE with intervals, lengths, repetition, unsupported numbers."""

import re
from collections.abc import Sequence

import numpy as np

KINDS = ("rouge1", "rouge2", "rougeL")
RESAMPLES = 1_000
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def text_report(
    sources: Sequence[str],
    references: Sequence[str],
    answers: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
) -> dict:
    """Return means over all answers, and 95 % bootstrap intervals of ROUGE's F-measures (0 to 100).

    `repetition` is the share of an answer's word 4-grams that it had before; `unsupported_numbers`
    the share of numbers in the answers that are in neither source nor reference. Intervals resample
    groups, whose answers are dependent. Raises ValueError for lists of different lengths, or empty.
    """
    if not len(sources) == len(references) == len(answers) > 0:
        counts = f"{len(sources)} sources, {len(references)} references, {len(answers)} answers"
        raise ValueError(f"got {counts}; expected as many of each, and at least one")
    _, group_N = np.unique(groups or range(len(answers)), return_inverse=True)
    count_G = np.bincount(group_N)
    sampled_RxG = np.random.default_rng(0).integers(0, len(count_G), (RESAMPLES, len(count_G)))
    figures: dict = {"examples": len(answers), "groups": len(count_G)}
    for kind, values in rouge(references, answers).items():
        sum_G = np.bincount(group_N, values)
        mean_R = sum_G[sampled_RxG].sum(1) / count_G[sampled_RxG].sum(1)
        interval = [np.mean(values), *np.percentile(mean_R, [2.5, 97.5])]
        rounded = [round(float(value), 2) for value in interval]
        figures[kind] = dict(zip(("mean", "low", "high"), rounded, strict=True))
    total = unsupported = 0
    for source, reference, answer in zip(sources, references, answers, strict=True):
        known, numbers = numbers_in(source) | numbers_in(reference), NUMBER.findall(answer)
        total += len(numbers)
        unsupported += sum(_plain(number) not in known for number in numbers)
    return figures | {
        "words": round(float(np.mean([len(a.split()) for a in answers])), 1),
        "reference_words": round(float(np.mean([len(r.split()) for r in references])), 1),
        "empty": sum(not a.strip() for a in answers),
        "repetition": round(float(np.mean([repetition(a) for a in answers])), 4),
        "numbers": total,
        "unsupported_numbers": round(unsupported / total, 4) if total else None,
    }


def rouge(references: Sequence[str], answers: Sequence[str]) -> dict[str, list[float]]:
    """Return F-measures times 100 of each answer, by kind, with Porter's stemmer."""
    from rouge_score.rouge_scorer import RougeScorer  # slow to import

    scorer = RougeScorer(list(KINDS), use_stemmer=True)
    scores = [scorer.score(r, a) for r, a in zip(references, answers, strict=True)]
    return {kind: [100 * score[kind].fmeasure for score in scores] for kind in KINDS}


def repetition(text: str, *, size: int = 4) -> float:
    """Return the share of a text's word n-grams that it had before, between 0 and 1."""
    words = text.lower().split()
    ngrams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def numbers_in(text: str) -> set[str]:
    """Return the numbers of a text; 1,000 is 1000."""
    return {_plain(number) for number in NUMBER.findall(text)}


def _plain(number: str) -> str:
    return re.sub(r",(?=\d{3}(?!\d))", "", number)
