"""statistics.py against scipy, scikit-learn, brute force and simulations of its coverage."""

import math

import numpy as np
import pytest
from scipy import stats

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


def items_of(gold, prediction, groups=None, **changes):
    pairs = zip(gold, prediction, strict=True)
    items = [item(f"q{i}", int(g), int(p), **changes) for i, (g, p) in enumerate(pairs)]
    return (
        items
        if groups is None
        else [{**one, "group": f"g{group}"} for one, group in zip(items, groups, strict=True)]
    )


def answers(gold, prediction, group=None):
    return statistics.Columns([], np.asarray(gold), np.asarray(prediction), [], group)


def brute_f1(gold, prediction):
    scores = []
    for one in set(gold) | set(prediction):
        right = sum(g == p == one for g, p in zip(gold, prediction, strict=True))
        wrong = sum((g == one) != (p == one) for g, p in zip(gold, prediction, strict=True))
        scores.append(2 * right / (2 * right + wrong))
    return sum(scores) / len(scores)


def test_accuracy_and_its_interval_by_the_exact_binomial():
    result = statistics.accuracy(answers(np.zeros(120, int), [0] * 54 + [1] * 66))
    expected = stats.binom.ppf([0.025, 0.975], 120, 0.45) / 120
    assert result.value == pytest.approx(0.45)
    assert list(result[1:]) == pytest.approx(expected.tolist(), abs=1.01 / 120)
    assert statistics.accuracy(answers([1] * 9, [1] * 9)) == (1, 1, 1)


def simulated(rng, groups, size, *, spread):
    """Answers right with a probability that differs between groups; 0.6 on average."""
    share_G = rng.beta(0.6 / spread, 0.4 / spread, groups) if spread else np.full(groups, 0.6)
    group_N = np.repeat(np.arange(groups), size)
    return (rng.random(len(group_N)) < share_G[group_N]).astype(int), group_N


@pytest.mark.parametrize(
    ("spread", "clustered"), [pytest.param(0, False, marks=pytest.mark.slow), (0.5, True)]
)
def test_the_interval_covers_the_truth_about_as_often_as_it_claims(spread, clustered):
    rng, covered = np.random.default_rng(1), []
    for trial in range(400):
        right_N, group_N = simulated(rng, 50, 6, spread=spread)
        columns = answers(np.ones(300, int), right_N, group_N if clustered else None)
        _, low, high = statistics.accuracy(columns, seed=trial)
        covered.append(low <= 0.6 <= high)
    # 0.95 ± 0.011 (one standard error of 400 trials)
    assert 0.91 < np.mean(covered) < 0.985


def test_groups_that_are_ignored_give_intervals_that_are_too_narrow():
    rng, covered = np.random.default_rng(1), []
    for trial in range(200):
        right_N, _ = simulated(rng, 50, 6, spread=0.5)
        _, low, high = statistics.accuracy(answers(np.ones(300, int), right_N), seed=trial)
        covered.append(low <= 0.6 <= high)
    assert np.mean(covered) < 0.85


@pytest.mark.parametrize("sizes", ["equal", "uneven"])
def test_the_cluster_bootstrap_beside_scipy(sizes):
    rng = np.random.default_rng(4)
    right_N, group_N = simulated(rng, 30, 7, spread=0.4)
    if sizes == "uneven":
        keep_N = rng.random(210) < 0.1 + group_N / 35
        right_N, group_N = right_N[keep_N], np.unique(group_N[keep_N], return_inverse=True)[1]
    right_G, n_G = np.bincount(group_N, right_N), np.bincount(group_N)
    expected = stats.bootstrap(
        (right_G, n_G),
        lambda right, n, axis: right.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        rng=rng,
    ).confidence_interval
    result = statistics.accuracy(answers(np.ones(len(right_N), int), right_N, group_N))
    assert result.value == right_N.mean()
    assert list(result[1:]) == pytest.approx(list(expected), abs=0.006)


def test_groups_of_one_question_are_as_no_groups():
    rng = np.random.default_rng(7)
    gold, prediction, group = rng.integers(0, 3, 90), rng.integers(0, 3, 90), rng.permutation(90)
    for score in (statistics.accuracy, statistics.macro_f1):
        assert score(answers(gold, prediction, group)) == score(answers(gold, prediction))
    first, second = (
        [*items_of(gold, p, groups)] for p, groups in ((prediction, group), (gold, None))
    )
    result = statistics.compare(first, second)
    alone = statistics.compare(items_of(gold, prediction), second)
    assert result[:-1] == alone[:-1]
    assert (alone.test, result.test) == ("McNemar's exact test", "exact permutation test of groups")


def test_macro_f1_by_hand():
    # F1: class 0 has TP 2, FP 1, FN 1: 2/3; class 1 TP 1, FP 1, FN 1: 1/2; class 2 none: 0.
    expected = (2 / 3 + 1 / 2) / 3
    assert statistics.macro_f1(answers(GOLD, PREDICTION)).value == pytest.approx(expected)
    # A class that is only predicted counts, with F1 0; one that never occurs does not.
    assert statistics.macro_f1(answers([0, 0], [0, 3])).value == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_macro_f1_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    gold, prediction = rng.integers(0, 4, 30), rng.integers(1, 6, 30)
    value = statistics.macro_f1(answers(gold, prediction)).value
    assert value == pytest.approx(brute_f1(gold.tolist(), prediction.tolist()))


