"""disagreements(): the questions that a model and its base answer differently."""

from collections.abc import Iterable, Sequence
from typing import Any

from biomedlm_jax.qa.questions import Question
from biomedlm_jax.qa.statistics import Item

LISTED = 20  # questions of each kind that a report has with their texts
KINDS = {
    "only_model": "Only the model is right",
    "only_base": "Only the base is right",
    "both_wrong": "Both are wrong, with different answers",
}


def disagreements(
    of_model: Sequence[Item], of_base: Sequence[Item], questions: Iterable[Question]
) -> dict[str, dict[str, Any]]:
    """Return, for each of KINDS, the number of such questions `n` and the first LISTED of them.

    Both have answered the same questions, in any order. A listed one has the index of the `gold`
    option and of each answer, `model` and `base`, and its texts, where `questions` has them.
    """
    base = {item["id"]: item for item in of_base}
    texts = {one.id: {"question": one.question, "context": one.context} for one in questions}
    result: dict[str, dict[str, Any]] = {kind: {"n": 0, "listed": []} for kind in KINDS}
    for item in of_model:
        gold, ours, theirs = item["gold"], item["prediction"], base[item["id"]]["prediction"]
        if ours == theirs:
            continue
        right = {ours: "only_model", theirs: "only_base"}
        of_kind = result[right.get(gold, "both_wrong")]
        of_kind["n"] += 1
        if of_kind["n"] <= LISTED:
            answers = {"gold": int(gold), "model": int(ours), "base": int(theirs)}
            kept = {name: item.get(name) for name in ("id", "subject", "options")}
            of_kind["listed"].append({**kept, **answers, **texts.get(item["id"], {})})
    return result
