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
