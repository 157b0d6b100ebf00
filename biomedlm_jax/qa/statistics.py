"""What a set of answered questions shows, with its uncertainty: plain numpy, no model.

A resample of n questions with replacement matters only through how many questions of each kind
(right or wrong, or a pair of gold and predicted class) it holds, and those numbers are multinomial.
So every bootstrap here draws counts: the same distribution as drawing questions, at a cost and
memory that do not grow with n.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95
BINS = 10
CELLS = 2**20  # counts drawn at a time: 8 MiB
FIELDS = ("id", "gold", "prediction", "scores", "probabilities", "options", "truncated")

Item = Mapping[str, object]


class Interval(NamedTuple):
    """An estimate with the ends of its interval."""

    value: float
    low: float
    high: float


class Bin(NamedTuple):
    """One bar of a reliability diagram; an empty bin has no confidence and no accuracy."""

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


class Comparison(NamedTuple):
    """Two models on the same questions: accuracy of the first minus that of the second."""

    n: int
    difference: Interval
    only_first: int
    only_second: int
    p_value: float


class Spread(NamedTuple):
    """Mean and sample standard deviation (ddof 1; None for one value) of n values."""

    mean: float
    deviation: float | None
    n: int


class Columns(NamedTuple):
    """The checked fields of a list of items, as columns."""

    ids: list[str]
    gold_N: np.ndarray
    prediction_N: np.ndarray
    probabilities: list[np.ndarray]  # one vector per question; they differ in length


def columns(items: Sequence[Item]) -> Columns:
    """The items as columns; raises ValueError, naming the question, for what cannot be scored."""
    if not items:
        raise ValueError("got no questions; at least one is needed")
    for item in items:
        check_item(item)
    ids = [item["id"] for item in items]
    if len(set(ids)) < len(ids):
        raise ValueError(f"more than one question has the id {Counter(ids).most_common(1)[0][0]!r}")
    missing = [item["id"] for item in items if item["gold"] is None]
    if missing:
        lack = f"{len(missing)} of {len(items)} questions have no gold label"
        raise ValueError(f"{lack}, the first is {missing[0]!r}; use a split that has labels")
    return Columns(
        ids,
        np.array([item["gold"] for item in items], np.int64),
        np.array([item["prediction"] for item in items], np.int64),
        [np.asarray(item["probabilities"], np.float64) for item in items],
    )


def check_item(item: Item) -> None:
    """Raise ValueError unless the record of one question is whole and agrees with itself."""
    missing = [n for n in FIELDS if n not in item] if isinstance(item, Mapping) else FIELDS
    if missing:
        raise ValueError(f"an item has no {missing[0]!r}; its fields are {', '.join(FIELDS)}")
    where, options = f"question {item['id']!r}", len(item["options"])
    for name in ("scores", "probabilities"):
        values = np.asarray(item[name], np.float64)
        if values.shape != (options,) or not options:
            raise ValueError(f"{where} has {options} options and {name} of shape {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"{where} has {name} that are not finite (NaN or infinite)")
    for name in ("gold", "prediction"):
        label = item[name]
        known = isinstance(label, int | np.integer) and 0 <= label < options
        if not known and (name == "prediction" or label is not None):
            raise ValueError(f"{where} has {name} {label!r}; allowed is 0 to {options - 1}")
    # The last `values` are the probabilities.
    if values.min() < 0 or abs(values.sum() - 1) > 1e-3:
        raise ValueError(f"{where} has probabilities that sum to {values.sum():.6g}, not to 1")
    if values[item["prediction"]] < values.max() - 1e-6:
        raise ValueError(f"{where} predicts {item['prediction']}, not its most probable option")


def accuracy(gold_N: np.ndarray, prediction_N: np.ndarray, *, seed: int = 0) -> Interval:
    """The share that is right, with its 95 % percentile bootstrap interval.

    The interval has no width when all or none are right: that is the method, not certainty.
    """
    share, n = _right(gold_N, prediction_N).mean(), len(gold_N)
    return _interval(share, np.random.default_rng(seed).binomial(n, share, RESAMPLES) / n)


def macro_f1(gold_N: np.ndarray, prediction_N: np.ndarray, *, seed: int = 0) -> Interval:
    """The mean F1 over the classes that occur in gold or predictions, with its interval.

    As `sklearn.metrics.f1_score(average="macro")`; a resample averages over its own classes.
    """
    _right(gold_N, prediction_N)
    n = len(gold_N)
    # K kinds of question, by gold and predicted class, and how many of each there are.
    pairs_Nx2 = np.stack([gold_N, prediction_N], axis=1)
    pairs_Kx2, counts_K = np.unique(pairs_Nx2, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    chunk = max(1, CELLS // len(counts_K))
    drawn = [
        _mean_f1(rng.multinomial(n, counts_K / n, min(chunk, RESAMPLES - start)), pairs_Kx2)
        for start in range(0, RESAMPLES, chunk)
    ]
    return _interval(_mean_f1(counts_K[None], pairs_Kx2)[0], np.concatenate(drawn))


def reliability(
    gold_N: np.ndarray, prediction_N: np.ndarray, probabilities: Sequence[np.ndarray]
) -> list[Bin]:
    """Confidence (the top probability) and accuracy in 10 bins of equal width, open on the left."""
    right_N = _right(gold_N, prediction_N)
    top_N = np.array([row.max() for row in probabilities])
    edges = [index / BINS for index in range(BINS + 1)]
    bin_N = np.searchsorted(edges[1:-1], top_N, side="left")
    found = []
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        inside_N = bin_N == index
        n = int(inside_N.sum())
        means = [float(one_N[inside_N].mean()) if n else None for one_N in (top_N, right_N)]
        found.append(Bin(low, high, n, *means))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error (Guo et al. 2017): mean |accuracy - confidence| per question."""
    gaps = [one.n * abs(one.accuracy - one.confidence) for one in bins if one.n]
    return sum(gaps) / sum(one.n for one in bins)


