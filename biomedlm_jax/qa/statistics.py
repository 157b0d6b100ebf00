"""Scores of answered questions with their uncertainty: intervals and paired tests, no model.

With groups, of dependent answers, these resample whole groups (Cameron, Gelbach and Miller 2008).
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from biomedlm_jax.errors import InputError

RESAMPLES = 10_000
LEVEL = 0.95
BINS = 10
CELLS = 2**20  # counts sampled at a time: 8 MiB
FIELDS = ("id", "gold", "prediction", "scores", "probabilities", "options", "truncated")
KINDS: dict[str, tuple[type, ...]] = {"id": (str,), "options": (list, tuple)}
KINDS |= {"content": (str, NoneType), "group": (str, int, NoneType), "truncated": (bool, np.bool_)}

Item = Mapping[str, Any]
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Two models on the same questions: accuracy of the first minus that of the second."""

    n: int
    difference: Interval
    only_first: int  # of several seeds: pairs of a seed of each and a question
    only_second: int
    p_value: float
    compared: str  # what shows that the questions are the same
    test: str  # its name


class Columns(NamedTuple):
    """The checked fields of a list of items, as columns."""

    ids: list[str]
    gold_N: np.ndarray
    prediction_N: np.ndarray
    probabilities: list[np.ndarray]  # one vector per question; empty: scores that are none
    group_N: np.ndarray | None  # whole numbers from 0; None: the questions are independent
    options: Sequence[tuple[str, ...]] = ()
    content: Sequence[str | None] = ()  # hashes of what was asked; None: an item without one

    @property
    def right_N(self) -> np.ndarray:
        """Which predictions are right."""
        return self.gold_N == self.prediction_N


def columns(items: Sequence[Item]) -> Columns:
    """Return the items as columns; raise InputError, naming the question, for a bad item."""
    if not items:
        raise InputError("expected at least one question, got none")
    check_items(items)
    ids = [item["id"] for item in items]
    if missing := [item["id"] for item in items if item["gold"] is None]:
        lack = f"{len(missing)} of {len(items)} questions have no gold label"
        raise InputError(f"{lack}, the first is {missing[0]!r}; fix: use a split with labels")
    groups = [item.get("group") for item in items]
    return Columns(
        ids,
        np.array([item["gold"] for item in items], np.int64),
        np.array([item["prediction"] for item in items], np.int64),
        [np.asarray(p, np.float64) for item in items if (p := item["probabilities"]) is not None],
        None if None in groups else np.unique([str(one) for one in groups], return_inverse=True)[1],
        [tuple(item["options"]) for item in items],
        [item.get("content") for item in items],
    )


def check_items(items: Sequence[Item]) -> None:
    """Raise InputError unless `check_item` takes all, ids differ, and all or none have a group."""
    for item in items:
        check_item(item)
    name, count = Counter(item["id"] for item in items).most_common(1)[0]
    if count > 1:
        raise InputError(f"more than one question has the id {name!r}")
    lone = sum(item.get("group") is None for item in items)
    if 0 < lone < len(items):
        raise InputError(f"{lone} of {len(items)} questions have no group; fix: give all or none")


