import contextlib
from types import SimpleNamespace

import pytest

from biomedlm_jax.benchmarks import kernels
from biomedlm_jax.benchmarks.kernels import profile_lines, top_kernels


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
GPU_ALONE = plane("/device:GPU:0", line("Stream #14(Compute)", ("loop_fusion", 0, 10)))


def test_the_time_of_a_loop_is_that_of_its_body():
    longest = {kernel["name"]: kernel for kernel in top_kernels([CPU])}
    assert list(longest) == ["fusion", "dot", "while", "copy"]
    nanoseconds = {name: round(kernel["seconds"] * 1e9) for name, kernel in longest.items()}
    assert nanoseconds == {"fusion": 50, "dot": 30, "while": 20, "copy": 10}
    assert longest["fusion"]["calls"] == 2
    assert sum(kernel["share"] for kernel in longest.values()) == pytest.approx(1)


def test_on_a_gpu_the_kernels_of_its_streams_are_listed():
    longest = top_kernels([CPU, GPU])
    assert [(k["name"], k["calls"], k["on"]) for k in longest] == [
        (FORWARD, 1, "gpu"),
        ("loop_fusion", 2, "gpu"),
    ]


@pytest.mark.parametrize(
    ("planes", "names", "line"),
    [([CPU, GPU], [FORWARD], f"that ran: {FORWARD}"), ([GPU_ALONE], [], "that ran: none")],
)
def test_a_profile_names_the_attention_kernels_of_cudnn(planes, names, line, tmp_path, monkeypatch):
    trace = tmp_path / "a.xplane.pb"

    @contextlib.contextmanager
    def traced(folder, profiler_options):
        yield trace.touch()

    monkeypatch.setattr(kernels.jax.profiler, "trace", traced)
    data = SimpleNamespace(from_file=lambda path: SimpleNamespace(planes=planes))
    monkeypatch.setattr(kernels.jax.profiler, "ProfileData", data)
    steps = []
    profile = kernels.profile_steps(lambda: steps.append(1), tmp_path)
    assert (len(steps), profile["trace"]) == (3, str(trace))
    assert profile["cudnn_attention"] == names
    assert line in profile_lines(profile)[-1]
    with pytest.raises(ValueError, match="wrote no trace"):
        kernels.profile_steps(lambda: 0, tmp_path)
