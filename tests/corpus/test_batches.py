"""batches.py: one order of rows, on any devices and processes, resumed exactly."""

import errno
import json
import shutil
import socket
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest
from corpus.conftest import flip, forget_files, shard_of
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from processes import Process, run_process

from biomedlm_jax.corpus.batches import Batches, validation_batches
from biomedlm_jax.corpus.documents import Document
from biomedlm_jax.corpus.manifest import END_BYTES
from biomedlm_jax.corpus.mixtures import Source, parse_mixture
from biomedlm_jax.corpus.rows import Rows
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.corpus.tokens import build_tokens
from biomedlm_jax.errors import InputError

LENGTH, BATCH = 8, 16
TEXTS = [f"Patient {i} was given {i * i} mg of drug {chr(97 + i % 26)}." for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=280)


def build(out: Path, tokenizer, texts=TEXTS, **options) -> Path:
    documents = [Document(text, "here") for text in texts]
    options = {"length": LENGTH, "validation_fraction": 0.3, **options}
    build_tokens(documents, tokenizer, out, **options)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory, tokenizer) -> Path:
    return build(tmp_path_factory.mktemp("batches") / "tokens", tokenizer)


def layout(*spec) -> NamedSharding:
    devices = np.array(jax.devices()[:8]).reshape(2, 2, 2)
    mesh = Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    return NamedSharding(mesh, PartitionSpec(*spec))


def take(batches: Batches, count: int) -> np.ndarray:
    return np.stack([np.asarray(batch) for batch in islice(batches, count)])


@pytest.fixture
def make(data):
    """Make Batches of the data, which are closed in the end."""
    made = []

    def make(path=data, **options) -> Batches:
        made.append(Batches(path, **{"batch_size": BATCH, **options}))
        return made[-1]

    yield make
    for batches in made:
        batches.close()


@pytest.mark.parametrize(
    "spec", [("data",), (("data", "fsdp"), None), ("fsdp", "tensor"), (), (None, "data")]
)
def test_the_same_rows_on_1_and_on_8_devices(make, spec):
    sharding = layout(*spec)
    one, eight = make(seed=3), make(seed=3, sharding=sharding)
    for _ in range(12):
        expected, got = next(one), next(eight)
        assert got.sharding.is_equivalent_to(sharding, 2)
        assert got.dtype == np.int32
        assert np.array_equal(got, expected)


def test_without_shuffling_the_order_is_that_of_the_file(make, data):
    rows = np.stack(list(Rows(data, "train")))
    got = take(make(shuffle=False, passes=2), 100).reshape(-1, LENGTH)
    assert len(got) == 2 * len(rows) // BATCH * BATCH
    assert np.array_equal(got, np.concatenate([rows, rows])[: len(got)])


