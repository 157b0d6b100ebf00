"""Connected components of records that pairs in files link, in four bytes a record."""

from collections.abc import Callable, Iterable

import numpy as np

_CHUNK = 1 << 20  # records whose labels are looked up at once


def smallest_members(
    records: int, links: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
) -> np.ndarray:
    """Return the smallest record of the component of each record, int32.

    Args:
      links: yields arrays of the two sides of links, the same whenever it is called: once for each
        round of merging, of which there are few.
    """
    label, merged = np.arange(records, dtype=np.int32), True
    while merged:
        merged = False
        for one, other in links():
            pair = label[one], label[other]
            low, high = np.minimum(*pair), np.maximum(*pair)
            differ = low != high
            if differ.any():
                merged = True
                np.minimum.at(label, high[differ], low[differ])
        # A label is at most its record: those before a chunk are final.
        for first in range(0, records if merged else 0, _CHUNK):
            here = label[first : first + _CHUNK]
            while (further := label[here] != here).any():
                here[further] = label[here[further]]
    return label
