"""The report of long answers: ROUGE with intervals, lengths, repetition, unsupported numbers.

The paper (arXiv 2403.18421) names wrong numbers as the known failure of such answers.
"""

import re
from collections.abc import Sequence

import numpy as np

KINDS = ("rouge1", "rouge2", "rougeL")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def text_report(
    sources: Sequence[str],
    references: Sequence[str],
    answers: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    resamples: int = 1_000,
    seed: int = 0,
) -> dict:
    """Return figures over all answers: means, and 95 % bootstrap intervals of ROUGE's F-measures.

    ROUGE is between 0 and 100. `repetition` is the share of an answer's word 4-grams that it had
    before; `unsupported_numbers` the share of numbers in the answers that are in neither the
    source nor the reference, None if they have no numbers. Answers of one group are dependent:
    intervals resample groups.

    Raises ValueError for lists of different lengths or none.
    """
    if not len(sources) == len(references) == len(answers) > 0:
        raise ValueError(
            f"got {len(sources)} sources, {len(references)} references and {len(answers)} answers; "
            "expected as many of each, and at least one"
        )
    names = groups if groups is not None else list(map(str, range(len(answers))))
    _, group_N = np.unique(names, return_inverse=True)
    count_G = np.bincount(group_N)
    sampled_RxG = np.random.default_rng(seed).integers(0, len(count_G), (resamples, len(count_G)))
    figures: dict = {"examples": len(answers), "groups": len(count_G)}
    for kind, values in rouge(references, answers).items():
        sum_G = np.bincount(group_N, values)
        mean_R = sum_G[sampled_RxG].sum(1) / count_G[sampled_RxG].sum(1)
        low, high = np.percentile(mean_R, [2.5, 97.5])
        ends = {"mean": np.mean(values), "low": low, "high": high}
        figures[kind] = {name: round(float(value), 2) for name, value in ends.items()}
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
