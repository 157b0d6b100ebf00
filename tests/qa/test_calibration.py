"""calibration.py against made truth: known temperatures and curves by hand."""

import numpy as np
import pytest
from cases import mostly_slow
from scipy.special import log_softmax, softmax

from biomedlm_jax.qa import calibration

RNG = np.random.default_rng(0)


def sampled(n, temperature):
    """Answers whose gold labels are sampled from the probabilities at a known temperature."""
    scores = RNG.normal(size=(n, 4)) * 3
    truth = softmax(scores / temperature, axis=1)
    gold = np.array([RNG.choice(4, p=row) for row in truth])
    stated = softmax(scores, axis=1)
    return [
        {
            "id": f"q{k}",
            "gold": int(gold[k]),
            "prediction": int(stated[k].argmax()),
            "scores": np.log(stated[k]).tolist(),
            "probabilities": stated[k].tolist(),
            "options": list("abcd"),
            "truncated": False,
        }
        for k in range(n)
    ]


@pytest.mark.parametrize("temperature", mostly_slow([0.5, 1.0, 2.5], [2.5]))
def test_the_temperature_is_that_of_the_truth(temperature):
    items = sampled(4000, temperature)
    rows = [np.array(item["probabilities"]) for item in items]
    gold = np.array([item["gold"] for item in items])
    fitted = calibration.fit_temperature(rows, gold)
    assert fitted == pytest.approx(temperature, rel=0.08)
    grid = np.exp(np.linspace(-2, 2, 400))
    losses = [-log_softmax(np.log(rows) / t, axis=1)[range(4000), gold].mean() for t in grid]
    assert fitted == pytest.approx(grid[np.argmin(losses)], rel=0.02)


def test_scaling_mends_overconfident_answers_and_changes_no_prediction():
    dev, test = sampled(3000, 2.5), sampled(3000, 2.5)
    chosen = calibration.calibrate(dev)
    figures = calibration.calibrated_metrics(chosen, test)
    raw = calibration.calibrated_metrics(chosen._replace(temperature=1.0), test)
    assert raw["ece"] > 0.2
    assert figures["ece"] < 0.03
    assert figures["brier"] < raw["brier"]
    # Of calibrated answers the threshold keeps about the risk that it had on dev.
    assert figures["accuracy_of_given"] == pytest.approx(0.8, abs=0.04)
    assert 0 < figures["coverage"] < 1


def test_the_curve_by_hand():
    confidence, right = np.array([0.9, 0.5, 0.7, 0.5, 0.8]), np.array([1, 0, 0, 1, 1])
    curve = calibration.risk_coverage(confidence, right)
    assert [one["threshold"] for one in curve] == [0.9, 0.8, 0.7, 0.5]
    assert [one["coverage"] for one in curve] == pytest.approx([0.2, 0.4, 0.6, 1])
    assert [one["risk"] for one in curve] == pytest.approx([0, 0, 1 / 3, 2 / 5])
    assert calibration.aurc(curve) == pytest.approx(0.2 * 1 / 3 + 0.4 * 2 / 5)
    assert [one["coverage"] for one in calibration.decile_points(curve)] == [0.2, 0.4, 0.6, 1]


def test_the_threshold_gives_the_largest_coverage_of_a_risk():
    items = sampled(400, 1.0)
    for risk in (0.1, 0.3):
        chosen = calibration.calibrate(items, risk=risk)
        rows = [np.array(item["probabilities"]) for item in items]
        confident = np.array(
            [row.max() for row in calibration.apply_temperature(rows, chosen.temperature)]
        )
        right = np.array([item["prediction"] == item["gold"] for item in items])
        coverages = {
            t: (confident >= t).mean()
            for t in confident
            if 1 - right[confident >= t].mean() <= risk
        }
        assert coverages[chosen.threshold] == max(coverages.values())


def test_a_temperature_at_the_end_of_the_search_is_marked():
    sure = sampled(50, 1.0)
    right = [{**one, "gold": one["prediction"]} for one in sure]  # the colder the better
    wrong = [{**one, "gold": int(np.argmin(one["scores"]))} for one in sure]
    for items, temperature in ((right, 0.01), (wrong, 100)):
        chosen = calibration.calibrate(items)
        assert chosen.temperature == pytest.approx(temperature, rel=1e-3)
        assert chosen.at_limit
        assert calibration.calibrated_metrics(chosen, sure)["at_limit"]
    assert not calibration.calibrate(sampled(400, 1.0)).at_limit


def test_no_threshold_is_enough():
    items = [{**one, "gold": (one["prediction"] + 1) % 4} for one in sampled(20, 1.0)]
    chosen = calibration.calibrate(items, risk=0.1)
    assert chosen.threshold is None
    assert calibration.calibrated_metrics(chosen, items)["coverage"] == 0
    assert calibration.calibrated_metrics(chosen, items)["accuracy_of_given"] is None


def test_bad_input():
    items = [{**one, "probabilities": None} for one in sampled(5, 1.0)]
    with pytest.raises(ValueError, match="scores are no probabilities"):
        calibration.calibrate(items)
    with pytest.raises(ValueError, match="risk=2"):
        calibration.calibrate(sampled(5, 1.0), risk=2)