def brier_score(gold_N: np.ndarray, probabilities: Sequence[np.ndarray]) -> float:
    """Mean over questions of the squared error summed over a question's options: 0 to 2."""
    # Σ (p - [gold])² = Σ p² - 2 p[gold] + 1
    errors = [p @ p - 2 * p[gold] + 1 for gold, p in zip(gold_N, probabilities, strict=True)]
    return float(np.mean(errors))


def compare(items: Sequence[Item], baseline: Sequence[Item], *, seed: int = 0) -> Comparison:
    """Accuracy of `items` minus that of `baseline`: paired bootstrap and McNemar's exact test.

    Both must hold the same ids, in any order, with the same gold labels.
    """
    first, second = columns(items), columns(baseline)
    order = same_questions(first, second)
    right_N = first.gold_N == first.prediction_N
    other_N = (second.gold_N == second.prediction_N)[order]
    n, wins, losses = len(right_N), int((right_N & ~other_N).sum()), int((other_N & ~right_N).sum())
    shares = np.array([wins, losses, n - wins - losses]) / n
    drawn_Rx3 = np.random.default_rng(seed).multinomial(n, shares, RESAMPLES)
    difference = _interval((wins - losses) / n, (drawn_Rx3[:, 0] - drawn_Rx3[:, 1]) / n)
    return Comparison(n, difference, wins, losses, mcnemar(wins, losses))


def same_questions(first: Columns, second: Columns) -> np.ndarray:
    """Where each question of `first` is in `second`; raises ValueError if they do not match."""
    same_ids(set(first.ids), set(second.ids))
    place = {name: index for index, name in enumerate(second.ids)}
    order = np.array([place[name] for name in first.ids])
    differ = first.gold_N != second.gold_N[order]
    if differ.any():
        raise ValueError(f"{differ.sum()} gold labels differ, as of {first.ids[differ.argmax()]!r}")
    return order


def same_ids(first: set[str], second: set[str]) -> None:
    """Raise ValueError unless two results are of the same questions."""
    only, extra = first - second, second - first
    if only or extra:
        counts = f"{len(only)} ids are only in the first and {len(extra)} only in the second"
        raise ValueError(f"the results differ in questions: {counts}: {min(only or extra)!r}")


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value: were the questions that only one model got right a fair coin's?"""
    n, fewer = only_first + only_second, min(only_first, only_second)
    # In whole numbers, since 2**n leaves the range of floats at n = 1024.
    term = tail = 1
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(2 * tail, 2**n) / 2**n


def over_seeds(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of one figure over seeds."""
    if not values:
        raise ValueError("got no seeds; at least one is needed")
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), deviation, len(values))


def _right(gold_N: np.ndarray, prediction_N: np.ndarray) -> np.ndarray:
    if len(gold_N) != len(prediction_N) or not len(gold_N):
        raise ValueError(f"got {len(gold_N)} gold labels and {len(prediction_N)} predictions")
    return np.asarray(gold_N) == np.asarray(prediction_N)


def _interval(value: float, drawn_R: np.ndarray) -> Interval:
    low, high = np.quantile(drawn_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))


def _mean_f1(counts_RxK: np.ndarray, pairs_Kx2: np.ndarray) -> np.ndarray:
    classes, class_Kx2 = np.unique(pairs_Kx2, return_inverse=True)
    gold_K, prediction_K = class_Kx2.T
    right_RxK = counts_RxK * (gold_K == prediction_K)
    right_RxC = _per_class(right_RxK, gold_K, len(classes))
    both_RxC = sum(_per_class(counts_RxK, class_K, len(classes)) for class_K in class_Kx2.T)
    # 2 TP / (2 TP + FP + FN); the denominator is 0 for a class that this resample lacks.
    f1_RxC = 2 * right_RxC / np.maximum(both_RxC, 1)
    return f1_RxC.sum(axis=1) / (both_RxC > 0).sum(axis=1)


def _per_class(counts_RxK: np.ndarray, class_K: np.ndarray, classes: int) -> np.ndarray:
    total_RxC = np.zeros((len(counts_RxK), classes), np.int64)
    order_K = np.argsort(class_K, kind="stable")
    present, starts = np.unique(class_K[order_K], return_index=True)
    total_RxC[:, present] = np.add.reduceat(counts_RxK[:, order_K], starts, axis=1)
    return total_RxC
