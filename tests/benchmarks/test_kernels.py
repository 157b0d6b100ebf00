from types import SimpleNamespace

import pytest

from biomedlm_jax.benchmarks.kernels import cudnn_attention, print_kernels, top_kernels


def line(name: str, *events: tuple) -> SimpleNamespace:
    """Events of (name, start, duration) or, with a fourth item, stats."""
    made = [
        SimpleNamespace(name=e[0], start_ns=e[1], duration_ns=e[2], stats=e[3] if e[3:] else [])
        for e in events
    ]
    return SimpleNamespace(name=name, events=made)


def plane(name: str, *lines) -> SimpleNamespace:
    return SimpleNamespace(name=name, lines=lines)


OP = [("hlo_op", "x")]
CPU = plane(
    "/host:CPU",
    line("python", ("step", 0, 1000)),
    line(
        "tf_XLAPjRtCpuClient/1",
        ("while.5", 0, 100, OP),
        ("fusion.1", 10, 60, OP),
        ("dot", 20, 30, OP),
        ("fusion.2", 70, 20, OP),
        ("end: while.5", 99, 1),
        ("copy", 100, 10, OP),
    ),
)
FORWARD = "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_kernel0"
GPU = plane(
    "/device:GPU:0",
    line("Stream #14(Compute)", ("loop_fusion", 0, 10), (FORWARD, 10, 80), ("loop_fusion", 90, 10)),
    line("XLA Ops", ("fusion", 0, 100)),
)


def test_operations_count_what_runs_in_them_for_itself():
    found = {kernel["name"]: kernel for kernel in top_kernels([CPU])}
    assert list(found) == ["fusion", "dot", "while", "copy"]
    nanoseconds = {name: round(kernel["seconds"] * 1e9) for name, kernel in found.items()}
    assert nanoseconds == {"fusion": 50, "dot": 30, "while": 20, "copy": 10}
    assert found["fusion"]["calls"] == 2
    assert sum(kernel["share"] for kernel in found.values()) == pytest.approx(1)


def test_a_gpu_lists_the_kernels_of_its_streams_alone(capsys):
    found = top_kernels([CPU, GPU])
    assert [(k["name"], k["calls"], k["on"]) for k in found] == [
        (FORWARD, 1, "gpu"),
        ("loop_fusion", 2, "gpu"),
    ]
    names = cudnn_attention(found)
    assert names == [FORWARD]
    assert cudnn_attention(top_kernels([CPU])) == []
    profile = {"trace": "t", "steps": 3, "kernels": found, "cudnn_attention": names}
    print_kernels(profile)
    assert f"attention kernels of cuDNN among all that ran: {FORWARD}" in capsys.readouterr().out
    print_kernels({**profile, "cudnn_attention": []})
    assert "among all that ran: none" in capsys.readouterr().out
