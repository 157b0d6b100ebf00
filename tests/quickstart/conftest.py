import re
from collections.abc import Callable
from pathlib import Path

import pytest

# A name shows by its letters alone that it is invented.
NAME = re.compile(r"\b(?:(?:Zv|Vl|Dv|Kv|Zl|Zr|Tv|Dz)[a-z]+|[BGTVZ]Q[A-Z]\d)\b")


@pytest.fixture(scope="session")
def names_in() -> Callable[[str], list[str]]:
    """Return the invented names in a text."""
    return NAME.findall


@pytest.fixture(scope="session")
def states() -> Callable[[str, str], bool]:
    """Return whether a text contains a value as words of its own."""
    return lambda text, value: bool(
        re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE)
    )


@pytest.fixture(scope="session")
def tour(tmp_path_factory) -> tuple[dict, Path]:
    """Return the figures and the directory of a tour with hardly any steps."""
    from biomedlm_jax.quickstart.tour import take_tour  # imports jax, which most tests do not need

    out = tmp_path_factory.mktemp("tour") / "quickstart"
    return take_tour(out, steps=20, documents=240, epochs=1), out
