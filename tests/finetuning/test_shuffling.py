import jax
import numpy as np
import pytest

from biomedlm_jax.finetuning.shuffling import ShuffledQuestions, ShuffledTexts
from biomedlm_jax.qa.packing import Prompt, one_prompt_per_option


def some_prompts(count, seed=0, *, longest=60, options=5):
    """Questions of very unequal lengths, two options or more; the first token is the question."""
    rng = np.random.default_rng(seed)

    def length(longest):
        return int(2 ** rng.uniform(0, np.log2(longest)))

    prompts = [
        Prompt(
            [q % 300, *[7] * length(longest)],
            [[i + 1] * length(longest / 4 + 1) for i in range(2 + q % (options - 1))],
            q,
        )
        for q in range(count)
    ]
    return prompts, [int(rng.integers(len(p.branches))) for p in prompts]


def make(prompts, labels, **changes):
    options = {"batch_size": 8, "multiple": 1, "kind": "choice", "seed": 1, **changes}
    return ShuffledQuestions(prompts, labels, **options)


def answered(batch):
    """(question, option) -> (its tokens with its question's, gold, weight)."""
    entries = {}
    rows = batch.rows
    for b, e in np.argwhere(rows.question_BxE >= 0):
        end = rows.source_BxT[b, rows.slot_BxE[b, e]]
        mine = rows.prompt_BxL[b] == rows.prompt_BxL[b, end]
        if rows.branch_BxL is not None:
            mine &= (rows.branch_BxL[b] == 0) | (rows.branch_BxL[b] == rows.branch_BxL[b, end])
        key = (int(rows.question_BxE[b, e]), int(rows.option_BxE[b, e]))
        assert key not in entries
        gold, weight = int(rows.target_BxE[b, e]), float(batch.weight_BxE[b, e])
        entries[key] = (rows.tokens_BxL[b][mine].tolist(), gold, weight)
    return entries


@pytest.mark.parametrize("apart", [False, True])
def test_every_epoch_has_each_question_once_whole_and_with_its_answer(apart):
    prompts, labels = some_prompts(29)
    data = make(one_prompt_per_option(prompts) if apart else prompts, labels)
    assert data.steps_per_epoch == 4
    orders = []
    for epoch in range(3):
        order = []
        for step in range(4):
            entries = answered(data.batch(4 * epoch + step))
            of_batch = sorted({number for number, _ in entries})
            assert of_batch == list(range(8 if step < 3 else 5))
            for number in of_batch:
                mine = {option: f for (n, option), f in entries.items() if n == number}
                question = mine[0][0][0]
                order.append(question)
                whole = [prompts[question].prefix + b for b in prompts[question].branches]
                assert [mine[i][0] for i in range(len(mine))] == whole
                gold = [mine[i][1] for i in range(len(mine))]
                assert gold == [int(i == labels[question]) for i in range(len(mine))]
                assert {f[2] for f in mine.values()} == {np.float32(1 / len(of_batch))}
        assert sorted(order) == list(range(29))
        orders.append(tuple(order))
    assert len(set(orders)) == 3


def test_a_batch_is_known_by_its_step_and_seed_alone():
    prompts, labels = some_prompts(20)
    forward, backward = make(prompts, labels), make(prompts, labels)
    steps = list(range(7))
    one = {step: forward.batch(step) for step in steps}
    two = {step: backward.batch(step) for step in reversed(steps)}
    for step in steps:
        for a, b in zip(jax.tree.leaves(one[step]), jax.tree.leaves(two[step]), strict=True):
            np.testing.assert_array_equal(a, b)
    other = answered(make(prompts, labels, seed=2).batch(0))
    assert [f[0] for f in other.values()] != [f[0] for f in answered(one[0]).values()]


