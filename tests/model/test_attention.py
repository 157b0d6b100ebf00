import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import mostly_slow

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model import attention
from biomedlm_jax.model.gpt2 import GPT2Config

GOOD = {"platform": "tpu", "queries": 1024, "keys": 1024, "head_dim": 128, "dtype": "bfloat16"}


def heads(seed: int, *, batch=2, count=2, length=128, dim=64, dtype=jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (batch, count, length, dim), dtype)


def absent(platform: str, sizes=(1, 1, 1)) -> jax.sharding.AbstractMesh:
    """Return a mesh of devices that this machine does not have."""
    device = jax.sharding.AbstractDevice(device_kind="a chip", num_cores=1, platform=platform)
    types = (jax.sharding.AxisType.Auto,) * 3
    return jax.sharding.AbstractMesh(sizes, meshes.AXES, axis_types=types, abstract_device=device)


def chosen(kernel: str, platform: str, **options) -> str:
    query = heads(0, batch=8, length=256, dtype=jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(absent(platform)):
        return attention.choose_kernel(kernel, query, query, **options)


@pytest.mark.parametrize(
    ("platform", "best"), [("tpu", "splash"), ("gpu", "cudnn"), ("cpu", "xla")]
)
def test_auto_takes_the_kernel_of_the_devices_compiled_for(platform, best):
    assert chosen("auto", platform) == best
    assert chosen("xla", platform) == "xla"
    assert chosen("auto", platform, segments=True, branches=True) == "xla"
    assert chosen("auto", platform, segments=True) == ("splash" if platform == "tpu" else "xla")
    assert chosen("auto", platform, dropping=True) == "xla"


@pytest.mark.parametrize(
    ("kernel", "changes", "message"),
    [
        ("splash", {"platform": "cpu"}, "runs on a TPU, and the platform is cpu"),
        ("cudnn", {"platform": "tpu"}, "runs on a GPU, and the platform is tpu"),
        ("splash", {"dropping": True}, "has no dropout"),
        ("splash", {"segments": True, "branches": True}, "cannot express several branches"),
        ("cudnn", {"platform": "gpu", "segments": True}, "without packed segments"),
        ("splash", {"queries": 1}, "as many queries as keys, not 1 and 1024"),
        ("splash", {"queries": 100, "keys": 100}, "blocks of 128 positions, not on 100"),
        ("splash", {"head_dim": 80}, "multiple of 64 wide, not 80"),
        ("cudnn", {"platform": "gpu", "dtype": "float32"}, "not in float32"),
        ("cudnn", {"platform": "gpu", "head_dim": 256}, "at most 128, not 256"),
        ("cudnn", {"platform": "gpu", "dropping": True}, "has no dropout"),
    ],
)
def test_what_a_kernel_cannot_do(kernel, changes, message):
    here = {**GOOD, "platform": attention.PLATFORMS[kernel]}
    assert attention.unsupported_reason(kernel, **here) is None
    assert message in attention.unsupported_reason(kernel, **{**here, **changes})


@pytest.mark.parametrize("kernel", ["splash", "cudnn"])
def test_a_kernel_asked_for_by_name_never_gives_way(kernel):
    query = heads(0)
    with pytest.raises(ValueError, match=rf"model.attention={kernel}: .*; choose auto or xla"):
        attention.attend(query, query, query, kernel=kernel)
    with pytest.raises(ValueError, match="several branches after one prefix; choose"):
        chosen(kernel, attention.PLATFORMS[kernel], segments=True, branches=True)


def test_rows_that_do_not_divide_over_the_devices():
    query = heads(0, batch=3, dtype=jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(absent("tpu", (2, 2, 1))):
        assert attention.choose_kernel("auto", query, query) == "xla"
        with pytest.raises(ValueError, match="3 rows and 2 heads do not divide over 4 x 1"):
            attention.choose_kernel("splash", query, query)


def test_the_choice_is_logged_once(caplog):
    attention._log_once.cache_clear()
    query = heads(0)
    with caplog.at_level("INFO", logger="biomedlm_jax"):
        for _ in range(2):
            attention.attend(query, query, query, kernel="auto")
    assert [r.message for r in caplog.records] == ["attention: xla on cpu"]


@pytest.mark.parametrize(
    ("sizes", "packed"),
    [
        (None, False),
        ((2, 2, 2), True),
        pytest.param(None, True, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), False, marks=pytest.mark.slow),
    ],
    ids=["one device, causal", "eight, segments", "one device, segments", "eight, causal"],
)
def test_splash_computes_what_xla_does_with_gradients(sizes, packed):
    # The kernel itself, interpreted: the same code as on a TPU, without its speed.
    batch = 4 if sizes else 1
    arrays = [heads(seed, batch=batch) for seed in range(3)]
    cotangent = heads(3, batch=batch)
    segment_BxL = jnp.sort(jax.random.randint(jax.random.key(4), (batch, 128), 0, 3), axis=1)
    mask = attention.Mask(segment_BxL) if packed else None

    def both(kernel):
        def loss(*qkv):
            return (kernel(*qkv) * cotangent).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arrays)

    splash = functools.partial(
        attention._splash, scale=0.1, segment_BxL=segment_BxL if packed else None, interpret=True
    )
    xla = functools.partial(attention.attend, scale=0.1, mask=mask)
    if sizes:
        with jax.set_mesh(meshes.make_mesh(**dict(zip(meshes.AXES, sizes, strict=True)))):
            ours = both(splash)
    else:
        ours = both(splash)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(both(xla)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_attention_equals_torchs(groups):
    torch = pytest.importorskip("torch", reason="torch is in the extra `dev`")
    rng = np.random.default_rng(0)
    query = rng.normal(size=(2, 4, 16, 8)).astype(np.float32)
    key, value = rng.normal(size=(2, 2, groups, 16, 8)).astype(np.float32)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (query, key, value)), is_causal=True, enable_gqa=True
    )
    np.testing.assert_allclose(attention.attend(query, key, value), theirs.numpy(), atol=1e-5)
    # The last queries alone, against all keys, are the same rows.
    last = attention.attend(query[:, :, -3:], key, value)
    np.testing.assert_allclose(last, theirs.numpy()[:, :, -3:], atol=1e-5)


