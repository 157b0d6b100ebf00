"""attend(): causal scaled dot-product attention by a named implementation, never another.

    splash  the Pallas kernel for TPUs, with a fused backward pass
    cudnn   the kernel of NVIDIA's cuDNN
    xla     plain products and a softmax: everywhere, and the only one with masks and dropout
    auto    splash on a TPU, cudnn on a GPU, where they can serve; else xla

`auto` decides by the platform of the mesh (so also while compiling for devices that are not here)
and by what is asked for, never by trying; its choice is logged once. A kernel asked for by name
that cannot serve is an error that names what to choose. Padding on the right needs neither a mask
nor lengths: causal attention shows it to no token before it.
"""

import functools
import logging
import math

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from biomedlm_jax import mesh as meshes

NAMES = ("auto", "xla", "splash", "cudnn")
PLATFORMS = {"splash": "tpu", "cudnn": "gpu"}
LOG = logging.getLogger("biomedlm_jax")
SPLASH_BLOCKS = (512, 256, 128)  # positions of a tile: the largest that divides the length
SPLASH_KEYS = 1_024  # the most keys of a backward tile


def attend(
    query_BxHxLxK: jax.Array,
    key_BxHxSxK: jax.Array,
    value_BxHxSxK: jax.Array,
    *,
    kernel: str = "xla",
    scale: float | None = None,
    visible_BxLxS: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention in float32 over the visible keys, returned as [B, H, L, K].

    The logits are multiplied with `scale`, 1 / sqrt(K) by default. Without `visible_BxLxS`
    (booleans) attention is causal: each query sees the keys up to its own place, and with more
    keys than queries these are the last.
    What the backward pass needs of the result bears the checkpoint name `attention`.

    Raises ValueError if the kernel asked for cannot serve, saying why and what to choose.
    """
    scale = 1 / math.sqrt(query_BxHxLxK.shape[3]) if scale is None else scale
    dropping = dropout_key is not None and dropout_rate > 0
    asked = {"masked": visible_BxLxS is not None, "dropping": dropping}
    chosen = choose(kernel, query_BxHxLxK, key_BxHxSxK, **asked)
    if chosen == "splash":
        return _splash(query_BxHxLxK, key_BxHxSxK, value_BxHxSxK, scale)
    if chosen == "cudnn":
        y_BxHxLxK = _cudnn(query_BxHxLxK, key_BxHxSxK, value_BxHxSxK, scale)
    else:
        dropping = {"rate": dropout_rate, "key": dropout_key}
        y_BxHxLxK = _xla(
            query_BxHxLxK, key_BxHxSxK, value_BxHxSxK, scale, visible_BxLxS, **dropping
        )
    return checkpoint_name(y_BxHxLxK, "attention")


def choose(kernel: str, query_BxHxLxK, key_BxHxSxK, *, masked: bool, dropping: bool) -> str:
    """The implementation that serves this call: `kernel` itself, or what `auto` stands for here.

    Raises ValueError if the kernel named cannot serve.
    """
    device = meshes.platform()
    best = next((name for name, theirs in PLATFORMS.items() if theirs == device), "xla")
    wanted = best if kernel == "auto" else kernel
    why = obstacle(
        wanted,
        platform=device,
        queries=query_BxHxLxK.shape[2],
        keys=key_BxHxSxK.shape[2],
        head_dim=query_BxHxLxK.shape[3],
        dtype=query_BxHxLxK.dtype.name,
        masked=masked,
        dropping=dropping,
    )
    B, H = query_BxHxLxK.shape[:2]
    mesh = jax.sharding.get_abstract_mesh()
    rows, parts = (meshes.axis_shards(mesh, axis) for axis in ("batch", "heads"))
    if why is None and wanted != "xla" and (B % rows or H % parts):
        why = f"{B} rows and {H} heads do not divide over {rows} x {parts} devices"
    if why is not None:
        if kernel != "auto":
            raise ValueError(f"model.attention={kernel}: {why}; choose auto or xla")
        wanted = "xla"
    _say_once(kernel, wanted, device, why)
    return wanted


def check_training(config, mesh) -> str:
    """The kernel that a training step of this config takes on this mesh, found without tracing.

    Raises ValueError if the kernel named in the config cannot serve.
    """
    L = config.context_length
    query_BxHxLxK = jax.ShapeDtypeStruct(
        (meshes.batch_shards(mesh), config.heads, L, config.head_dim), config.dtype
    )
    dropping = config.attention_dropout > 0
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        asked = {"masked": False, "dropping": dropping}
        return choose(config.attention, query_BxHxLxK, query_BxHxLxK, **asked)


def obstacle(
    kernel: str,
    *,
    platform: str,
    queries: int,
    keys: int,
    head_dim: int,
    dtype: str,
    masked: bool = False,
    dropping: bool = False,
) -> str | None:
    """Why `kernel` cannot serve such a call, or None if it can.

    `queries` and `keys` are lengths, `platform` is jax's name of it (cpu, gpu, tpu).
    """
    if kernel == "xla":
        return None
    if platform != PLATFORMS[kernel]:
        return f"it runs on a {PLATFORMS[kernel].upper()}, and the devices here are of {platform}"
    if dropping:
        return "it has no dropout (model.attention_dropout above 0 needs xla)"
    if masked:
        return "it is causal and takes no mask"
    if queries != keys:
        return f"it takes as many queries as keys, not {queries} and {keys}"
    if kernel == "splash" and queries % SPLASH_BLOCKS[-1]:
        return f"it works on blocks of {SPLASH_BLOCKS[-1]} positions, not on {queries}"
    return never(kernel, head_dim=head_dim, dtype=dtype)


def never(kernel: str, *, head_dim: int, dtype: str) -> str | None:
    """Why `kernel` can serve no call with such heads and such a dtype (or `auto`), or None."""
    if kernel == "splash" and head_dim % 64:
        return f"heads must be a multiple of 64 wide, not {head_dim}"
    if kernel == "cudnn" and dtype not in ("auto", "bfloat16", "float16"):
        return f"it computes in bfloat16, not in {dtype} (model.compute_dtype)"
    if kernel == "cudnn" and (head_dim % 8 or head_dim > 128):
        return f"heads must be a multiple of 8 wide and at most 128, not {head_dim}"
    return None


@functools.cache
def _say_once(asked: str, chosen: str, device: str, why: str | None) -> None:
    reason = f" ({why})" if why else ""
    LOG.info("attention: %s on %s%s", chosen, device, reason if asked == "auto" else "")


def _xla(query_BxHxLxK, key_BxHxSxK, value_BxHxSxK, scale, visible_BxLxS, *, rate, key):
    L, S = query_BxHxLxK.shape[2], key_BxHxSxK.shape[2]
    logits_BxHxLxS = jnp.einsum(
        "BHLK,BHSK->BHLS", query_BxHxLxK, key_BxHxSxK, preferred_element_type=jnp.float32
    )
    logits_BxHxLxS *= scale
    if visible_BxLxS is None:
        visible_BxLxS = (jnp.arange(S) <= jnp.arange(S - L, S)[:, None])[None]
    least = jnp.finfo(jnp.float32).min
    logits_BxHxLxS = jnp.where(visible_BxLxS[:, None], logits_BxHxLxS, least)
    weights_BxHxLxS = jax.nn.softmax(logits_BxHxLxS, axis=-1).astype(value_BxHxSxK.dtype)
    weights_BxHxLxS = dropout(weights_BxHxLxS, rate, key)
    return jnp.einsum("BHLS,BHSK->BHLK", weights_BxHxLxS, value_BxHxSxK)


def _splash(query_BxHxLxK, key_BxHxSxK, value_BxHxSxK, scale, *, interpret: bool = False):
    H, L = query_BxHxLxK.shape[1:3]
    query_BxHxLxK = (query_BxHxLxK * scale).astype(query_BxHxLxK.dtype)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _splash_kernel(H, L, interpret)(query_BxHxLxK, key_BxHxSxK, value_BxHxSxK)
    # XLA cannot partition a kernel: each device runs it on its own rows and heads.
    parts = meshes.spec("batch", "heads", None, None)
    kernel = _splash_kernel(H // meshes.axis_shards(mesh, "heads"), L, interpret)
    shards = jax.shard_map(kernel, in_specs=(parts,) * 3, out_specs=parts, check_vma=False)
    return shards(query_BxHxLxK, key_BxHxSxK, value_BxHxSxK)


def _splash_kernel(heads: int, length: int, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention  # slow to import

    block = next(size for size in SPLASH_BLOCKS if length % size == 0)
    # One block of keys in the backward pass, where it fits: several would leave a sum over them.
    keys = length if length <= SPLASH_KEYS else block
    mask = splash_attention.CausalMask((length, length))
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=keys,
            block_kv_dkv_compute=block,
            use_fused_bwd_kernel=True,
        ),
        residual_checkpoint_name="attention",  # of the output and its log-sum-exp
        interpret=interpret,
    )
    return jax.vmap(kernel)


def _cudnn(query_BxHxLxK, key_BxHxSxK, value_BxHxSxK, scale):
    # cuDNN's layout is [B, L, H, K]; the transposes are of strides and cost no copy.
    query, key, value = (a.swapaxes(1, 2) for a in (query_BxHxLxK, key_BxHxSxK, value_BxHxSxK))
    y_BxLxHxK = jax.nn.dot_product_attention(
        query, key, value, scale=scale, is_causal=True, implementation="cudnn"
    )
    return y_BxLxHxK.swapaxes(1, 2)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zero each element with probability `rate` and scale the rest up; without a key, x itself."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
