import numpy as np
import pytest

from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.longform.examples import Example
from biomedlm_jax.longform.rows import (
    Limits,
    Packed,
    add_tokens,
    encode,
    encode_source,
    lay_out,
    pack,
)

TEXTS = ["the kinase binds the receptor", "a trial of the drug", "renal tissue was examined"]


@pytest.fixture
def tokenizer():
    return train_tokenizer(iter(TEXTS * 9), vocab_size=280)


def test_added_tokens_follow_the_end_of_text(tokenizer):
    assert add_tokens(tokenizer) == 2
    assert add_tokens(tokenizer) == 0
    assert tokenizer.token_to_id("[PAD]") == 280
    assert tokenizer.token_to_id("<|startoftext|>") == 281


def test_a_text_is_source_separator_target_end(tokenizer):
    add_tokens(tokenizer)
    limits = Limits(source=4, target=3, row=32)
    ids, before = encode(tokenizer, Example(TEXTS[0] * 3, TEXTS[1] * 3, ""), limits)
    source, target = (tokenizer.encode(t * 3).ids for t in TEXTS[:2])
    assert ids == [*source[:4], 281, *target[:3], 279]
    assert before == 5
    assert encode_source(tokenizer, TEXTS[0] * 3, limits) == ids[:5]


def test_rows_are_full_and_hold_every_text_once():
    lengths = np.random.default_rng(0).integers(2, 60, 200).tolist()
    rows = pack(lengths, 64)
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    assert sum(lengths) / (64 * len(rows)) > 0.95


def test_weights_stand_before_the_targets_tokens():
    texts = [([5, 6, 9, 7, 8, 1], 3), ([4, 9, 2, 1], 2)]
    batch = lay_out(texts, [[0, 1]], batch_size=2, length=12, pad=0)
    assert batch.tokens[0].tolist() == [5, 6, 9, 7, 8, 1, 4, 9, 2, 1, 0, 0]
    assert batch.segments[0].tolist() == [1] * 6 + [2] * 4 + [0, 0]
    assert batch.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 0]
    assert batch.weights[0].tolist() == [0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0]
    assert not batch.weights[1].any()


def test_every_epoch_has_all_rows_in_an_order_of_its_own():
    texts = [([i, i, 9, i, 99], 3) for i in range(7)]
    packed = Packed(texts, length=5, batch_size=2, pad=0)
    assert packed.batches == 4

    def first_ids(batches):
        return [int(row[0]) for batch in batches for row in batch.tokens]

    assert first_ids(packed.batch(i) for i in range(4)) == [0, 1, 2, 3, 4, 5, 6, 0]
    epochs = [first_ids(packed.shuffled(4 * e + i, seed=3) for i in range(4)) for e in range(3)]
    assert all(sorted(epoch) == [0, 0, 1, 2, 3, 4, 5, 6] for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    # By the step alone: in any process, whatever it did before.
    again = Packed(texts, length=5, batch_size=2, pad=0).shuffled(6, seed=3)
    np.testing.assert_array_equal(again.tokens, packed.shuffled(6, seed=3).tokens)
    assert (packed.shuffled(6, seed=4).tokens != again.tokens).any()


def test_limits_that_cannot_be():
    with pytest.raises(ValueError, match="1024 tokens"):
        Limits(source=511, target=511, row=1023)