@pytest.mark.parametrize("longest", [8, 60, 500])
@pytest.mark.parametrize(("batch_size", "multiple"), [(1, 1), (3, 8), (16, 1), (32, 8)])
def test_at_most_four_shapes(longest, batch_size, multiple):
    prompts, labels = some_prompts(100, longest=longest)
    for of_run in (prompts, one_prompt_per_option(prompts)):
        data = make(of_run, labels, batch_size=batch_size, multiple=multiple)
        shapes = set()
        for step in range(3 * data.steps_per_epoch):
            batch = data.batch(step)
            shapes.add(tuple(leaf.shape for leaf in jax.tree.leaves(batch)))
            assert batch.rows.tokens_BxL.shape[0] % multiple == 0
        assert len(shapes) <= 4
        assert data.row_length % 64 == 0


def test_the_longest_questions_in_one_batch_still_have_a_known_shape():
    # Just over half a row each: nothing shares a row, which is as bad as packing can be.
    long = [Prompt([1] * 40, [[2], [3]], q) for q in range(8)]
    short = [Prompt([1], [[2], [3]], q) for q in range(8, 200)]
    data = make(long + short, [0] * 200, seed=0)
    shapes = {data.batch(step).rows.tokens_BxL.shape for step in range(200)}
    assert len(shapes) <= 4


def test_rows_hold_many_questions():
    prompts, labels = some_prompts(100, longest=8)
    data = make(prompts, labels, batch_size=32)
    rows = data.batch(0).rows
    used = (rows.prompt_BxL >= 0).any(axis=1).sum()
    assert used < 32 / 2
    filled = (rows.prompt_BxL >= 0).sum() / rows.prompt_BxL.size
    assert filled * rows.prompt_BxL.size / data.row_length <= used
    tokens = (rows.prompt_BxL >= 0).sum()
    assert 0.5 * tokens < data.tokens_per_step < 2 * tokens


def test_parts_weigh_as_much_as_the_whole():
    prompts, labels = some_prompts(21)
    for step in (0, 2):  # a full batch and the last one
        plain = answered(make(prompts, labels).batch(step))
        parts = answered(make(prompts, labels, parts=4, multiple=4).batch(step))
        for key, (*_, weight) in plain.items():
            np.testing.assert_allclose(parts[key][2], 4 * weight)


def test_a_class_is_taught_by_its_index():
    prompts = [Prompt([q, 5, 6], [[]], q) for q in range(10)]
    labels = [q % 3 for q in range(10)]
    data = make(prompts, labels, kind="classification", batch_size=10)
    entries = answered(data.batch(0)).values()
    assert sorted((f[0][0], f[1]) for f in entries) == list(enumerate(labels))


def test_padding_has_no_weight():
    prompts, labels = some_prompts(9)
    for kind in ("choice", "classification"):
        batch = make(prompts, labels, multiple=8, kind=kind).batch(0)
        padding = batch.rows.question_BxE < 0
        assert padding.any()
        assert not batch.weight_BxE[padding].any()
        assert kind == "classification" or not batch.rows.target_BxE[padding].any()


def test_fewer_questions_than_the_batch():
    prompts, labels = some_prompts(7)
    with pytest.raises(ValueError, match="batch_size=8; expected at most 7"):
        make(prompts, labels)
    assert make(prompts, labels, batch_size=7).steps_per_epoch == 1


def some_texts(count=7):
    return [Prompt([i, 9], [[i, 99]], i) for i in range(count)]


