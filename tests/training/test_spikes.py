import json
import math

import numpy as np
import pytest

from biomedlm_jax.training.spikes import LAG, LEAST, WINDOW, SpikeDetector

LOSSES = np.random.default_rng(0).normal(3, 0.1, 400).tolist()


def limits(losses, *, ahead: int = 0, deviations: float = 6.0) -> list[float]:
    """The limit of every step, if the losses of the last `ahead` steps are not yet known."""
    detector, result = SpikeDetector(deviations), []
    for step in range(len(losses)):
        known = max(0, step - ahead)
        result.append(detector.limit(unread=step - known))
        if step >= ahead:
            detector.add(losses[known])
    return result


def test_the_limit_is_mean_and_deviations_of_the_losses_before():
    got = limits(LOSSES)
    for index in (LEAST + LAG - 1, 100, 399):  # of steps, counted from 0
        window = LOSSES[max(0, index - LAG + 1 - WINDOW) : index - LAG + 1]
        assert got[index] == pytest.approx(np.mean(window) + 6 * np.std(window), rel=1e-12)
    assert len(window) == WINDOW


def test_there_is_no_limit_before_enough_losses():
    got = limits(LOSSES)
    first = LEAST + LAG - 1
    assert got[:first] == [math.inf] * first
    assert all(map(math.isfinite, got[first:]))


def test_the_limit_does_not_depend_on_how_many_steps_run_ahead():
    assert limits(LOSSES, ahead=1) == limits(LOSSES)


@pytest.mark.parametrize("at", [1, 5, 33, 34, 130, 131, 300])
def test_a_resumed_run_has_the_same_limits(at):
    detector = SpikeDetector(6.0)
    for loss in LOSSES[:at]:
        detector.add(loss)
    resumed, got = SpikeDetector(6.0, json.loads(json.dumps(detector.losses()))), []
    for loss in LOSSES[at:]:
        got.append(resumed.limit())
        resumed.add(loss)
    assert got == limits(LOSSES)[at:]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_changes_no_limit_much(bad):
    usual = limits(LOSSES)
    changed = limits([*LOSSES[:200], bad, *LOSSES[201:]])
    np.testing.assert_allclose(changed[40:], usual[40:], atol=0.1)
    assert all(map(math.isfinite, SpikeDetector(6.0, [1.0]).losses()))
    detector = SpikeDetector(6.0)
    detector.add(bad)  # the first loss of all
    assert detector.losses() == [0.0] or math.isfinite(detector.losses()[0])


@pytest.mark.parametrize("start", [LEAST + LAG, 200])
def test_one_spike_does_not_hide_those_after_it(start):
    losses = LOSSES.copy()
    losses[start : start + 4] = [1000.0] * 4
    got = limits(losses)
    spikes = [loss > limit for loss, limit in zip(losses, got, strict=True)]
    assert [i for i, spike in enumerate(spikes) if spike] == [*range(start, start + 4)]


def test_a_higher_level_that_stays_is_no_spike_for_ever():
    got = limits([*LOSSES[:200], *(loss + 3 for loss in LOSSES[200:])])
    assert got[200] < 5
    assert got[260] > 7
