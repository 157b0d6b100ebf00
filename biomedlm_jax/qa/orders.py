"""Orders of the options: whether answers depend on the places of the options."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from biomedlm_jax.qa.questions import Question


def bias_over_orders(
    questions: Sequence[Question],
    items: Sequence[dict],
    count: int,
    answer: Callable[[list[Question]], dict[str, list[dict]]],
    *,
    way: str,
) -> dict:
    """Return the position bias over `count` orders of the options, `items` those of the first."""
    orders = [[list(range(len(question.options))) for question in questions]]
    answered = [items]
    for seed in range(1, count):
        rng = np.random.default_rng(seed)
        orders.append([rng.permutation(len(one.options)).tolist() for one in questions])
        shown = [
            dataclasses.replace(
                one,
                options=tuple(one.options[k] for k in order),
                label=None if one.label is None else order.index(one.label),
            )
            for one, order in zip(questions, orders[-1], strict=True)
        ]
        answered.append(answer(shown)[way])
    predicted, gold = (
        np.array([[item[name] for item in of_order] for of_order in answered])
        for name in ("prediction", "gold")
    )
    return position_bias(predicted, gold, orders)


def position_bias(
    predicted_KxN: np.ndarray, gold_KxN: np.ndarray, orders: Sequence[Sequence[Sequence[int]]]
) -> dict:
    """Return how answers to N questions depend on the places of the options in K orders.

    `predicted_KxN` and `gold_KxN` are places as shown; `orders[k][n]` lists the option at each
    place. `bias` is the total variation distance between the places that are predicted and those
    that are right: 0 without bias, 1 at most. `consistent` is the share of questions with the same
    option predicted in every order.
    """
    count = 1 + int(max(predicted_KxN.max(), gold_KxN.max()))
    predicted, gold = (
        np.bincount(one.ravel(), minlength=count) / one.size for one in (predicted_KxN, gold_KxN)
    )
    options_KxN = np.array(
        [
            [of_one[place] for of_one, place in zip(order, places, strict=True)]
            for order, places in zip(orders, predicted_KxN, strict=True)
        ]
    )
    accuracies = (predicted_KxN == gold_KxN).mean(axis=1)
    return {
        "orders": len(orders),
        "accuracy": float(accuracies.mean()),
        "accuracies": accuracies.tolist(),
        "consistent": float((options_KxN == options_KxN[0]).all(axis=0).mean()),
        "predicted_positions": predicted.tolist(),
        "gold_positions": gold.tolist(),
        "bias": float(np.abs(predicted - gold).sum() / 2),
    }
