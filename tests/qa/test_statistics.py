import math
from fractions import Fraction

import numpy as np
import pytest

from biomedlm_jax.qa import statistics

GOLD = np.array([0, 0, 0, 1, 1, 2])
PREDICTION = np.array([0, 0, 1, 1, 2, 0])


def item(name, gold, prediction, options=3, top=0.6, **changes):
    probabilities = [(1 - top) / (options - 1)] * options
    probabilities[prediction] = top
    record = {
        "id": name,
        "gold": gold,
        "prediction": prediction,
        "scores": [math.log(p) for p in probabilities],
        "probabilities": probabilities,
        "options": [f"option {index}" for index in range(options)],
        "truncated": False,
    }
    return {**record, **changes}


def items_of(gold, prediction, **changes):
    pairs = zip(gold, prediction, strict=True)
    return [item(f"q{i}", int(g), int(p), **changes) for i, (g, p) in enumerate(pairs)]


def brute_f1(gold, prediction):
    scores = []
    for one in set(gold) | set(prediction):
        right = sum(g == p == one for g, p in zip(gold, prediction, strict=True))
        wrong = sum((g == one) != (p == one) for g, p in zip(gold, prediction, strict=True))
        scores.append(2 * right / (2 * right + wrong))
    return sum(scores) / len(scores)


def binomial_quantile(n, share, level):
    total = 0.0
    for k in range(n + 1):
        total += math.comb(n, k) * share**k * (1 - share) ** (n - k)
        if total >= level:
            return k / n
    return 1.0


def test_accuracy_and_its_interval_by_the_exact_binomial():
    gold = np.zeros(120, int)
    prediction = np.array([0] * 54 + [1] * 66)
    value, low, high = statistics.accuracy(gold, prediction)
    assert value == pytest.approx(0.45)
    assert low == pytest.approx(binomial_quantile(120, 0.45, 0.025), abs=1.01 / 120)
    assert high == pytest.approx(binomial_quantile(120, 0.45, 0.975), abs=1.01 / 120)
    assert statistics.accuracy(gold, prediction) == (value, low, high)
    assert statistics.accuracy(gold, gold) == (1, 1, 1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    found = []
    for trial in range(400):
        right = rng.random(200) < 0.6
        _, low, high = statistics.accuracy(np.ones(200, int), right.astype(int), seed=trial)
        found.append(low <= 0.6 <= high)
    # 0.95 ± 0.011 (one standard error of 400 trials)
    assert 0.91 < np.mean(found) < 0.985


def test_macro_f1_by_hand():
    # F1: class 0 has TP 2, FP 1, FN 1: 2/3; class 1 TP 1, FP 1, FN 1: 1/2; class 2 none: 0.
    assert statistics.macro_f1(GOLD, PREDICTION).value == pytest.approx((2 / 3 + 1 / 2) / 3)
    # A class that is only predicted counts, with F1 0; one that never occurs does not.
    two = statistics.macro_f1(np.array([0, 0]), np.array([0, 3])).value
    assert two == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_macro_f1_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    gold, prediction = rng.integers(0, 4, 30), rng.integers(1, 6, 30)
    value = statistics.macro_f1(gold, prediction).value
    assert value == pytest.approx(brute_f1(gold.tolist(), prediction.tolist()))


def test_macro_f1_as_scikit_learn_computes_it():
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with scikit-learn")
    rng = np.random.default_rng(5)
    gold, prediction = rng.integers(0, 5, 200), rng.integers(0, 6, 200)
    expected = metrics.f1_score(gold, prediction, average="macro")
    assert statistics.macro_f1(gold, prediction).value == pytest.approx(expected)


@pytest.mark.parametrize("cells", [statistics.CELLS, 100])
def test_the_interval_of_macro_f1_is_that_of_drawn_questions(cells, monkeypatch):
    monkeypatch.setattr(statistics, "CELLS", cells)
    rng = np.random.default_rng(3)
    gold = rng.integers(0, 3, 60)
    prediction = np.where(rng.random(60) < 0.5, gold, rng.integers(0, 3, 60))
    rows = rng.integers(0, 60, (2000, 60))
    drawn = [brute_f1(gold[row].tolist(), prediction[row].tolist()) for row in rows]
    _, low, high = statistics.macro_f1(gold, prediction)
    assert [low, high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist(), abs=0.02)


def test_reliability_and_calibration_by_hand():
    # Confidences 0.6 (twice, one right), 0.7 (wrong) and 0.95 (right); 0.6 closes its bin.
    records = [item("a", 0, 0), item("b", 1, 0), item("c", 1, 0, top=0.7)]
    records.append(item("d", 2, 2, options=5, top=0.95))
    _, gold, prediction, probabilities = statistics.columns(records)
    bins = statistics.reliability(gold, prediction, probabilities)
    assert [one.n for one in bins] == [0, 0, 0, 0, 0, 2, 1, 0, 0, 1]
    assert bins[5] == (0.5, 0.6, 2, pytest.approx(0.6), 0.5)
    assert bins[0] == (0.0, 0.1, 0, None, None)
    expected = (2 * 0.1 + 0.7 + 0.05) / 4
    assert statistics.calibration_error(bins) == pytest.approx(expected)


def test_brier_with_mixed_numbers_of_options():
    rows = [np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.9])]
    # (0.5 - 1)² + 0.3² + 0.2² = 0.38 and 0.9² + 0.9² = 1.62
    assert statistics.brier_score(np.array([0, 0]), rows) == pytest.approx((0.38 + 1.62) / 2)


