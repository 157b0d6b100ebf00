"""Sides in one process, and in processes of their own that alternate."""

import copy

import pytest

from biomedlm_jax.benchmarks import bench_score, own_process, sides
from biomedlm_jax.benchmarks.rounds import OURS, Timing
from biomedlm_jax.benchmarks.sides import for_device, measure_sides
from biomedlm_jax.errors import InputError
from biomedlm_jax.model.gpt2 import GPT2Config

PEER, BROKEN = "hf sdpa", "hf eager"


def fail():
    raise RuntimeError("no kernel")


@pytest.fixture
def blocks(monkeypatch) -> list[tuple]:
    """Processes that return their number; BROKEN fails, PEER from the block `late[0]` on."""
    started, late = [], [9]

    def measure_alone(module, name, work, **options):
        started.append((name, options["parts"], options["calls"], options["profile"]))
        if name == BROKEN or (name == PEER and len(started) > 2 * late[0]):
            raise InputError("it ended with 1")
        number = float(len(started))
        timing = Timing([4.8], [number], 9.0, [number] * options["calls"], [], [number])
        about = {"device_kind": "NVIDIA H200"} if name == OURS else {}
        return {
            "timings": {part: copy.deepcopy(timing.to_json()) for part in options["parts"]},
            "memory": {"peak": number * 1e9},
            "about": about,
            "energy": "counted" if about else "",
            "profile": options["profile"],
        }

    monkeypatch.setattr(own_process, "measure_alone", measure_alone)
    return [started, late]


def test_processes_alternate_in_blocks(blocks):
    options = {"rounds": 3, "calls": 2, "blocks": 2, "profile": "trace"}
    measured = measure_sides("bench_x", [OURS, BROKEN, PEER], {}, ["a", "b"], **options)
    parts = ["a", "b"]
    assert blocks[0] == [
        (OURS, parts, 6, None),
        (BROKEN, parts, 6, None),  # once: it is left out
        (PEER, parts, 6, None),
        (OURS, parts, 6, "trace"),
        (PEER, parts, 6, None),
    ]
    assert measured.about == {"device_kind": "NVIDIA H200"}
    assert (measured.energy, measured.profile) == ("counted", "trace")
    for part in parts:
        assert list(measured.timings[part]) == [OURS, PEER]
        peer = measured.timings[part][PEER]
        assert peer.seconds == [3.0] * 6 + [5.0] * 6
        assert (peer.joules, peer.first, peer.last, peer.first_seconds) == ([3, 5], [4.8], [5], 9)
    assert measured.memory == {}  # it was not required
    assert measured.notes == [
        "each side in processes of its own, in alternating blocks: 2",
        f"{BROKEN} is left out, as it fails here: it ended with 1",
    ]


def test_memory_is_that_of_the_last_block(blocks):
    options = {"rounds": 1, "blocks": 2, "memory_of": "a"}
    measured = measure_sides("bench_x", [OURS, PEER], {}, ["a"], **options)
    assert measured.memory == {OURS: {"peak_gb": 3.0}, PEER: {"peak_gb": 4.0}}


def test_a_peer_that_fails_later_is_an_error(blocks):
    blocks[1][0] = 1
    with pytest.raises(InputError, match="it ended with 1"):
        measure_sides("bench_x", [OURS, PEER], {}, ["a"], rounds=1, blocks=2)


def test_without_blocks_all_sides_are_in_this_process(monkeypatch):
    def make_side(name, **work):
        return {"a": fail if name == BROKEN else lambda: [1.0], "b": lambda: [2.0]}

    def peak_memory(module, names, work, part):
        return {name: {"peak_gb": 1.0} for name in names}, [f"memory of {part}"]

    monkeypatch.setattr(bench_score, "make_side", make_side)
    monkeypatch.setattr(own_process, "peak_memory", peak_memory)
    options = {"rounds": 2, "memory_of": "b"}
    measured = measure_sides("bench_score", [OURS, BROKEN, PEER], {}, ["a", "b"], **options)
    assert [list(sides) for sides in measured.timings.values()] == [[OURS, PEER]] * 2
    assert measured.timings["b"][PEER].first == [2.0]
    assert list(measured.memory) == [OURS, PEER]
    assert measured.about == {"device_kind": "cpu"}
    left_out = f"{BROKEN} is left out, as it fails here: RuntimeError: no kernel"
    assert measured.notes == ["memory of b", left_out]
    with pytest.raises(InputError, match="got rounds=0"):
        measure_sides("bench_score", [OURS], {}, ["a"], rounds=0, blocks=1)


@pytest.mark.parametrize(
    ("gpu", "dtype", "blocks", "expected"),
    [
        (True, "auto", None, ("bfloat16", sides.BLOCKS_ON_GPU)),
        (True, "float32", 3, ("float32", 3)),
        (False, "auto", None, ("auto", None)),
        (False, "auto", 1, ("auto", 1)),
    ],
)
def test_the_device_decides_dtype_and_blocks(monkeypatch, gpu, dtype, blocks, expected):
    monkeypatch.setattr(own_process, "on_gpu", lambda: gpu)
    config = GPT2Config(layers=1, width=16, heads=2, vocab_size=32, compute_dtype=dtype)
    config, number = for_device(config, blocks)
    assert (config.compute_dtype, number) == expected
