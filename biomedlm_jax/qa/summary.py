"""The summary of a set of answered questions: everything that its report prints."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from biomedlm_jax.qa import calibration, statistics
from biomedlm_jax.qa.exclusions import Exclusions, score_without
from biomedlm_jax.qa.questions import Question
from biomedlm_jax.qa.statistics import Item

SCORES = (
    *("groups", "accuracy", "majority_class", "gold_positions", "macro_f1", "subjects"),
    *("subject_mean", "ece", "brier", "reliability", "risk_coverage", "aurc", "seeds"),
    *("confusion", "worst"),
)
WORST = 20  # wrong answers that a summary has with their texts


def summarise(
    *seeds: Sequence[Item],
    name: str,
    what: str = "this model",
    official: int | None = None,
    published: Mapping[str, float] | None = None,
    published_split: str = "",
    official_subjects: int | None = None,
    with_macro_f1: bool = False,
    baseline: Sequence[Sequence[Item]] = (),
    baseline_name: str = "baseline",
    exclusions: Exclusions | None = None,
    skipped: Mapping[str, Mapping] | None = None,
    provenance: Mapping | None = None,
    uses: Sequence[str] = (),
    calibrated: Mapping | None = None,
    shuffled: Mapping | None = None,
    questions: Iterable[Question] = (),
    seed: int = 0,
) -> dict:
    """Return everything that the report prints, as one dict that JSON can hold.

    Args:
      seeds: the results of every seed. Figures are means; reliability, risk_coverage, confusion,
        worst and the truncated questions are the first seed's.
      name: the task; `what` is the model and mode.
      official: the number of questions of the split as published.
      published: percentages on `published_split`.
      official_subjects: the number of subjects of the whole set.
      baseline: the results of every seed of another model.
      exclusions: questions to leave out of a second score.
      skipped: what was read but not scored: tables of reasons with places or counts.
      provenance: what the result is of, as `identity` makes it.
      uses: what these questions were in training: "train", "dev" (it chose the checkpoint).
      calibrated: figures of `calibration.apply`, with the dev report's name.
      shuffled: the figures of `orders.position_bias`.
      questions: those of the items, for the texts of the worst answers.
      seed: of the bootstrap.

    Items without gold labels give the number of predictions of each option and no score.
    """
    items = seeds[0]
    labelled = any(item["gold"] is not None for item in items)
    listed: dict[str, Any] = {}
    if labelled:
        texts = {one.id: {"question": one.question, "context": one.context} for one in questions}
        listed = {"worst": [{**one, **texts.get(one["id"], {})} for one in worst_answers(items)]}
        listed["confusion"] = confusion(items) if with_macro_f1 else None
    return {
        "task": name,
        "what": what,
        "n": len(items),
        "official_n": official,
        "truncated": sum(bool(item["truncated"]) for item in items),
        "truncated_ids": [item["id"] for item in items if item["truncated"]],
        "indistinct_ids": [item["id"] for item in items if item.get("indistinct")],
        "skipped": dict(skipped or {}),
        "chance": float(np.mean([1 / len(item["options"]) for item in items])),
        "predicted_positions": _shares((one["prediction"] for of in seeds for one in of), items),
        **dict.fromkeys(SCORES),
        **(_scores(seeds, with_macro_f1=with_macro_f1, seed=seed) if labelled else {}),
        **listed,
        "without_excluded": score_without(seeds, exclusions, with_macro_f1=with_macro_f1, seed=seed)
        if exclusions
        else None,
        "chose_checkpoint": "dev" in uses,
        "trained_on": "train" in uses,
        "calibrated": calibrated,
        "shuffled": shuffled,
        "published_percent": dict(published or {}),
        "published_split": published_split,
        "official_subjects": official_subjects,
        "baseline": _versus(seeds, baseline, baseline_name, seed) if baseline else None,
        "bootstrap": {"level": statistics.LEVEL, "resamples": statistics.RESAMPLES, "seed": seed},
        "provenance": dict(provenance or {}),
    }


def _scores(seeds: Sequence[Sequence[Item]], *, with_macro_f1: bool, seed: int) -> dict:
    """Return the entries of SCORES; calibration is None where scores are no probabilities."""
    every = [*map(statistics.columns, seeds)]
    answers = every[0]
    stated = every if answers.probabilities else []
    bins = [*map(statistics.reliability, stated)]
    curves = [
        calibration.risk_coverage(np.array([row.max() for row in one.probabilities]), one.right_N)
        for one in stated
    ]
    subjects = _by_subject(seeds, seed=seed)
    return {
        "groups": None if answers.group_N is None else int(answers.group_N.max()) + 1,
        "accuracy": statistics.accuracy(*every, seed=seed)._asdict(),
        "majority_class": float(np.bincount(answers.gold_N).max() / len(answers.ids)),
        "gold_positions": _shares(answers.gold_N.tolist(), seeds[0]),
        "macro_f1": statistics.macro_f1(*every, seed=seed)._asdict() if with_macro_f1 else None,
        "ece": _mean(map(statistics.calibration_error, bins)),
        "brier": _mean(map(statistics.brier_score, stated)),
        "reliability": bins[0] if bins else None,
        "risk_coverage": calibration.decile_points(curves[0]) if curves else None,
        "aurc": _mean(map(calibration.aurc, curves)),
        "subjects": subjects,
        "subject_mean": float(np.mean([one["value"] for one in subjects.values()]))
        if len(subjects) > 1
        else None,
        "seeds": _over_seeds(every) if len(every) > 1 else None,
    }


def confusion(items: Sequence[Item]) -> dict:
    """Return the classes and, by gold class, the number of predictions of each class."""
    classes = [*map(str, items[0]["options"])]
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, ([one["gold"] for one in items], [one["prediction"] for one in items]), 1)
    return {"classes": classes, "counts": counts.tolist()}


def worst_answers(items: Sequence[Item]) -> list[dict]:
    """Return the most confident wrong answers, the worst first, WORST at most.

    `confidence` is the probability of the answer, or how far its score is above the gold option's
    where scores are no probabilities.
    """
    wrong: list[dict[str, Any]] = []
    for item in items:
        answer, gold, stated = item["prediction"], item["gold"], item["probabilities"]
        if answer != gold:
            scores = [*map(float, item["scores"])]
            sure = stated[answer] if stated is not None else scores[answer] - scores[gold]
            kept = {name: item.get(name) for name in ("id", "subject", "options")}
            kept |= {"gold": int(gold), "prediction": int(answer), "scores": scores}
            probabilities = None if stated is None else [*map(float, stated)]
            wrong.append({**kept, "probabilities": probabilities, "confidence": float(sure)})
    return sorted(wrong, key=lambda one: -one["confidence"])[:WORST]


def _by_subject(seeds: Sequence[Sequence[Item]], *, seed: int) -> dict[str, dict]:
    """Return the number of questions and the accuracy of each subject; {} if none is named."""
    names = {item.get("subject") or "" for item in seeds[0]}
    subjects = {}
    for name in sorted(names if any(names) else ()):
        chosen = [[one for one in items if (one.get("subject") or "") == name] for items in seeds]
        interval = statistics.accuracy(*map(statistics.columns, chosen), seed=seed)
        subjects[name or "(none)"] = {"n": len(chosen[0]), **interval._asdict()}
    return subjects


def _versus(
    seeds: Sequence[Sequence[Item]], baselines: Sequence[Sequence[Item]], name: str, seed: int
) -> dict:
    first, second = ([*map(statistics.columns, one)] for one in (seeds, baselines))
    versus = statistics.compare_seeds(first, second, seed=seed)
    return {**versus._asdict(), "name": name, "difference": versus.difference._asdict()}


def _over_seeds(seeds: Sequence[statistics.Columns]) -> dict:
    """Mean and sample standard deviation (None for one seed) of the accuracy."""
    values = [float(np.mean(one.right_N)) for one in seeds]
    return {**statistics.mean_and_deviation(values), "n": len(values), "values": values}


def _mean(values: Iterable[float]) -> float | None:
    """Return the mean, None without values."""
    of_seeds = [*values]
    return float(np.mean(of_seeds)) if of_seeds else None


def _shares(labels: Iterable[int], items: Sequence[Item]) -> list[float]:
    """Return the share of each option, by its place in the list of options."""
    counts = np.bincount([*labels], minlength=max(len(item["options"]) for item in items))
    return (counts / counts.sum()).tolist()
