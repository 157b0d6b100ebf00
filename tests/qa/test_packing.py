import numpy as np
import pytest

from biomedlm_jax.qa.packing import (
    LAST,
    TOKENS,
    Prompt,
    batches,
    make_buckets,
    one_prompt_per_option,
    row_lengths,
    size,
)


def some_prompts(count=9, seed=0):
    rng = np.random.default_rng(seed)

    def text(low, high):
        return rng.integers(0, 299, rng.integers(low, high)).tolist()

    return [Prompt(text(3, 40), [text(1, 9) for _ in range(2 + q % 4)], q) for q in range(count)]


def answers(count=9, seed=0):
    """Prompts with one branch each: sources and their targets."""
    return [prompt._replace(branches=prompt.branches[:1]) for prompt in some_prompts(count, seed)]


def test_every_prompt_has_one_row_with_room_for_it():
    prompts = some_prompts(200)
    buckets = make_buckets(prompts, read=TOKENS)
    assert 1 <= len(buckets) <= 4
    placed = [i for bucket in buckets for row in bucket.rows for i in row]
    assert sorted(placed) == list(range(200))
    for bucket in buckets:
        for row in bucket.rows:
            assert sum(size(prompts[i], TOKENS) for i in row) <= bucket.length
    used = sum(size(p, TOKENS) for p in prompts)
    assert used / sum(b.length * len(b.rows) for b in buckets) > 0.9  # little padding


@pytest.mark.parametrize("read", [TOKENS, LAST])
def test_rows_hold_what_the_prompts_say(read):
    prompts = some_prompts(20)
    read_back = {}
    for bucket in make_buckets(prompts, read=read, lengths=[128, 192]):
        for rows in batches(prompts, bucket, batch_size=2, read=read):
            for b, e in np.argwhere(rows.question_BxE >= 0):
                key = int(rows.question_BxE[b, e]), int(rows.option_BxE[b, e])
                place = rows.source_BxT[b, rows.slot_BxE[b, e]]
                seen = rows.prompt_BxL[b] == rows.prompt_BxL[b, place]
                seen &= (rows.branch_BxL[b] == 0) | (
                    rows.branch_BxL[b] == rows.branch_BxL[b, place]
                )
                seen &= np.arange(bucket.length) <= place
                assert rows.positions_BxL[b][seen].tolist() == list(range(seen.sum()))
                past = rows.tokens_BxL[b][seen].tolist()
                read_back.setdefault(key, []).append((past, int(rows.target_BxE[b, e])))
    for prompt in prompts:
        for i, branch in enumerate(prompt.branches):
            whole = prompt.prefix + branch
            expected = [(whole, 0)]
            if read == TOKENS:
                starts = range(len(prompt.prefix), len(whole))
                expected = [(whole[:n], whole[n]) for n in starts]
            assert read_back[prompt.question, i] == expected


def test_a_long_answer_is_a_prompt_with_one_branch():
    prompts = [Prompt([5, 6, 9], [[7, 8, 1]], 0), Prompt([4, 9], [[2, 1]], 1)]
    (bucket,) = make_buckets(prompts, read=TOKENS, lengths=[12])
    (rows,) = batches(prompts, bucket, batch_size=2, read=TOKENS)
    assert rows.branch_BxL is None  # causal attention within a prompt is enough
    assert rows.tokens_BxL[0].tolist() == [5, 6, 9, 7, 8, 4, 9, 2, 0, 0, 0, 0]
    assert rows.prompt_BxL[0].tolist() == [0] * 5 + [1] * 3 + [-1] * 4
    assert rows.positions_BxL[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 0, 0, 0]
    assert rows.target_BxE[0].tolist() == [7, 8, 1, 2, 1, 0, 0, 0]
    places = np.take_along_axis(rows.source_BxT, rows.slot_BxE, 1)[0]
    assert places[:5].tolist() == [2, 3, 4, 6, 7]
    assert rows.question_BxE.tolist() == [[0, 0, 0, 1, 1, -1, -1, -1], [-1] * 8]


def test_branches_are_kept_where_one_prompt_has_several():
    for prompts, branched in ((some_prompts(), True), (answers(), False)):
        for bucket in make_buckets(prompts, read=TOKENS):
            for rows in batches(prompts, bucket, batch_size=1, read=TOKENS):
                assert (rows.branch_BxL is not None) == branched
    assert not make_buckets(one_prompt_per_option(some_prompts()), read=LAST)[0].branched


def test_a_prompt_longer_than_the_longest_row():
    with pytest.raises(ValueError, match=r"got a prompt of 12 tokens .* at most 8"):
        make_buckets([Prompt([1] * 11, [[1, 2]], 0)], read=TOKENS, lengths=[8])


def test_lengths_are_few_and_fit():
    assert row_lengths([3]) == [64]
    assert row_lengths([10, 100, 200, 1000]) == [64, 128, 256, 1024]