def test_macro_f1_as_scikit_learn_computes_it():
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with scikit-learn")
    rng = np.random.default_rng(5)
    gold, prediction = rng.integers(0, 5, 200), rng.integers(0, 6, 200)
    expected = metrics.f1_score(gold, prediction, average="macro")
    assert statistics.macro_f1(answers(gold, prediction)).value == pytest.approx(expected)


@pytest.mark.parametrize("groups", [60, 12])
@pytest.mark.parametrize("cells", [statistics.CELLS, 100])
def test_the_interval_of_macro_f1_is_that_of_sampled_questions(groups, cells, monkeypatch):
    monkeypatch.setattr(statistics, "CELLS", cells)
    rng = np.random.default_rng(3)
    gold = rng.integers(0, 3, 60)
    prediction = np.where(rng.random(60) < 0.5, gold, rng.integers(0, 3, 60))
    group = np.arange(60) % groups
    of_group = [np.flatnonzero(group == one) for one in range(groups)]
    resampled = []
    for picked in rng.integers(0, groups, (2000, groups)):
        rows = np.concatenate([of_group[one] for one in picked])
        resampled.append(brute_f1(gold[rows].tolist(), prediction[rows].tolist()))
    _, low, high = statistics.macro_f1(answers(gold, prediction, None if groups == 60 else group))
    assert [low, high] == pytest.approx(np.quantile(resampled, [0.025, 0.975]).tolist(), abs=0.02)


def test_reliability_and_calibration_by_hand():
    # Confidences 0.6 (twice, one right), 0.7 (wrong) and 0.95 (right); 0.6 closes its bin.
    records = [item("a", 0, 0), item("b", 1, 0), item("c", 1, 0, top=0.7)]
    records.append(item("d", 2, 2, options=5, top=0.95))
    bins = statistics.reliability(statistics.columns(records))
    assert [one["n"] for one in bins] == [0, 0, 0, 0, 0, 2, 1, 0, 0, 1]
    assert list(bins[5].values()) == [0.5, 0.6, 2, pytest.approx(0.6), 0.5]
    assert list(bins[0].values()) == [0.0, 0.1, 0, None, None]
    expected = (2 * 0.1 + 0.7 + 0.05) / 4
    assert statistics.calibration_error(bins) == pytest.approx(expected)


def test_brier_with_mixed_numbers_of_options():
    rows = [np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.9])]
    columns = answers([0, 0], [0, 1])._replace(probabilities=rows)
    # (0.5 - 1)² + 0.3² + 0.2² = 0.38 and 0.9² + 0.9² = 1.62
    assert statistics.brier_score(columns) == pytest.approx((0.38 + 1.62) / 2)


