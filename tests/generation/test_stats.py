from types import SimpleNamespace

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
    assert stats.bandwidth(devices) == expected


@pytest.mark.parametrize(
    ("kind", "seconds", "share"),
    [("cpu", 1.0, None), ("TPU v4", 1e-9, None), ("TPU v4", 1.0, ": 50% of the memory's")],
)
def test_a_share_is_shown_of_a_known_bandwidth_that_limits(monkeypatch, kind, seconds, share):
    monkeypatch.setattr(stats.jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
    monkeypatch.setattr(stats, "mesh_of", lambda decoder: None)
    speed = stats.Stats(SimpleNamespace())
    speed.prefill_tokens = speed.decode_tokens = speed.steps = speed.prefill_seconds = 1
    speed.step_bytes, speed.decode_seconds = int(600e9), seconds
    line = speed.lines()[-1]
    assert line.startswith("read     600,000.0 MB/token, ")
    assert ("%" in line) == (share is not None)
    assert line.endswith(share or "GB/s")