def exact_mcnemar(first, second):
    n = first + second
    tail = sum(math.comb(n, k) for k in range(min(first, second) + 1))
    return min(Fraction(1), 2 * Fraction(tail, 2**n))


@pytest.mark.parametrize("pair", [(0, 0), (1, 0), (5, 1), (1, 5), (7, 7), (30, 12), (900, 1000)])
def test_mcnemar_by_exact_fractions(pair):
    assert statistics.mcnemar(*pair) == pytest.approx(float(exact_mcnemar(*pair)), rel=1e-12)


def test_mcnemar_in_the_large():
    # Beside the normal approximation with continuity correction.
    z = (abs(5100 - 4900) - 1) / 100
    assert statistics.mcnemar(5100, 4900) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)
    assert statistics.mcnemar(10_000, 0) == 0
    assert statistics.mcnemar(5, 1) == pytest.approx(14 / 64)


def test_comparison_pairs_by_id():
    rng = np.random.default_rng(2)
    gold = rng.integers(0, 3, 80)
    first = np.where(rng.random(80) < 0.7, gold, (gold + 1) % 3)
    second = np.where(rng.random(80) < 0.5, gold, (gold + 1) % 3)
    items, baseline = items_of(gold, first), items_of(gold, second)
    result = statistics.compare(items, baseline[::-1])
    assert result == statistics.compare(items, baseline)
    gain = (first == gold).astype(int) - (second == gold)
    assert result.difference.value == pytest.approx(gain.mean())
    assert (result.only_first, result.only_second) == ((gain > 0).sum(), (gain < 0).sum())
    assert result.p_value == statistics.mcnemar(result.only_first, result.only_second)
    drawn = gain[rng.integers(0, 80, (4000, 80))].mean(axis=1)
    expected = np.quantile(drawn, [0.025, 0.975]).tolist()
    assert list(result.difference[1:]) == pytest.approx(expected, abs=0.02)
    same = statistics.compare(items, items)
    assert same.difference == (0, 0, 0)
    assert same.p_value == 1


def test_spread_over_seeds():
    assert statistics.over_seeds([0.1, 0.2, 0.6]) == pytest.approx((0.3, math.sqrt(0.07), 3))
    assert statistics.over_seeds([0.4]) == (0.4, None, 1)
    with pytest.raises(ValueError, match="got no seeds"):
        statistics.over_seeds([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": [0.0, math.nan, 1.0]}, r"'a' has scores that are not finite"),
        ({"probabilities": [1.0, 0.0]}, r"3 options and probabilities of shape \(2,\)"),
        ({"probabilities": [0.9, 0.9, 0.1]}, "sum to 1.9, not to 1"),
        ({"gold": 3}, "gold 3; allowed is 0 to 2"),
        ({"gold": None}, "1 of 1 questions have no gold label, the first is 'a'"),
        ({"prediction": None}, "prediction None; allowed is 0 to 2"),
        ({"prediction": 1.0}, r"prediction 1\.0; allowed"),
        ({"prediction": 1}, "predicts 1, not its most probable option"),
    ],
)
def test_bad_items(changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        statistics.columns([{**item("a", 0, 0), **changes}])
    assert "\n" not in str(raised.value)


def test_bad_lists():
    one = item("a", 0, 0)
    with pytest.raises(ValueError, match="got no questions"):
        statistics.columns([])
    with pytest.raises(ValueError, match="more than one question has the id 'a'"):
        statistics.columns([one, item("b", 0, 0), one])
    with pytest.raises(ValueError, match="an item has no 'scores'; its fields are id, gold"):
        statistics.columns([{k: v for k, v in one.items() if k != "scores"}])
    with pytest.raises(ValueError, match="1 ids are only in the first and 2 only in the second"):
        statistics.compare([one], [item("b", 0, 0), item("c", 0, 0)])
    with pytest.raises(ValueError, match="1 gold labels differ, as of 'a'"):
        statistics.compare([one], [item("a", 1, 0)])
    with pytest.raises(ValueError, match="got 6 gold labels and 5 predictions"):
        statistics.accuracy(GOLD, PREDICTION[1:])