def test_every_epoch_has_each_text_once_in_an_order_of_its_own():
    data = ShuffledTexts(some_texts(), row_length=3, batch_size=2, seed=3)
    assert (data.steps_per_epoch, data.rows, data.tokens, data.targets) == (4, 7, 21, 14)

    def texts(batches):
        rows = [batch.rows for batch in batches]
        return [int(row[0]) for one in rows for row in one.tokens_BxL[one.prompt_BxL[:, 0] >= 0]]

    assert texts(data.in_order(i) for i in range(4)) == list(range(7))
    epochs = [texts(data.batch(4 * e + i) for i in range(4)) for e in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    # By the step and the seed alone, in any process, whatever it did before.
    again = ShuffledTexts(some_texts(), row_length=3, batch_size=2, seed=3).batch(6)
    np.testing.assert_array_equal(again.rows.tokens_BxL, data.batch(6).rows.tokens_BxL)
    other = ShuffledTexts(some_texts(), row_length=3, batch_size=2, seed=4).batch(6)
    assert (again.rows.tokens_BxL != other.rows.tokens_BxL).any()


def test_targets_weigh_the_same_in_every_part():
    data = ShuffledTexts(some_texts(), row_length=6, batch_size=4, parts=2)
    batch = data.batch(0)
    used = batch.rows.question_BxE >= 0
    assert used.sum() == 14
    np.testing.assert_allclose(batch.weight_BxE, used * 2 / 14, rtol=1e-6)
    assert data.in_order(0).weight_BxE.sum() == 14


def masked_texts(count=9, seed=0):
    """Chats of one to three answers: (prompts, masks); a token names its chat and its place."""
    rng = np.random.default_rng(seed)
    prompts, masks = [], []
    for i in range(count):
        mask = [True, True]
        for _ in range(i % 3):
            mask += [False] * int(rng.integers(1, 4)) + [True] * int(rng.integers(1, 3))
        prompts.append(Prompt([100 * i], [[100 * i + 1 + k for k in range(len(mask))]], i))
        masks.append(mask)
    return prompts, masks


def test_only_masked_tokens_are_targets_and_the_others_have_no_entry():
    prompts, masks = masked_texts()
    data = ShuffledTexts(prompts, row_length=20, batch_size=2, masks=masks)
    expected = sorted(
        token
        for prompt, mask in zip(prompts, masks, strict=True)
        for token, learned in zip(prompt.branches[0], mask, strict=True)
        if learned
    )
    targets = []
    for step in range(data.steps_per_epoch):
        batch = data.in_order(step)
        rows, used = batch.rows, batch.weight_BxE > 0
        targets += rows.target_BxE[used].tolist()
        assert rows.target_BxE.shape[1] < len(prompts[0].branches[0]) * 9
        for b, e in np.argwhere(used):
            place = rows.source_BxT[b, rows.slot_BxE[b, e]]
            # Each target is read at the token before it, of the same chat.
            assert rows.tokens_BxL[b, place] == rows.target_BxE[b, e] - 1
            assert rows.question_BxE[b, e] == rows.target_BxE[b, e] // 100
    assert sorted(targets) == expected
    assert data.targets == len(expected)
    batch = data.batch(0)
    np.testing.assert_allclose(batch.weight_BxE.sum(), 1, rtol=1e-6)
    all_learned = [[True] * len(mask) for mask in masks]
    plain = ShuffledTexts(prompts, row_length=20, batch_size=2)
    for a, b in zip(
        jax.tree.leaves(plain.batch(1)),
        jax.tree.leaves(
            ShuffledTexts(prompts, row_length=20, batch_size=2, masks=all_learned).batch(1)
        ),
        strict=True,
    ):
        np.testing.assert_array_equal(a[a >= 0], b[b >= 0][: (a >= 0).sum()])


def test_epochs_have_their_own_prompts_and_no_empty_step():
    prompts = some_texts(40)
    epochs = [range(40), [*range(10), *range(10)], [*range(10, 33)]]
    data = ShuffledTexts(prompts, row_length=6, batch_size=4, epochs=epochs, seed=5)
    assert data.steps_per_epoch == 5
    shapes = set()
    for number, epoch in enumerate(epochs):
        seen = []
        for step in range(5 * number, 5 * number + 5):
            rows = data.batch(step).rows
            shapes.add(tuple(leaf.shape for leaf in jax.tree.leaves(rows)))
            assert (rows.question_BxE >= 0).any()
            seen += rows.question_BxE[(rows.question_BxE >= 0)].tolist()
            assert len(data.chosen(step)) <= 4
        assert sorted(seen) == sorted([*epoch, *epoch])  # two targets each
    assert len(shapes) == 1
    again = ShuffledTexts(prompts, row_length=6, batch_size=4, epochs=epochs, seed=5)
    np.testing.assert_array_equal(again.batch(7).rows.tokens_BxL, data.batch(7).rows.tokens_BxL)


def test_apart_every_prompt_has_a_row():
    prompts, masks = masked_texts()
    data = ShuffledTexts(prompts, row_length=20, batch_size=9, masks=masks, apart=True)
    assert data.rows == 9
    assert (data.in_order(0).rows.prompt_BxL <= 0).all()
