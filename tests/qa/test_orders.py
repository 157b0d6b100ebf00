"""orders.py: the bias by hand, and questions shown in other orders."""

import numpy as np
import pytest

from biomedlm_jax.qa.orders import bias_over_orders, position_bias
from biomedlm_jax.qa.questions import Question


def test_position_bias_by_hand():
    # Two questions of three options; the second order is reversed. All answers are the first place.
    orders = [[[0, 1, 2]] * 2, [[2, 1, 0]] * 2]
    predicted, gold = np.zeros((2, 2), int), np.array([[0, 1], [2, 1]])
    figures = position_bias(predicted, gold, orders)
    assert figures["orders"] == 2
    assert figures["accuracies"] == [0.5, 0.0]
    assert figures["accuracy"] == 0.25
    assert figures["consistent"] == 0
    assert figures["predicted_positions"] == [1, 0, 0]
    assert figures["gold_positions"] == [0.25, 0.5, 0.25]
    assert figures["bias"] == pytest.approx(0.75)
    right = position_bias(gold, gold, orders)
    assert (right["bias"], right["consistent"], right["accuracy"]) == (0, 1, 1)


def test_every_order_shows_the_same_options_with_the_right_one_among_them():
    questions = [Question(str(n), f"{n}?", ("w", "x", "y", "z"), n % 4) for n in range(40)]
    shown = []

    def answer(others):
        shown.extend(others)
        return {"letter": [{"prediction": one.label, "gold": one.label} for one in others]}

    items = answer(questions)["letter"]
    figures = bias_over_orders(questions, items, 3, answer, way="letter")
    assert (figures["accuracy"], figures["consistent"], figures["bias"]) == (1, 1, 0)
    for one, original in zip(shown, questions * 3, strict=True):
        assert sorted(one.options) == sorted(original.options)
        assert one.options[one.label] == original.options[original.label]
    orders = {one.options for one in shown if one.id == "0"}
    assert len(orders) > 1
