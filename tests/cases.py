"""Parameters of which only some run by default."""

from collections.abc import Collection, Iterable

import pytest


def mostly_slow(names: Iterable[str], default: Collection[str]) -> list:
    """Return the names as parameters; those that are not in `default` are marked slow.

    Raises ValueError if `default` has a name that there is not.
    """
    names = list(names)
    if unknown := set(default) - set(names):
        raise ValueError(f"got {sorted(unknown)}; the names are {names}")
    return [n if n in default else pytest.param(n, marks=pytest.mark.slow) for n in names]
