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
def finished(tmp_path_factory) -> tuple[dict, Path]:
    """Return the figures and the directory of a quickstart of a few steps."""
    # It imports jax, which most tests do not need.
    from biomedlm_jax.quickstart.quickstart import run_quickstart

    out = tmp_path_factory.mktemp("world") / "quickstart"
    return run_quickstart(out, steps=20, documents=240, epochs=1), out
