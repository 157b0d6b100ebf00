"""Confidence: temperature scaling, the risk-coverage curve, and a threshold to abstain below.

A temperature and a threshold are chosen on dev answers and only applied to others.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from biomedlm_jax.errors import InputError
from biomedlm_jax.qa import statistics
from biomedlm_jax.qa.statistics import Item

RISK = 0.2  # share of wrong answers, among those that are given
LIMITS = math.log(0.01), math.log(100)  # of the logarithm of a temperature
TOLERANCE = 1e-3  # the search ends within 1e-5 of a limit


class Calibration(NamedTuple):
    """What is chosen on dev answers."""

    temperature: float
    threshold: float | None  # the least confidence (after the temperature); None: none is enough
    risk: float  # that the threshold keeps on dev
    n: int  # dev answers
    at_limit: bool = False  # the temperature is an end of LIMITS, which is no fit


def calibrate(items: Sequence[Item], *, risk: float = RISK) -> Calibration:
    """Choose a temperature, by the likelihood of the gold labels, and a threshold on dev answers.

    The threshold gives the largest coverage at which at most a share `risk` of the answers is
    wrong. Raises InputError for answers without probabilities or gold labels.
    """
    if not 0 <= risk <= 1:
        raise InputError(f"got risk={risk}; expected a share between 0 and 1")
    answers = statistics.columns(items)
    if not answers.probabilities:
        raise InputError("the scores are no probabilities; fix: calibrate another way of scoring")
    temperature = fit_temperature(answers.probabilities, answers.gold_N)
    confidence_N = np.array(
        [row.max() for row in apply_temperature(answers.probabilities, temperature)]
    )
    curve = risk_coverage(confidence_N, answers.right_N)
    kept = [one["threshold"] for one in curve if one["risk"] <= risk]
    at_limit = min(abs(math.log(temperature) - end) for end in LIMITS) < TOLERANCE
    return Calibration(temperature, min(kept, default=None), risk, len(items), at_limit)


def fit_temperature(probabilities: Sequence[np.ndarray], gold_N: np.ndarray) -> float:
    """Return the temperature that minimises the negative log-likelihood (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar  # slow to import

    def loss(log_temperature: float) -> float:
        rows = apply_temperature(probabilities, math.exp(log_temperature))
        likelihoods = [row[gold] for row, gold in zip(rows, gold_N, strict=True)]
        return -float(np.mean(np.log(np.maximum(likelihoods, 1e-300))))

    return math.exp(minimize_scalar(loss, bounds=LIMITS, method="bounded").x)


def apply_temperature(probabilities: Sequence[np.ndarray], temperature: float) -> list[np.ndarray]:
    """Return the probabilities of the scores (their logarithms) divided by a temperature."""
    rows = []
    for row in probabilities:
        logits = np.log(np.maximum(row, 1e-300)) / temperature
        weights = np.exp(logits - logits.max())
        rows.append(weights / weights.sum())
    return rows


def risk_coverage(confidence_N: np.ndarray, right_N: np.ndarray) -> list[dict[str, float]]:
    """Return threshold, coverage and risk for every confidence, from the highest.

    Answers at or above a threshold are given: coverage is their share, risk the share of these
    that is wrong. Answers of one confidence are given together.
    """
    order = np.argsort(-confidence_N, kind="stable")
    falling_N, wrong_N = confidence_N[order], np.cumsum(~right_N[order].astype(bool))
    last = np.flatnonzero(np.append(np.diff(falling_N) != 0, True))
    return [
        {
            "threshold": float(falling_N[n]),
            "coverage": float((n + 1) / len(order)),
            "risk": float(wrong_N[n] / (n + 1)),
        }
        for n in last
    ]


def aurc(curve: Sequence[dict[str, float]]) -> float:
    """Return the area under a risk-coverage curve: the mean risk over the answers (AURC)."""
    steps = np.diff([0.0, *(one["coverage"] for one in curve)])
    return float(np.dot(steps, [one["risk"] for one in curve]))


def decile_points(curve: Sequence[dict[str, float]], *, points: int = 10) -> list[dict[str, float]]:
    """Return the first point at or above each tenth of the coverage."""
    wanted = [(k + 1) / points for k in range(points)]
    picked = [next(one for one in curve if one["coverage"] >= w - 1e-9) for w in wanted]
    return [one for n, one in enumerate(picked) if one not in picked[:n]]


def calibrated_metrics(chosen: Calibration, items: Sequence[Item]) -> dict:
    """Return the figures of other answers with the temperature and the threshold of dev."""
    answers = statistics.columns(items)
    rows = apply_temperature(answers.probabilities, chosen.temperature)
    after = answers._replace(probabilities=rows)
    confidence_N = np.array([row.max() for row in rows])
    limit = math.inf if chosen.threshold is None else chosen.threshold
    given_N = confidence_N >= limit
    return {
        **chosen._asdict(),
        "ece": statistics.calibration_error(statistics.reliability(after)),
        "brier": statistics.brier_score(after),
        "coverage": float(given_N.mean()),
        "accuracy_of_given": float(answers.right_N[given_N].mean()) if given_N.any() else None,
    }