def looked_at(query, key, value, sees):
    """Attention query by query in float64; `sees(b, i, j)`: does query i attend to key j?"""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    B, H, L, K = query.shape
    group, result = H // key.shape[1], np.zeros((B, H, L, K))
    for b, h, i in np.ndindex(B, H, L):
        keys = [j for j in range(key.shape[2]) if sees(b, i, j)]
        logits = key[b, h // group, keys] @ query[b, h, i] / np.sqrt(K)
        weights = np.exp(logits - logits.max())
        result[b, h, i] = weights @ value[b, h // group, keys] / weights.sum()
    return result


@pytest.mark.parametrize("groups", mostly_slow([4, 2, 1], [2]))
def test_a_window_is_of_so_many_positions_the_own_included(groups):
    query = heads(0, count=4, length=12, dim=8)
    key, value = (heads(n, count=groups, length=12, dim=8) for n in (1, 2))
    for window in (1, 3, 12, 50):
        ours = attention.attend(query, key, value, window=window)
        expected = looked_at(query, key, value, lambda b, i, j, w=window: i - w < j <= i)
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        # The last queries alone, against all keys, are the same rows.
        last = attention.attend(query[:, :, -3:], key, value, window=window)
        np.testing.assert_allclose(last, expected[:, :, -3:], atol=1e-5)


@pytest.mark.parametrize("branched", mostly_slow([False, True], [True]))
def test_a_window_counts_positions_of_the_own_branch(branched):
    # A prefix of 4, branches of 3, 2 and 3 that continue it; another text of 3, with a branch; and
    # padding. The second row has other lengths.
    segment = np.array([[0] * 12 + [1] * 5 + [-1], [0] * 3 + [1] * 13 + [-1] * 2])
    branch = np.array([[0] * 4 + [1] * 3 + [2] * 2 + [3] * 3 + [0] * 3 + [1] * 2 + [0]] * 2)
    branch[1] = [0, 0, 1] + [0] * 5 + [1] * 4 + [2] * 4 + [0] * 2
    if not branched:
        branch[:] = 0
    position = np.zeros_like(segment)
    for b, i in np.ndindex(segment.shape):
        if segment[b, i] >= 0:
            same = (segment[b, :i] == segment[b, i]) & (
                (branch[b, :i] == 0) | (branch[b, :i] == branch[b, i])
            )
            position[b, i] = same.sum()
    query, key, value = (
        heads(n, count=count, length=18, dim=8) for n, count in enumerate((4, 2, 2))
    )
    mask = attention.Mask(
        jnp.asarray(segment), jnp.asarray(branch) if branched else None, jnp.asarray(position)
    )
    for window in (1, 3, 5, 99):

        def sees(b, i, j, window=window):
            own = segment[b, i] == segment[b, j] and branch[b, j] in (0, branch[b, i])
            return own and j <= i and position[b, i] - position[b, j] < window

        ours = attention.attend(query, key, value, mask=mask, window=window)
        real = segment >= 0
        expected = looked_at(query, key, value, sees)
        for got, wanted in zip(
            np.asarray(ours).swapaxes(1, 2)[real], expected.swapaxes(1, 2)[real], strict=True
        ):
            np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("groups", "window", "packed"),
    [
        pytest.param(2, None, False, marks=pytest.mark.slow),
        pytest.param(1, 40, False, marks=pytest.mark.slow),
        pytest.param(2, 130, False, marks=pytest.mark.slow),
        (2, 256, True),
        pytest.param(1, 40, True, marks=pytest.mark.slow),
    ],
)
def test_splash_has_grouped_heads_and_a_window_with_gradients(groups, window, packed):
    query, key, value = (
        heads(n, batch=1, count=count, length=256) for n, count in enumerate((4, groups, groups))
    )
    cotangent = heads(3, batch=1, count=4, length=256)
    segment_BxL = jnp.asarray(np.repeat([[0, 1, 2]], [100, 130, 26], axis=1)) if packed else None
    positions = np.concatenate([np.arange(n) for n in (100, 130, 26)])[None]
    mask = attention.Mask(segment_BxL, None, jnp.asarray(positions)) if packed else None

    def both(kernel):
        def loss(*qkv):
            return (kernel(*qkv) * cotangent).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(query, key, value)

    options = {"segment_BxL": segment_BxL, "window": window, "interpret": True}
    ours = both(functools.partial(attention._splash, scale=0.1, **options))
    theirs = both(functools.partial(attention.attend, scale=0.1, mask=mask, window=window))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


def test_splash_with_grouped_heads_on_devices_is_that_on_one():
    arrays = [heads(n, batch=4, count=count) for n, count in enumerate((4, 2, 2))]
    splash = functools.partial(attention._splash, scale=0.1, window=40, interpret=True)
    one = jax.jit(splash)(*arrays)
    with jax.set_mesh(meshes.make_mesh(data=2, fsdp=2, tensor=2)):
        eight = jax.jit(splash)(*arrays)
    np.testing.assert_allclose(eight, one, atol=1e-6)
    np.testing.assert_allclose(one, attention.attend(*arrays, scale=0.1, window=40), atol=2e-5)


def test_key_value_heads_that_do_not_divide_over_the_devices():
    query, key = heads(0, batch=4, count=4, dtype=jnp.bfloat16), heads(1, batch=4, count=1)
    with jax.sharding.use_abstract_mesh(absent("tpu", (2, 1, 2))):
        assert attention.choose_kernel("auto", query, key) == "xla"
        with pytest.raises(ValueError, match="4 rows and 1 heads do not divide over 2 x 2"):
            attention.choose_kernel("splash", query, key)


def test_a_prefix_tree_shows_each_branch_its_prefix_and_itself():
    segment = jnp.array([[0, 0, 0, 0, 0, 1, 1, -1]])
    branch = jnp.array([[0, 0, 1, 2, 2, 0, 1, 0]])
    visible = np.asarray(attention.Mask(segment, branch).visible())[0].astype(int)
    assert visible.tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 1],
    ]


