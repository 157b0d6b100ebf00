import pytest

from biomedlm_jax import chips
from biomedlm_jax.generation import stats


@pytest.mark.parametrize(
    ("kind", "devices", "expected"),
    [
        ("TPU v4", 4, 4 * 1200e9),
        ("TPU7x", 8, 4 * 7380e9),  # a chip is two devices
        ("NVIDIA A100-SXM4-40GB", 1, 1555e9),
        ("NVIDIA A100-SXM4-80GB", 1, 2039e9),
    ],
)
def test_the_memorys_speed_is_that_of_the_table_of_chips(monkeypatch, kind, devices, expected):
    result = chips.chip(kind)
    monkeypatch.setattr(chips, "chip", lambda kind: result)
    assert stats.bandwidth(devices) == (expected, "data sheet")
