"""Orders of the options: whether answers depend on the places of the options."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from biomedlm_jax.qa.questions import Question
from biomedlm_jax.qa.statistics import Item


def random_orders(questions: Sequence[Question], count: int) -> list[list[list[int]]]:
    """Return `count` orders of each question's options: the file's, then random ones."""
    orders = [[[*range(len(one.options))] for one in questions]]
    for seed in range(1, count):
        rng = np.random.default_rng(seed)
        orders.append([rng.permutation(len(one.options)).tolist() for one in questions])
    return orders


def reorder_options(
    questions: Sequence[Question], order: Sequence[Sequence[int]]
) -> list[Question]:
    """Return the questions with their options in another order."""
    return [
        dataclasses.replace(
            one,
            options=tuple(one.options[k] for k in places),
            label=None if one.label is None else places.index(one.label),
        )
        for one, places in zip(questions, order, strict=True)
    ]


def bias_of_seeds(
    answered: Sequence[Sequence[Sequence[Item]]], orders: Sequence[Sequence[Sequence[int]]]
) -> dict:
    """Return the `position_bias` over all answers: `answered[seed][order][question]`."""
    predicted, gold = (
        np.concatenate([[[one[name] for one in items] for items in of] for of in answered], axis=1)
        for name in ("prediction", "gold")
    )
    return position_bias(predicted, gold, [[*order] * len(answered) for order in orders])


def position_bias(
    predicted_KxN: np.ndarray, gold_KxN: np.ndarray, orders: Sequence[Sequence[Sequence[int]]]
) -> dict:
    """Return how answers to N questions depend on the places of the options in K orders.

    `predicted_KxN` and `gold_KxN` are places as shown; `orders[k][n]` lists the option at each
    place. `bias` is the total variation distance between the places that are predicted and those
    that are right: 0 without bias, 1 at most. `consistent` is the share of questions with the same
    option predicted in every order.
    """
    count = max(map(len, orders[0]))
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