@pytest.mark.parametrize(
    "pair", [(1, 0), (5, 1), (1, 5), (7, 7), (30, 12), (900, 1000), (5100, 4900), (4000, 0)]
)
def test_the_paired_test_of_questions_is_mcnemars_exact_one(pair):
    gain_N = np.array([1] * pair[0] + [-1] * pair[1] + [0] * 5)
    expected = stats.binomtest(pair[0], sum(pair)).pvalue
    assert statistics.paired_test(gain_N) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_equal_answers_have_p_1():
    assert statistics.paired_test(np.zeros(9, int)) == 1
    assert statistics.paired_test(np.zeros(9, int), np.arange(9) // 2) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_paired_test_of_groups_beside_scipy(seed):
    rng = np.random.default_rng(seed)
    group_N = np.repeat(np.arange(8), rng.integers(1, 9, 8))
    gain_N = rng.choice([-1, 0, 1], len(group_N), p=[0.1, 0.5, 0.4])
    expected = stats.permutation_test(
        (np.bincount(group_N, gain_N),),
        lambda gain, axis: gain.sum(axis=axis),
        permutation_type="samples",  # of one sample: all 2^8 signs
        vectorized=True,
    )
    assert len(expected.null_distribution) == 2**8
    assert statistics.paired_test(gain_N, group_N) == pytest.approx(expected.pvalue)


@pytest.mark.slow
def test_the_paired_test_of_groups_rejects_equal_models_as_often_as_it_claims():
    rng, clustered, single = np.random.default_rng(2), [], []
    for _ in range(400):  # of 24 groups each is answered better by one of two equal models
        better_G = rng.choice([0.15, 0.6], 24)
        first_N, second_N = (rng.random(144) < np.repeat(p, 6) for p in (better_G, 0.75 - better_G))
        gain_N = first_N.astype(int) - second_N
        clustered.append(statistics.paired_test(gain_N, np.repeat(np.arange(24), 6)) < 0.05)
        single.append(statistics.paired_test(gain_N) < 0.05)
    assert 0.02 < np.mean(clustered) < 0.085
    assert np.mean(single) > 0.15


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
    expected = stats.binomtest(result.only_first, result.only_first + result.only_second).pvalue
    assert result.p_value == pytest.approx(expected)
    resampled = gain[rng.integers(0, 80, (4000, 80))].mean(axis=1)
    expected = np.quantile(resampled, [0.025, 0.975]).tolist()
    assert list(result.difference[1:]) == pytest.approx(expected, abs=0.02)
    same = statistics.compare(items, items)
    assert same.difference == (0, 0, 0)
    assert same.p_value == 1


def test_comparison_by_groups():
    group = np.arange(60) // 10
    first, second = np.zeros(60, int), np.where(group < 3, 1, 0)  # all of 3 groups of 6
    gold = np.zeros(60, int)
    result = statistics.compare(items_of(gold, first, group), items_of(gold, second))
    assert result.p_value == 0.25  # 2 of 2³ signs
    assert result.difference.value == 0.5
    # Groups gained of 6: binomial.
    expected = (stats.binom.ppf([0.025, 0.975], 6, 0.5) / 6).tolist()
    assert list(result.difference[1:]) == expected


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
    with pytest.raises(ValueError, match="expected at least one question"):
        statistics.columns([])
    with pytest.raises(ValueError, match="more than one question has the id 'a'"):
        statistics.columns([one, item("b", 0, 0), one])
    with pytest.raises(ValueError, match="an item has no 'scores'; its fields are id, gold"):
        statistics.columns([{k: v for k, v in one.items() if k != "scores"}])
    with pytest.raises(ValueError, match="1 ids are only in the first and 2 only in the second"):
        statistics.compare([one], [item("b", 0, 0), item("c", 0, 0)])
    with pytest.raises(ValueError, match="1 gold labels differ, as of 'a'"):
        statistics.compare([one], [item("a", 1, 0)])
    with pytest.raises(ValueError, match="1 of 2 questions have no group; fix: give all or none"):
        statistics.columns([one, {**item("b", 0, 0), "group": "g"}])


@pytest.mark.slow
def test_the_interval_over_seeds_covers_the_mean_of_all_seeds(monkeypatch):
    """Each seed has a shift of its own; intervals of one seed's questions miss the mean."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1_000)  # enough for coverage over 200 trials
    rng, covered, of_first = np.random.default_rng(3), [], []
    for trial in range(200):
        shares = np.clip(0.6 + 0.1 * rng.normal(size=8), 0, 1)
        hard_N = rng.random(150) < 0.3
        right = [(rng.random(150) < share) & ~hard_N for share in shares]
        columns = [
            answers(np.ones(150, int), one.astype(int))._replace(ids=[*range(150)]) for one in right
        ]
        value, low, high = statistics.accuracy(*columns, seed=trial)
        assert value == pytest.approx(np.mean(right))
        covered.append(low <= 0.6 * 0.7 <= high)
        _, low, high = statistics.accuracy(columns[0], seed=trial)
        of_first.append(low <= 0.6 * 0.7 <= high)
    assert 0.9 < np.mean(covered) <= 1
    assert np.mean(of_first) < 0.85


def test_seeds_are_resampled_as_by_brute_force():
    rng = np.random.default_rng(5)
    right_NxS = rng.random((40, 3)) < [0.4, 0.6, 0.8]
    columns = [
        answers(np.ones(40, int), one.astype(int))._replace(ids=[*range(40)]) for one in right_NxS.T
    ]
    result = statistics.accuracy(*columns)
    resampled = [
        right_NxS[rng.integers(0, 40, 40)][:, rng.integers(0, 3, 3)].mean() for _ in range(20_000)
    ]
    expected = np.quantile(resampled, [0.025, 0.975]).tolist()
    assert list(result[1:]) == pytest.approx(expected, abs=0.015)


def test_results_on_other_questions_are_refused():
    """The same ids and gold labels do not make the same questions."""
    one = item("a", 0, 0, content="0123")
    assert statistics.compare([one], [{**one}]).compared == "ids, gold labels, options and content"
    old = {k: v for k, v in one.items() if k != "content"}
    assert statistics.compare([one], [old]).compared == "ids, gold labels, options"
    with pytest.raises(ValueError, match="of other questions: 1 question texts differ, as of 'a'"):
        statistics.compare([one], [{**one, "content": "0124"}])
    with pytest.raises(ValueError, match="of other questions: 1 lists of options differ"):
        statistics.compare([one], [{**old, "options": ["other", *one["options"][1:]]}])


def test_the_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(3).gamma(2.0, size=200)
    interval = statistics.mean(values)
    options = {"method": "percentile", "n_resamples": 10_000, "rng": 0}
    expected = stats.bootstrap((values,), np.mean, **options).confidence_interval
    assert interval.value == pytest.approx(values.mean())
    assert interval[1:] == pytest.approx([*expected], abs=0.1 * values.std() / 200**0.5)
    pairs = np.repeat(np.arange(100), 2)
    doubled = statistics.mean(np.repeat(values[:100], 2), group_N=pairs)
    alone = statistics.mean(values[:100])
    assert doubled == pytest.approx(alone)