def check_item(item: Item) -> None:
    """Raise InputError unless the record of one question is complete and consistent.

    `probabilities` are None where the scores are no log-probabilities of the options.
    """
    missing = [n for n in FIELDS if n not in item] if isinstance(item, Mapping) else FIELDS
    if missing:
        raise InputError(f"an item has no {missing[0]!r}; its fields are {', '.join(FIELDS)}")
    where = f"question {item['id']!r}"
    for name, kinds in KINDS.items():
        if not isinstance(item.get(name), kinds):
            got = type(item.get(name)).__name__
            raise InputError(f"{where} has {name} of type {got}; expected {kinds[0].__name__}")
    options = len(item["options"])
    confidences = "scores" if item["probabilities"] is None else "probabilities"
    for name in ("scores", confidences):
        try:
            values = np.asarray(item[name], np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{where} has {name} that are no numbers: {error}") from None
        if values.shape != (options,) or not options:
            raise InputError(f"{where} has {options} options and {name} of shape {values.shape}")
        if not np.isfinite(values).all():
            raise InputError(f"{where} has {name} that are not finite")
    for name in ("gold", "prediction"):
        label = item[name]
        known = isinstance(label, int | np.integer) and 0 <= label < options
        if not known and (name == "prediction" or label is not None):
            raise InputError(f"{where} has {name} {label!r}; allowed is 0 to {options - 1}")
    values = np.asarray(item[confidences], np.float64)
    total, top = values.sum(), values.max()
    if confidences == "probabilities" and (values.min() < 0 or abs(total - 1) > 1e-3):
        raise InputError(f"{where} has probabilities that sum to {total:.6g}, not to 1")
    if values[item["prediction"]] < top - 1e-6:
        raise InputError(f"{where} predicts {item['prediction']}, not its most probable option")


def accuracy(*seeds: Columns, seed: int = 0) -> Interval:
    """Return the share of right answers with its percentile bootstrap interval.

    Of several seeds of one model, on the same questions, it is the mean; the interval resamples
    questions and seeds (a hierarchical bootstrap). `seed` is the bootstrap's.
    """
    right_NxS = np.stack(_aligned(seeds), axis=1)
    return _over_seeds(right_NxS[:, :, None], seeds[0].group_N, seed)


def mean(values_N: np.ndarray, *, group_N: np.ndarray | None = None, seed: int = 0) -> Interval:
    """Return the mean of any figure of N answers with its percentile bootstrap interval."""
    column_Nx1 = np.asarray(values_N, np.float64)[:, None]
    return bootstrap(column_Nx1, lambda sums_Rx1, n_R: sums_Rx1[:, 0] / n_R, group_N, seed)


def macro_f1(*seeds: Columns, seed: int = 0) -> Interval:
    """Return the mean F1 over the classes that occur, as scikit-learn's, with its interval.

    Of several seeds of one model it is the mean, as in `accuracy`.
    """
    first, rng = seeds[0], np.random.default_rng(seed + 1)
    others = [one.prediction_N[same_questions(first, one)] for one in seeds[1:]]
    prediction_NxS = np.stack([first.prediction_N, *others], axis=1)
    classes = np.union1d(first.gold_N, prediction_NxS)
    gold_NxC = (first.gold_N[:, None] == classes).astype(int)
    prediction_SxNxC = (prediction_NxS.T[:, :, None] == classes).astype(int)

    def f1(sums_RxF: np.ndarray) -> np.ndarray:
        right_RxSxC, both_RxSxC = np.split(sums_RxF.reshape(len(sums_RxF), len(seeds), -1), 2, 2)
        # 2 TP / (2 TP + FP + FN); the denominator is 0 for a class that this resample lacks.
        f1_RxSxC = 2 * right_RxSxC / np.maximum(both_RxSxC, 1)
        return f1_RxSxC.sum(axis=2) / (both_RxSxC > 0).sum(axis=2)

    def mean_f1(sums_RxF: np.ndarray, n_R: np.ndarray) -> np.ndarray:
        n = len(seeds)
        weights_RxS = rng.multinomial(n, np.full(n, 1 / n), len(n_R)) / n
        return (f1(sums_RxF) * weights_RxS).sum(axis=1)

    features_NxF = np.hstack(
        [part for one in prediction_SxNxC for part in (gold_NxC * one, gold_NxC + one)]
    )
    interval = bootstrap(features_NxF, mean_f1, first.group_N, seed)
    return interval._replace(value=float(f1(features_NxF.sum(axis=0, keepdims=True)).mean()))


def reliability(answers: Columns) -> list[dict]:
    """Return 10 bins of equal width of the confidence (the top probability), open on the left."""
    top_N = np.array([row.max() for row in answers.probabilities])
    edges = [index / BINS for index in range(BINS + 1)]
    bin_N = np.searchsorted(edges[1:-1], top_N, side="left")
    bins = []
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        inside_N = bin_N == index
        one: dict = {"low": low, "high": high, "n": int(inside_N.sum())}
        for name, of_N in {"confidence": top_N, "accuracy": answers.right_N}.items():
            one[name] = float(of_N[inside_N].mean()) if one["n"] else None
        bins.append(one)
    return bins


def calibration_error(bins: Sequence[Mapping]) -> float:
    """Expected calibration error (Guo et al. 2017): mean |accuracy - confidence| per question."""
    gaps = [one["n"] * abs(one["accuracy"] - one["confidence"]) for one in bins if one["n"]]
    return sum(gaps) / sum(one["n"] for one in bins)


def mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean and the sample standard deviation (None for one value)."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "deviation": deviation}


def brier_score(answers: Columns) -> float:
    """Mean over questions of the squared error summed over a question's options: 0 to 2."""
    # Σ (p - [gold])² = Σ p² - 2 p[gold] + 1
    pairs = zip(answers.gold_N, answers.probabilities, strict=True)
    return float(np.mean([p @ p - 2 * p[gold] + 1 for gold, p in pairs]))


def compare(items: Sequence[Item], baseline: Sequence[Item], *, seed: int = 0) -> Comparison:
    """Return the paired difference in accuracy to `baseline`; the groups are those of `items`."""
    return compare_seeds([columns(items)], [columns(baseline)], seed=seed)


def compare_seeds(
    firsts: Sequence[Columns], seconds: Sequence[Columns], *, seed: int = 0
) -> Comparison:
    """Return the paired difference of the mean accuracies of the seeds of two models.

    Intervals resample questions and the seeds of both; the test permutes questions (or groups).
    """
    first, second = firsts[0], seconds[0]
    right = _aligned([*firsts, *seconds])
    first_NxS = np.stack(right[: len(firsts)], 1).astype(int)
    second_NxT = np.stack(right[len(firsts) :], 1)
    gain_NxSxT = first_NxS[:, :, None] - second_NxT[:, None]
    difference = _over_seeds(gain_NxSxT, first.group_N, seed)
    wins, losses = int((gain_NxSxT > 0).sum()), int((gain_NxSxT < 0).sum())
    single = gain_NxSxT[0].size == 1
    test = "McNemar's exact test" if single else "exact permutation test of questions"
    test = test if first.group_N is None else "exact permutation test of groups"
    p_value = paired_test(gain_NxSxT.sum((1, 2)), first.group_N)
    known = None not in [*first.content, *second.content]
    compared = "ids, gold labels, options" + (" and content" if known else "")
    return Comparison(len(gain_NxSxT), difference, wins, losses, p_value, compared, test)


def paired_test(gain_N: np.ndarray, group_N: np.ndarray | None = None) -> float:
    """Return the exact two-sided p-value of a permutation test of two models.

    Exchanging the models' answers to a unit (a question, or a group) changes the sign of its gain;
    all exchanges are equally likely if the models are equally good. McNemar's test, without groups.
    """
    gain_U = gain_N if group_N is None else np.bincount(group_N, gain_N).astype(int)
    # The distribution of Σ ±|gain| + Σ |gain|, unit by unit: null[s] is the probability of s.
    null = np.ones(1)
    for gain in np.abs(gain_U[gain_U != 0]):
        null = (np.pad(null, (0, 2 * gain)) + np.pad(null, (2 * gain, 0))) / 2
    total = len(null) // 2
    sums = np.arange(len(null)) - total
    return min(1.0, float(null[np.abs(sums) >= abs(gain_U.sum())].sum()))


def same_questions(first: Columns, second: Columns) -> np.ndarray:
    """Return the place of each question of `first` in `second`; raise InputError if they differ.

    Ids, gold labels and options must be equal, and hashes of the content where both have them.
    """
    only, extra = {*first.ids} - {*second.ids}, {*second.ids} - {*first.ids}
    if only or extra:
        counts = f"{len(only)} ids are only in the first and {len(extra)} only in the second"
        raise InputError(f"the results differ in questions: {counts}: {min(only or extra)!r}")
    place = {name: index for index, name in enumerate(second.ids)}
    order = np.array([place[name] for name in first.ids])
    differ = first.gold_N != second.gold_N[order]
    if differ.any():
        raise InputError(f"{differ.sum()} gold labels differ, as of {first.ids[differ.argmax()]!r}")
    pairs = list(zip(first.ids, order, strict=True))
    for noun, of_first, of_second in (
        ("lists of options", first.options, second.options),
        ("question texts", first.content, second.content),
    ):
        differing = [
            name
            for (name, there), one in zip(pairs, of_first, strict=False)
            if of_second and None not in (one, of_second[there]) and one != of_second[there]
        ]
        if differing:
            got = f"{len(differing)} {noun} differ, as of {differing[0]!r}"
            raise InputError(f"the results are of other questions: {got}")
    return order


def _aligned(seeds: Sequence[Columns]) -> list[np.ndarray]:
    """Return which answers [N] of each are right, in the first one's order of the questions."""
    right = [seeds[0].right_N]
    return right + [one.right_N[same_questions(seeds[0], one)] for one in seeds[1:]]


def _over_seeds(values_NxSxT: np.ndarray, group_N, seed: int) -> Interval:
    """Mean over questions and the seeds of two models; its interval resamples all three."""
    _, first, second = values_NxSxT.shape
    rng = np.random.default_rng(seed + 1)

    def mean(sums_RxF: np.ndarray, n_R: np.ndarray) -> np.ndarray:
        sums_RxSxT = sums_RxF.reshape(-1, first, second)
        weights_RxS, weights_RxT = (
            rng.multinomial(n, np.full(n, 1 / n), len(n_R)) / n for n in (first, second)
        )
        return np.einsum("rst,rs,rt->r", sums_RxSxT, weights_RxS, weights_RxT) / n_R

    features_NxF = values_NxSxT.reshape(len(values_NxSxT), -1).astype(int)
    interval = bootstrap(features_NxF, mean, group_N, seed)
    return interval._replace(value=float(values_NxSxT.mean()))


def bootstrap(features_NxF: np.ndarray, statistic: Statistic, group_N, seed: int) -> Interval:
    """Return `statistic(sums of features [R, F], questions [R])` and its percentile interval.

    The statistic is computed of R resamples at once, and of all N questions for the value.

    Units (groups, or single questions) with equal sums are interchangeable: a resample is a
    multinomial sample of the kinds, at a cost that does not grow with the questions.
    """
    features_NxF = np.column_stack([features_NxF, np.ones(len(features_NxF), int)])
    units_UxF = features_NxF
    if group_N is not None:
        units_UxF = np.stack([np.bincount(group_N, one_N) for one_N in features_NxF.T], 1)
    kinds_KxF, counts_K = np.unique(units_UxF, axis=0, return_counts=True)
    rng, chunk = np.random.default_rng(seed), max(1, CELLS // len(counts_K))
    resampled = []
    for start in range(0, RESAMPLES, chunk):
        size = min(chunk, RESAMPLES - start)
        sums_RxF = rng.multinomial(len(units_UxF), counts_K / len(units_UxF), size) @ kinds_KxF
        resampled.append(statistic(sums_RxF[:, :-1], sums_RxF[:, -1]))
    low, high = np.quantile(np.concatenate(resampled), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    total_1xF = features_NxF.sum(axis=0, keepdims=True)
    (value,) = statistic(total_1xF[:, :-1], total_1xF[:, -1])
    return Interval(float(value), float(low), float(high))