def test_cudnn_gets_causal_attention_without_a_mask(monkeypatch):
    options = {}

    def record(query, key, value, **given):
        options.update(given, shape=query.shape)
        return value

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    query = heads(0, dtype=jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(absent("gpu")):
        assert attention.attend(query, query, query, kernel="cudnn").shape == query.shape
        expected = {
            "scale": 0.125,
            "is_causal": True,
            "implementation": "cudnn",
            "local_window_size": None,
            "shape": (2, 128, 2, 64),
        }
        assert options == expected
        attention.attend(query, query, query, kernel="cudnn", window=5)
    assert options == {**expected, "local_window_size": (4, 0)}


def test_the_window_of_jaxs_attention_is_ours():
    query, key, value = (heads(n, count=count, length=16) for n, count in enumerate((4, 2, 2)))
    ours = attention.attend(query, key, value, window=5)
    swapped = (x.swapaxes(1, 2) for x in (query, key, value))
    theirs = jax.nn.dot_product_attention(*swapped, is_causal=True, local_window_size=(4, 0))
    np.testing.assert_allclose(ours, theirs.swapaxes(1, 2), atol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attention": "flash"}, "one of auto, xla, splash, cudnn"),
        ({"attention": "splash", "width": 160, "heads": 2}, "not 80; choose auto or xla"),
        ({"attention": "cudnn", "compute_dtype": "float32"}, "not in float32"),
    ],
)
def test_configs_that_no_device_could_run(values, message):
    with pytest.raises(ValueError, match=message):
        GPT2Config(**values)


def test_training_with_dropout_needs_xla():
    mesh = meshes.make_mesh(fsdp=8)
    config = GPT2Config(attention="splash", attention_dropout=0.1)
    with pytest.raises(ValueError, match="runs on a TPU"):
        attention.training_kernel(config, mesh)
    assert attention.training_kernel(GPT2Config(), mesh) == "xla"
