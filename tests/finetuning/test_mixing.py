import itertools
from collections import Counter

import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.mixing import Share, epoch_examples


def test_an_epoch_has_the_share_of_every_source():
    shares = [Share(10), Share(20, 0.5), Share(4, 2.0), Share(50, 1.0, 5), Share(3, 0.01)]
    assert [share.per_epoch for share in shares] == [10, 10, 8, 5, 1]
    epochs = epoch_examples(shares, epochs=4, seed=1)
    for epoch in epochs:
        assert epoch == sorted(epoch)
        bounds = (0, 10, 30, 34, 84, 87)
        counts = [sum(low <= i < high for i in epoch) for low, high in itertools.pairwise(bounds)]
        assert counts == [10, 10, 8, 5, 1]
        assert {Counter(epoch)[i] for i in range(10)} == {1}
        assert {Counter(epoch)[i] for i in range(30, 34)} == {2}
    # An epoch begins with what the one before left out.
    halves = [{i for i in epoch if 10 <= i < 30} for epoch in epochs]
    assert halves[0] | halves[1] == halves[2] | halves[3] == {*range(10, 30)}
    assert halves[0] != halves[2]
    assert epoch_examples(shares, epochs=4, seed=1) == epochs
    assert epoch_examples(shares, epochs=2, seed=1) == epochs[:2]
    assert epoch_examples(shares, epochs=4, seed=2) != epochs


@pytest.mark.parametrize(
    "share", [Share(3, 0.0), Share(3, -1.0), Share(3, float("nan")), Share(3, 1.0, -1)]
)
def test_bad_shares_are_refused(share):
    with pytest.raises(InputError, match="expected a weight above 0"):
        epoch_examples([share], epochs=1, seed=0)
