import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model import attention
from biomedlm_jax.model.config import GPTConfig

GOOD = {"platform": "tpu", "queries": 1024, "keys": 1024, "head_dim": 128, "dtype": "bfloat16"}


def heads(seed: int, *, batch=2, count=2, length=128, dim=64, dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (batch, count, length, dim), dtype)


def pretended(platform: str, sizes=(1, 1, 1)) -> jax.sharding.AbstractMesh:
    """A mesh of devices that are not here."""
    device = jax.sharding.AbstractDevice(device_kind="a chip", num_cores=1, platform=platform)
    types = (jax.sharding.AxisType.Auto,) * 3
    return jax.sharding.AbstractMesh(sizes, meshes.AXES, axis_types=types, abstract_device=device)


def chosen(kernel: str, platform: str, **asked) -> str:
    query = heads(0, batch=8, length=256, dtype=jnp.bfloat16)
    asked = {"masked": False, "dropping": False, **asked}
    with jax.sharding.use_abstract_mesh(pretended(platform)):
        return attention.choose(kernel, query, query, **asked)


@pytest.mark.parametrize(
    ("platform", "best"), [("tpu", "splash"), ("gpu", "cudnn"), ("cpu", "xla")]
)
def test_auto_takes_the_kernel_of_the_devices_compiled_for(platform, best):
    assert chosen("auto", platform) == best
    assert chosen("xla", platform) == "xla"
    assert chosen("auto", platform, masked=True) == "xla"
    assert chosen("auto", platform, dropping=True) == "xla"


@pytest.mark.parametrize(
    ("kernel", "changes", "said"),
    [
        ("splash", {"platform": "cpu"}, "runs on a TPU, and the devices here are of cpu"),
        ("cudnn", {"platform": "tpu"}, "runs on a GPU, and the devices here are of tpu"),
        ("splash", {"dropping": True}, "has no dropout"),
        ("splash", {"masked": True}, "takes no mask"),
        ("splash", {"queries": 1}, "as many queries as keys, not 1 and 1024"),
        ("splash", {"queries": 100, "keys": 100}, "blocks of 128 positions, not on 100"),
        ("splash", {"head_dim": 80}, "multiple of 64 wide, not 80"),
        ("cudnn", {"platform": "gpu", "dtype": "float32"}, "not in float32"),
        ("cudnn", {"platform": "gpu", "head_dim": 256}, "at most 128, not 256"),
        ("cudnn", {"platform": "gpu", "dropping": True}, "has no dropout"),
    ],
)
def test_what_a_kernel_cannot_do(kernel, changes, said):
    here = {**GOOD, "platform": attention.PLATFORMS[kernel]}
    assert attention.obstacle(kernel, **here) is None
    assert said in attention.obstacle(kernel, **{**here, **changes})


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_a_kernel_asked_for_by_name_never_gives_way(kernel):
    query = heads(0)
    with pytest.raises(ValueError, match=rf"model.attention={kernel}: .* choose auto or xla"):
        attention.attend(query, query, query, kernel=kernel)
    with pytest.raises(ValueError, match="takes no mask; choose auto or xla"):
        chosen(kernel, attention.PLATFORMS[kernel], masked=True)


def test_rows_that_do_not_divide_over_the_devices():
    query = heads(0, batch=3, dtype=jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(pretended("tpu", (2, 2, 1))):
        asked = {"masked": False, "dropping": False}
        assert attention.choose("auto", query, query, **asked) == "xla"
        with pytest.raises(ValueError, match="3 rows and 2 heads do not divide over 4 x 1"):
            attention.choose("splash", query, query, **asked)


def test_the_choice_is_logged_once(caplog):
    attention._say_once.cache_clear()
    query = heads(0)
    with caplog.at_level("INFO", logger="biomedlm_jax"):
        for _ in range(2):
            attention.attend(query, query, query, kernel="auto")
    assert [r.message for r in caplog.records] == ["attention: xla on cpu"]


@pytest.mark.parametrize("sizes", [None, (2, 2, 2)], ids=["one device", "eight devices"])
def test_splash_computes_what_xla_does_with_gradients(sizes):
    # The kernel itself, interpreted: the same code as on a TPU, without its speed.
    batch = 4 if sizes else 1
    arrays = [heads(seed, batch=batch) for seed in range(3)]
    cotangent = heads(3, batch=batch)

    def both(kernel):
        def loss(*qkv):
            return (kernel(*qkv) * cotangent).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arrays)

    splash = functools.partial(attention._splash, scale=0.1, interpret=True)
    xla = functools.partial(attention.attend, scale=0.1)
    if sizes:
        with jax.set_mesh(meshes.make_mesh(**dict(zip(meshes.AXES, sizes, strict=True)))):
            got = both(splash)
    else:
        got = both(splash)
    wanted = both(xla)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


def test_cudnn_is_asked_for_causal_attention_without_a_mask(monkeypatch):
    asked = {}

    def record(query, key, value, **options):
        asked.update(options, shape=query.shape)
        return value

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    query = heads(0, dtype=jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(pretended("gpu")):
        assert attention.attend(query, query, query, kernel="cudnn").shape == query.shape
    assert asked == {
        "scale": 0.125,
        "is_causal": True,
        "implementation": "cudnn",
        "shape": (2, 128, 2, 64),
    }


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"attention": "flash"}, "choose one of auto, xla, splash, cudnn"),
        ({"attention": "splash", "width": 160, "heads": 2}, "not 80; choose auto or xla"),
        ({"attention": "cudnn", "compute_dtype": "float32"}, "not in float32"),
    ],
)
def test_configs_that_no_device_could_run(values, said):
    with pytest.raises(ValueError, match=said):
        GPTConfig(**values)


def test_training_with_dropout_needs_xla():
    mesh = meshes.make_mesh(fsdp=8)
    config = GPTConfig(attention="splash", attention_dropout=0.1)
    with pytest.raises(ValueError, match="runs on a TPU"):
        attention.check_training(config, mesh)
    assert attention.check_training(GPTConfig(), mesh) == "xla"
