"""orders.py: the bias by hand, and questions shown in other orders."""

import numpy as np
import pytest

from biomedlm_jax.qa.orders import bias_of_seeds, position_bias, random_orders, reorder_options
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
    orders = random_orders(questions, 3)
    assert orders == random_orders(questions, 3)
    assert reorder_options(questions, orders[0]) == questions
    for order in orders:
        for one, original in zip(reorder_options(questions, order), questions, strict=True):
            assert sorted(one.options) == sorted(original.options)
            assert one.options[one.label] == original.options[original.label]
    assert len({str(order) for order in orders}) == 3


def test_the_bias_is_over_the_answers_of_all_seeds():
    """The first seed is right in every order, the second always answers the first place."""
    questions = [Question(str(n), f"{n}?", ("x", "y"), n % 2) for n in range(6)]
    orders = random_orders(questions, 4)
    gold = [[one.label for one in reorder_options(questions, order)] for order in orders]
    right, first = (
        [[{"gold": g, "prediction": p(g)} for g in of_order] for of_order in gold]
        for p in (lambda g: g, lambda g: 0)
    )
    figures = bias_of_seeds([right, first], orders)
    shares = [(1 + np.mean(np.array(of_order) == 0)) / 2 for of_order in gold]
    assert figures["accuracies"] == pytest.approx(shares)
    assert figures["predicted_positions"][0] == pytest.approx(np.mean([shares]))
    assert bias_of_seeds([right], orders)["bias"] == 0
