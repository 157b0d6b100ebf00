"""Which examples of several sources an epoch has: a share of each, the same in every process."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from biomedlm_jax.errors import InputError


class Share(NamedTuple):
    """A source of a mixture."""

    examples: int  # it has
    weight: float = 1.0  # how often an epoch has each of them, or of the `cap`
    cap: int = 0  # examples at most, before the weight; 0: no cap

    @property
    def per_epoch(self) -> int:
        """Examples in an epoch."""
        used = min(self.examples, self.cap) if self.cap else self.examples
        return max(1, round(self.weight * used))


def epoch_examples(shares: Sequence[Share], *, epochs: int, seed: int) -> list[list[int]]:
    """Return the numbers of each epoch's examples, sorted; those of a source follow one another.

    A source is passed through in one shuffled order after another, so that an epoch begins with the
    examples that the one before left out. Raises InputError for a weight that is not above 0.
    """
    for share in shares:
        if not share.weight > 0 or share.cap < 0:
            got = f"got weight {share.weight} and cap {share.cap}"
            raise InputError(
                f"{got} of a source; expected a weight above 0, and a cap of at least 0"
            )
    first = np.cumsum([0, *(share.examples for share in shares)])
    streams = [_passes(share.examples, seed, n) for n, share in enumerate(shares)]
    chosen: list[list[int]] = []
    for _ in range(epochs):
        numbers = [
            int(first[n]) + next(stream)
            for n, (share, stream) in enumerate(zip(shares, streams, strict=True))
            for _ in range(share.per_epoch)
        ]
        chosen.append(sorted(numbers))
    return chosen


def _passes(count: int, seed: int, source: int) -> Iterator[int]:
    """Yield the numbers below `count` in a shuffled order, then in another one, without end."""
    number = 0
    while True:
        yield from np.random.default_rng([seed, source, number]).permutation(count).tolist()
        number += 1
