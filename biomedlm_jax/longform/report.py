"""Report: how good long answers are, and how wrong.

ROUGE with stemming (the `rouge-score` package), with bootstrap intervals; lengths; how much an
answer repeats itself; and how many of its numbers nobody gave it. The paper (arXiv 2403.18421)
names wrong numbers as the known failure of such answers.
"""

import re
from collections.abc import Sequence

import numpy as np

KINDS = ("rouge1", "rouge2", "rougeL")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def report(
    sources: Sequence[str],
    references: Sequence[str],
    answers: Sequence[str],
    *,
    resamples: int = 1_000,
    seed: int = 0,
) -> dict:
    """Figures over all answers: means, and 95 % bootstrap intervals of ROUGE's F-measures.

    ROUGE is between 0 and 100. `repetition` is the share of an answer's word 4-grams that it had
    before; `unsupported_numbers` the share of numbers in the answers that are in neither the
    source nor the reference, None if they have no numbers.

    Raises ValueError for lists of different lengths or none, and without `rouge-score`.
    """
    if not len(sources) == len(references) == len(answers) > 0:
        raise ValueError(
            f"got {len(sources)} sources, {len(references)} references and {len(answers)} "
            "answers; give as many of each, and at least one"
        )
    scores = rouge(references, answers)
    random = np.random.default_rng(seed)
    picks = random.integers(0, len(answers), (resamples, len(answers)))
    figures = {"examples": len(answers)}
    for kind in KINDS:
        values = np.array(scores[kind])
        low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
        figures[kind] = {
            "mean": round(float(values.mean()), 2),
            "low": round(float(low), 2),
            "high": round(float(high), 2),
        }
    said, unsupported = 0, 0
    for source, reference, answer in zip(sources, references, answers, strict=True):
        known, numbers = numbers_in(source) | numbers_in(reference), NUMBER.findall(answer)
        said += len(numbers)
        unsupported += sum(_plain(number) not in known for number in numbers)
    figures |= {
        "words": round(float(np.mean([len(a.split()) for a in answers])), 1),
        "reference_words": round(float(np.mean([len(r.split()) for r in references])), 1),
        "empty": sum(not a.strip() for a in answers),
        "repetition": round(float(np.mean([repetition(a) for a in answers])), 4),
        "numbers": said,
        "unsupported_numbers": round(unsupported / said, 4) if said else None,
    }
    return figures


def rouge(references: Sequence[str], answers: Sequence[str]) -> dict[str, list[float]]:
    """F-measures times 100 of each answer, by kind, with Porter's stemmer."""
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ValueError(
            "ROUGE needs the package rouge-score; install the extra `longform` "
            '(pip install -e ".[longform]")'
        ) from None
    scorer = RougeScorer(list(KINDS), use_stemmer=True)
    found = [scorer.score(r, a) for r, a in zip(references, answers, strict=True)]
    return {kind: [100 * one[kind].fmeasure for one in found] for kind in KINDS}


def repetition(text: str, *, size: int = 4) -> float:
    """The share of a text's word n-grams that it had before, between 0 and 1."""
    words = text.lower().split()
    runs = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def numbers_in(text: str) -> set[str]:
    """The numbers of a text; 1,000 is 1000."""
    return {_plain(number) for number in NUMBER.findall(text)}


def _plain(number: str) -> str:
    return re.sub(r",(?=\d{3}(?!\d))", "", number)