def test_every_pass_is_a_permutation_of_its_own(make, data):
    rows = list(Rows(data, "train"))
    number = {row.tobytes(): i for i, row in enumerate(np.asarray(rows, np.int32))}
    assert len(number) == len(rows)

    def orders(seed: int) -> list[tuple[int, ...]]:
        stream = take(make(seed=seed), 4 * len(rows) // BATCH + 1).reshape(-1, LENGTH)
        numbers = [number[row.tobytes()] for row in stream]
        return [tuple(numbers[p * len(rows) : (p + 1) * len(rows)]) for p in range(4)]

    passes = [order for seed in (0, 1, 2) for order in orders(seed)]
    assert all(sorted(order) == list(range(len(rows))) for order in passes)
    assert len(set(passes)) == len(passes)  # neighbouring seeds share no order, either
    assert orders(0) == passes[:4]


def test_resuming_is_exact_at_every_position(make):
    passes = 2
    everything = take(make(seed=5, passes=passes), 1000)
    steps = len(everything)
    batches, resumed = make(seed=5, passes=passes), make(seed=5, passes=passes)
    for step in range(steps + 1):
        # What Grain has read ahead by now is not part of the position.
        position = json.loads(json.dumps(batches.position()))
        assert position["step"] == step
        resumed.restore(position)
        following = [np.asarray(batch).tolist() for batch in islice(resumed, 2)]
        assert following == everything[step : step + 2].tolist()
        assert resumed.position()["step"] == min(step + 2, steps)
        assert next(batches, None) is not None or step == steps
    elsewhere = make(seed=5, passes=passes, sharding=layout(("data", "fsdp")))
    elsewhere.restore({**batches.position(), "step": 3})
    assert np.array_equal(take(elsewhere, 1000), everything[3:])


def test_a_position_of_other_batches_is_refused(make, tokenizer, tmp_path):
    batches = make(seed=1)
    next(batches)
    before = batches.position()
    other = build(tmp_path / "other", tokenizer, TEXTS[1:])
    for position, message in (
        (make(seed=2).position(), r"another seed 2 \(now 1\); .* start a new run"),
        (make(seed=1, batch_size=8).position(), r"another batch_size 8 \(now 16\)"),
        (make(seed=1, shuffle=False).position(), "another shuffle False"),
        (make(seed=1, split="validation").position(), "another split validation"),
        (make(seed=1, path=other).position(), "another dataset"),
        ({"step": 1}, "another dataset None"),
        ({**before, "step": -1}, "at step -1"),
        ({**before, "step": "1"}, "at step 1"),
    ):
        with pytest.raises(ValueError, match=message):
            batches.restore(position)
    assert batches.position() == before
    assert np.array_equal(take(batches, 3), take(make(seed=1), 4)[1:])


@pytest.mark.parametrize("sharding", [None, ("data",), (("data", "fsdp"), "tensor"), ()])
def test_validation_is_every_row_once(data, sharding):
    rows = np.stack(list(Rows(data, "validation")))
    sharding = None if sharding is None else layout(*sharding)
    batches = list(validation_batches(data, batch_size=BATCH, sharding=sharding))
    tokens = np.concatenate([np.asarray(batch) for batch, _ in batches])
    weights = np.concatenate([np.asarray(weights) for _, weights in batches])
    assert len(tokens) == len(weights) > len(rows)  # the last batch is not full
    assert np.array_equal(weights, np.arange(len(weights)) < len(rows))
    assert np.array_equal(tokens[: len(rows)], rows)
    assert not tokens[len(rows) :].any()
    for batch, weight in batches:
        assert (batch.dtype, weight.dtype) == (np.int32, np.float32)
        if sharding:
            assert batch.sharding.is_equivalent_to(sharding, 2)
            axes = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
            assert weight.sharding == axes
    limited = validation_batches(data, batch_size=BATCH, sharding=sharding, limit=1)
    spread = [i * len(rows) // BATCH for i in range(BATCH)]  # even, not the first rows
    sample, weights = next(limited)
    assert np.array_equal(sample, rows[spread])
    assert np.asarray(weights).all()
    assert spread[-1] >= len(rows) - -(-len(rows) // BATCH)
    assert next(limited, None) is None
    every = list(validation_batches(data, batch_size=BATCH, sharding=sharding, limit=1000))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(every, batches, strict=True))


def test_bad_data_is_refused_at_once(make, data, tokenizer, tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        make(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no token rows"):
        make(tmp_path)
    with pytest.raises(ValueError, match=r"got batch_size=4096, but .* train rows"):
        make(batch_size=4096)
    with pytest.raises(ValueError, match="got batch_size=0"):
        make(batch_size=0)
    with pytest.raises(ValueError, match="a batch of 15 rows of 8 tokens does not divide"):
        make(batch_size=15, sharding=layout("data"))
    without = build(tmp_path / "without", tokenizer, validation_fraction=0)
    with pytest.raises(ValueError, match="no validation rows"):
        validation_batches(without, batch_size=BATCH)


def test_the_rows_of_a_step_and_its_batch_again(make, data):
    rows = np.stack(list(Rows(data, "train")))
    batches = make(seed=4, sharding=layout(("data", "fsdp"), "tensor"))
    steps = 2 * len(rows) // BATCH + 1  # over the ends of passes
    numbers = [batches.rows_of(step) for step in range(steps)]
    for step in range(steps):
        again = batches.at((step * 7) % steps)
        assert batches.position()["step"] == step
        batch = next(batches)
        assert np.array_equal(batch, rows[numbers[step]])
        assert np.array_equal(again, rows[numbers[(step * 7) % steps]])
        assert again.sharding == batch.sharding
    json.dumps(numbers)  # plain integers
    two = make(shuffle=False, passes=1)
    last = len(rows) // BATCH - 1
    assert two.rows_of(last) == list(range(last * BATCH, (last + 1) * BATCH))
    for step in (-1, last + 1):
        with pytest.raises(InputError, match=f"got step {step}; expected 0 to {last}"):
            two.rows_of(step)
        with pytest.raises(InputError, match=f"got step {step}"):
            two.at(step)


@pytest.fixture(scope="module")
def sources(tmp_path_factory, data, tokenizer) -> tuple[Source, ...]:
    """The data and another directory, 3 to 1."""
    texts = [f"A letter of {i} words came to house {i * i}." for i in range(4)]
    other = build(tmp_path_factory.mktemp("batches") / "other", tokenizer, texts)
    return parse_mixture(f"first={data}:3,second={other}:1")


def test_a_mixture_reads_each_source_in_its_own_order(make, data, sources):
    one, eight = make(sources, seed=3), make(sources, seed=3, sharding=layout(("data", "fsdp")))
    counts = [len(Rows(source.path, "train")) for source in sources]
    steps = 4 * counts[0] // BATCH
    stream = take(one, steps).reshape(-1, LENGTH)
    assert np.array_equal(take(eight, steps).reshape(-1, LENGTH), stream)
    numbers = np.concatenate([one.rows_of(step) for step in range(steps)])
    of_second = numbers >= counts[0]
    assert of_second.reshape(-1, 4).sum(axis=1).tolist() == [1] * (len(numbers) // 4)
    for source, mask, rows in zip(sources, (~of_second, of_second), counts, strict=True):
        alone = make(source.path, seed=3, batch_size=4)
        expected = take(alone, mask.sum() // 4).reshape(-1, LENGTH)
        assert np.array_equal(stream[mask], expected)
        assert mask.sum() > 2.5 * rows  # repeated, shuffled anew in each pass
    assert np.array_equal(one.at(1), stream[BATCH : 2 * BATCH])


def test_a_mixture_resumes_exactly(make, data, sources):
    everything = take(make(sources, seed=5), 40)
    batches, resumed = make(sources, seed=5), make(sources, seed=5, sharding=layout("data"))
    for step in range(0, 36, 5):
        position = json.loads(json.dumps(batches.position()))
        resumed.restore(position)
        assert np.array_equal(take(resumed, 2), everything[step : step + 2])
        take(batches, 5)
    first, second = sources
    heavier = Source(name="first", path=first.path, weight=4)
    for other in ((heavier, second), (second, first), data):
        with pytest.raises(InputError, match="the position was saved with another dataset"):
            make(other, seed=5).restore(batches.position())


def test_a_mixture_that_cannot_fill_a_batch(make, sources):
    second, rows = sources[1], len(Rows(sources[1].path, "train"))
    with pytest.raises(InputError, match=f"of which up to {rows + 1} rows are of {second.path}, b"):
        make(sources, batch_size=4 * rows + 4)
    make(sources, batch_size=4 * rows)
    with pytest.raises(InputError, match="got passes=2 over a mixture"):
        make(sources, passes=2)


def damage_middle(shard: Path) -> None:
    flip(shard, shard.stat().st_size // 2)


def damage_records(shard: Path) -> None:
    """Flip a bit in every record that is not at the ends of the shard, or in all of a small one."""
    content = bytearray(shard.read_bytes())
    ends = END_BYTES if len(content) > 2 * END_BYTES else 200
    for byte in range(ends, len(content) - ends, 100):
        content[byte] ^= 4
    shard.write_bytes(content)


def take_damaged(split: str, out: Path) -> Iterator:
    """Batches of a split through Grain's threads, before it is damaged."""
    if split == "validation":
        return validation_batches(out, batch_size=BATCH)
    return Batches(out, batch_size=BATCH, seed=1, passes=1)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_damage_comes_through_the_reading_threads_as_it_is(damageable, split):
    good = [jax.tree.map(np.asarray, batch) for batch in take_damaged(split, damageable)]
    batches, shard = take_damaged(split, damageable), shard_of(damageable, split)
    damage_middle(shard)
    got = []
    with pytest.raises(InputError) as error:
        got.extend(batches)  # keeps those before the error
    for batch, expected in zip(got, good, strict=False):
        jax.tree.map(np.testing.assert_array_equal, batch, expected)
    assert len(got) < len(good)
    assert type(error.value) is InputError
    assert str(error.value).startswith(f"{shard} is ")
    assert str(error.value).endswith("; copy it again, or build the token rows again")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_error_of_the_storage_comes_through_the_reading_threads(damageable, split):
    batches, shard = take_damaged(split, damageable), shard_of(damageable, split)
    shard.unlink()
    shard.symlink_to(shard)
    with pytest.raises(OSError, match=f"{shard.name}") as error:
        list(batches)
    assert (type(error.value), error.value.errno) == (OSError, errno.ELOOP)


def test_after_an_error_the_same_batch_is_next(damageable):
    """Grain alone would skip the batch that failed."""
    good = [np.asarray(batch) for batch in take_damaged("train", damageable)]
    batches, shard = take_damaged("train", damageable), shard_of(damageable)
    content = shard.read_bytes()
    damage_middle(shard)
    failures = 0
    for step, expected in enumerate(good):
        while True:
            assert batches.position()["step"] == step
            try:
                batch = next(batches)
                break
            except InputError:
                failures += 1
                with shard.open("r+b") as file:  # never short: threads that read ahead have it open
                    file.write(content)
        assert np.array_equal(batch, expected)
    assert failures == 1
    assert next(batches, None) is None


PRETRAIN = """
-m biomedlm_jax.cli pretrain --config={config}:tiny --config.data.path={data} --workdir={run}
--config.training.steps=4 --config.training.evaluate_every=4 --config.training.evaluate_batches=4
--config.checkpoint.every=4 --config.optimizer.warmup_steps=1 --config.logging.trackers=()
"""


@pytest.mark.parametrize(
    ("split", "fault", "code", "message"),
    [
        ("train", damage_records, 2, "{shard} is damaged (Corrupted Riegeli/records file: "),
        pytest.param(
            "validation",
            damage_records,
            2,
            "{shard} is not the file that was built with the manif",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "train",
            lambda shard: shard.unlink(),
            2,
            "{shard} is missing; copy it again, or build",
            marks=pytest.mark.slow,
        ),
        pytest.param("train", None, 1, "Input/output error: {shard}", marks=pytest.mark.slow),
    ],
)
def test_pretraining_ends_with_one_line_and_a_code(
    large_rows, tmp_path, split, fault, code, message
):
    data = shutil.copytree(large_rows, tmp_path / "tokens")
    shard = shard_of(data, split)
    if fault is None:
        forget_files(data)
        shard.unlink()
        shard.symlink_to("/proc/self/mem")  # of which the kernel cannot read the first byte
    else:
        fault(shard)
    config = Path(__file__).parents[2] / "configs" / "pretrain.py"
    arguments = PRETRAIN.format(config=config, data=data, run=tmp_path / "run").split()
    result = run_process(arguments)
    assert result.returncode == code, result.stderr
    lines = result.stderr.splitlines()
    assert lines[-1].startswith(f"biomedlm pretrain: error: {message.format(shard=shard)}")
    assert "Traceback" not in result.stderr
    assert [line for line in lines if "Riegeli" in line or "rows" in line] == lines[-1:]


PROCESS = """
import json, sys
import jax, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from biomedlm_jax.corpus.batches import Batches, validation_batches
from biomedlm_jax.corpus.mixtures import parse_mixture
from biomedlm_jax.corpus.rows import Rows

address, process, path, mixture, batch_size = sys.argv[1], *map(json.loads, sys.argv[2:])
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, 2, process)
orders = {"blocks": [0, 1, 2, 3], "alternating": [0, 2, 1, 3]}
result, getitems = {}, Rows.__getitems__
for name, order in orders.items():
    mesh = Mesh(np.array(jax.devices())[order], ("data",), axis_types=(AxisType.Auto,))
    for spec in (("data",), ()):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        batches = Batches(path, batch_size=batch_size, sharding=sharding, seed=3)
        read = []
        Rows.__getitems__ = lambda self, i: read.append(len(i)) or getitems(self, i)
        got = [next(batches) for _ in range(5)]
        Rows.__getitems__ = getitems
        position = batches.position()
        batches.close()
        gather = lambda x: multihost_utils.process_allgather(x, tiled=True).tolist()
        validation = validation_batches(path, batch_size=batch_size, sharding=sharding)
        result[f"{name} {bool(spec)}"] = {
            "rows": batches._layout.rows.tolist(),
            "read": sorted(set(read)),
            "batches": [gather(batch) for batch in got],
            "validation": [[gather(x), gather(w)] for x, w in validation],
            "position": position,
        }
halves = NamedSharding(mesh, PartitionSpec("data"))
mixed = Batches(parse_mixture(mixture), batch_size=batch_size, sharding=halves, seed=3)
result["mixture"] = [gather(next(mixed)) for _ in range(5)]
mixed.close()
print(json.dumps(result))
"""


def test_two_processes_read_their_halves_of_the_same_batches(make, data, sources):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    mixture = ",".join(f"{one.name}={one.path}:{one.weight}" for one in sources)
    arguments = [json.dumps(str(data)), json.dumps(mixture), BATCH]
    processes = [
        Process(["-c", PROCESS, address, i, *arguments], env=environment) for i in range(2)
    ]
    results = [process.communicate(timeout=240) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(error for _, error in results)
    first, second = (json.loads(output.splitlines()[-1]) for output, _ in results)
    alone = make(seed=3)
    expected = take(alone, 5).tolist()
    mixed = take(make(sources, seed=3), 5).tolist()
    validation = [
        [np.asarray(tokens).tolist(), np.asarray(weights).tolist()]
        for tokens, weights in validation_batches(data, batch_size=BATCH)
    ]
    assert first.pop("mixture") == second.pop("mixture") == mixed
    for name in first:
        for result in (first[name], second[name]):
            assert result["batches"] == expected
            assert result["validation"] == validation
            assert result["position"] == alone.position()
            assert result["read"] == [len(result["rows"])]
    half, quarter = BATCH // 2, BATCH // 4
    everything = list(range(BATCH))
    assert (first["blocks True"]["rows"], second["blocks True"]["rows"]) == (
        everything[:half],
        everything[half:],
    )
    mixed = [*everything[:quarter], *everything[half : half + quarter]]
    assert first["alternating True"]["rows"] == mixed
    assert second["alternating True"]["rows"] == sorted({*everything} - {*mixed})
    assert first["blocks False"]["rows"] == second["blocks False"]["rows"] == everything
