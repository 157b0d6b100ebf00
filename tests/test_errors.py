import pytest

import biomedlm_jax
from biomedlm_jax import cli, errors
from biomedlm_jax.commands import plan


def test_a_defect_keeps_its_traceback(monkeypatch):
    def fail(flags):
        raise ValueError("of a library")

    monkeypatch.setattr(plan, "run", fail)
    with pytest.raises(ValueError, match="of a library"):
        cli.main(["plan", "--config=configs/pretrain.py:tiny", "--topology=local"])


def test_the_exception_is_public_and_a_value_error():
    assert biomedlm_jax.InputError is errors.InputError
    assert issubclass(errors.InputError, ValueError)


def test_a_message_is_one_printable_line():
    """Names and values of a file may hold line ends, terminal escapes and half surrogates."""
    error = errors.InputError("got \x1b[31m, a\nb, \u2028, \ud800, é 漢\\n")
    assert str(error) == r"got \x1b[31m, a\nb, \u2028, \ud800, é 漢\n"
    long = str(errors.InputError("a" * 9_000 + "z" * 9_000))
    assert len(long) <= errors.LONGEST
    assert (long[0], long[-1], " ... " in long) == ("a", "z", True)


def test_a_number_has_its_noun():
    numbers = (0, 1, 1273)
    assert [errors.counted(n, "epoch") for n in numbers] == ["0 epochs", "1 epoch", "1,273 epochs"]
    assert [errors.counted(n, "entry", "entries") for n in (1, 2)] == ["1 entry", "2 entries"]
