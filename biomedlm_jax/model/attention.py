"""attend(): scaled dot-product attention by a named kernel, with no silent fallback.

    splash  the Pallas kernel for TPUs, with a fused backward pass
    cudnn   the kernel of NVIDIA's cuDNN
    xla     matrix products and a softmax: everywhere, and the only one with every mask and dropout
    auto    splash on a TPU, cudnn on a GPU, if they support the call; else xla, with a log line

`auto` depends on the platform of the mesh (also while compiling for absent devices) and on the
arguments; each choice is logged once. Padding on the right needs no mask.

Axes: B batch, L queries, S keys, H heads, G key/value heads (a divisor of H), K head dimension.
"""

import functools
import logging
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from biomedlm_jax import mesh as meshes
from biomedlm_jax.errors import InputError
from biomedlm_jax.model.layers import dropout

NAMES = ("auto", "xla", "splash", "cudnn")
PLATFORMS = {"splash": "tpu", "cudnn": "gpu"}
_log_once = functools.cache(logging.getLogger("biomedlm_jax").info)
SPLASH_BLOCKS = (512, 256, 128)  # positions of a tile: the largest that divides the length
SPLASH_KEYS = 2_048  # the most keys of a backward tile


class Mask(NamedTuple):
    """Packed rows: a token attends to the tokens of its own segment, up to itself.

    With branches (a prefix tree), it attends to those of its segment's branch 0 and of its own.
    """

    segment_BxL: jax.Array  # -1: padding
    branch_BxL: jax.Array | None = None  # 0: the segment's prefix
    position_BxL: jax.Array | None = None  # position ids, which a sliding window counts

    def visible(self, window: int | None = None) -> jax.Array:
        """Return the attention mask [B, L, L]: true where a query attends to a key (last axis)."""
        segment_BxL, branch_BxL, position_BxL = self
        visible_BxLxL = segment_BxL[:, :, None] == segment_BxL[:, None, :]
        if branch_BxL is not None:
            same_BxLxL = branch_BxL[:, :, None] == branch_BxL[:, None, :]
            visible_BxLxL &= same_BxLxL | (branch_BxL[:, None, :] == 0)
        if window is not None:
            # Not the places in the row: a later branch continues the prefix.
            assert position_BxL is not None
            visible_BxLxL &= within(window, position_BxL, position_BxL)
        return visible_BxLxL & jax.lax.expand_dims(jnp.tri(segment_BxL.shape[1], dtype=bool), (0,))


def within(window: int, queries_BxL: jax.Array, keys_BxS: jax.Array) -> jax.Array:
    """Return [B, L, S], true where a key is at most `window` - 1 positions before the query."""
    return queries_BxL[:, :, None] - keys_BxS[:, None, :] < window


def attend(
    query_BxHxLxK: jax.Array,
    key_BxGxSxK: jax.Array,
    value_BxGxSxK: jax.Array,
    *,
    kernel: str = "xla",
    scale: float | None = None,
    mask: Mask | None = None,
    window: int | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Return causal softmax attention [B, H, L, K], saved under the checkpoint name `attention`.

    `scale` is 1 / sqrt(K) by default. With more keys than queries the queries are the last
    positions. With a `window`, a token attends to that many positions only, the last its own; a
    mask needs position ids then. Raises InputError, with the reason, if the named kernel does not
    support the call.
    """
    scale = 1 / math.sqrt(query_BxHxLxK.shape[3]) if scale is None else scale
    segment_BxL, branch_BxL, _ = mask or (None,) * 3
    features = {"segments": segment_BxL is not None, "branches": branch_BxL is not None}
    features["dropping"] = dropout_key is not None and dropout_rate > 0
    chosen = choose_kernel(kernel, query_BxHxLxK, key_BxGxSxK, **features)
    arrays = query_BxHxLxK, key_BxGxSxK, value_BxGxSxK
    if chosen == "splash":
        return _splash(*arrays, scale, segment_BxL, window=window)
    if chosen == "cudnn":
        # cuDNN's layout is [B, L, H, K]; the transposes are of strides and cost no copy.
        y_BxLxHxK = jax.nn.dot_product_attention(
            *(array.swapaxes(1, 2) for array in arrays),
            scale=scale,
            is_causal=True,
            local_window_size=None if window is None else (window - 1, 0),
            implementation="cudnn",
        )
        y_BxHxLxK = y_BxLxHxK.swapaxes(1, 2)
    else:
        L, S = query_BxHxLxK.shape[2], key_BxGxSxK.shape[2]
        keys_S, queries_Lx1 = jnp.arange(S), jnp.arange(S - L, S)[:, None]
        causal_1xLxS = (keys_S[None] <= queries_Lx1)[None]
        if window is not None:
            causal_1xLxS &= within(window, queries_Lx1.T, keys_S[None])
        visible_BxLxS = causal_1xLxS if mask is None else mask.visible(window)
        dropped = {"rate": dropout_rate, "key": dropout_key}
        y_BxHxLxK = softmax_attention(*arrays, visible_BxLxS, scale=scale, **dropped)
    return checkpoint_name(y_BxHxLxK, "attention")


def softmax_attention(
    query_BxHxLxK, key_xSxK, value_xSxK, visible_BxLxS, *, scale=1.0, rate=0.0, key=None
) -> jax.Array:
    """Return attention [B, H, L, K] over the visible keys, by einsum and softmax.

    `x` is B, G (key/value heads, each shared by H / G query heads), or their product.
    """
    B, H, L, K = query_BxHxLxK.shape
    x = key_xSxK.shape[:-2]
    query_xQxK = query_BxHxLxK.reshape(*x, -1, K)  # Q: the queries that share keys
    logits_xQxS = jnp.einsum(
        "...QK,...SK->...QS", query_xQxK, key_xSxK, preferred_element_type=jnp.float32
    )
    logits_BxHxLxS = logits_xQxS.reshape(B, H, L, -1)
    if scale != 1.0:
        logits_BxHxLxS *= scale
    least = jnp.finfo(jnp.float32).min
    logits_BxHxLxS = jnp.where(visible_BxLxS[:, None], logits_BxHxLxS, least)
    weights_BxHxLxS = jax.nn.softmax(logits_BxHxLxS, axis=-1).astype(value_xSxK.dtype)
    weights_xQxS = dropout(weights_BxHxLxS, rate, key).reshape(logits_xQxS.shape)
    return jnp.einsum("...QS,...SK->...QK", weights_xQxS, value_xSxK).reshape(B, H, L, K)


def choose_kernel(kernel: str, query_BxHxLxK, key_BxGxSxK, **features: Any) -> str:
    """Resolve `auto` to a kernel, and check a named one; `features` as in `unsupported_reason`.

    Raises InputError if a named kernel does not support the call.
    """
    return _choose(kernel, query_BxHxLxK, key_BxGxSxK, **features)[0]


def _choose(kernel: str, query_BxHxLxK, key_BxGxSxK, **features: Any) -> tuple[str, str]:
    """Return what `choose_kernel` does, and why `auto` takes no fused kernel (else "")."""
    platform = meshes.platform()
    best = {theirs: name for name, theirs in PLATFORMS.items()}.get(platform, "xla")
    wanted = best if kernel == "auto" else kernel
    (B, _, L, K), (G, S) = query_BxHxLxK.shape, key_BxGxSxK.shape[1:3]
    sizes = {"queries": L, "keys": S, "head_dim": K, "dtype": query_BxHxLxK.dtype.name}
    reason = unsupported_reason(wanted, platform=platform, **features | sizes)
    mesh = jax.sharding.get_abstract_mesh()
    rows, parts = (meshes.axis_shards(mesh, axis) for axis in ("batch", "heads"))
    if reason is None and wanted != "xla" and (B % rows or G % parts):
        reason = f"{B} rows and {G} heads do not divide over {rows} x {parts} devices"
    if reason is not None:
        if kernel != "auto":
            raise InputError(f"got model.attention={kernel}: {reason}; choose auto or xla")
        reason, wanted = f"not {wanted}: {reason}", "xla"
    why = f" ({reason})" if reason else ""
    _log_once("attention: %s on %s%s", wanted, platform, why)
    return wanted, reason or ""


def unsupported_reason(
    kernel: str,
    *,
    platform: str | None = None,
    queries: int = SPLASH_BLOCKS[-1],
    keys: int = SPLASH_BLOCKS[-1],
    head_dim: int,
    dtype: str,
    segments: bool = False,
    branches: bool = False,
    dropping: bool = False,
) -> str | None:
    """Return why `kernel` does not support such a call, or None if it does.

    `queries` and `keys` are lengths, `platform` is jax's name (None: the kernel's own), `segments`
    and `branches` are the mask's parts, `dtype` may be auto.
    """
    if kernel not in PLATFORMS:
        return None
    splash, needed, block = kernel == "splash", PLATFORMS[kernel], SPLASH_BLOCKS[-1]
    if platform not in (None, needed):
        return f"it runs on a {needed.upper()}, and the platform is {platform}"
    if dropping:
        return "it has no dropout (set model.attention_dropout=0)"
    if branches:
        return "its masks cannot express several branches after one prefix"
    if segments and not splash:
        return "it is used for causal attention only, without packed segments"
    if queries != keys:
        return f"it takes as many queries as keys, not {queries} and {keys}"
    if splash and queries % block:
        return f"it works on blocks of {block} positions, not on {queries}"
    if splash and head_dim % 64:
        return f"heads must be a multiple of 64 wide, not {head_dim}"
    if not splash and dtype not in ("auto", "bfloat16", "float16"):
        return f"it computes in bfloat16, not in {dtype} (model.compute_dtype)"
    if not splash and (head_dim % 8 or head_dim > 128):
        return f"heads must be a multiple of 8 wide and at most 128, not {head_dim}"
    return None


def training_kernel(config, mesh, **rows: Any) -> str:
    """Return the kernel of a training step on `rows`, see `explained_kernel`."""
    return explained_kernel(config, mesh, **rows)[0]


def explained_kernel(
    config, mesh, *, length: int | None = None, **features: bool
) -> tuple[str, str]:
    """Return the kernel of a training step, and why `auto` takes no fused kernel (else "").

    Rows have `length` tokens (default: the context length). Nothing is traced. Raises InputError if
    the config names a kernel without support.
    """
    L, rows = length or config.context_length, meshes.batch_shards(mesh)
    query = jax.ShapeDtypeStruct((rows, config.heads, L, config.head_dim), config.dtype)
    key = jax.ShapeDtypeStruct((rows, config.key_value_heads, L, config.head_dim), config.dtype)
    features["dropping"] = config.attention_dropout > 0
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return _choose(config.attention, query, key, **features)


def _splash(
    query_BxHxLxK,
    key_BxGxSxK,
    value_BxGxSxK,
    scale,
    segment_BxL=None,
    *,
    window: int | None = None,
    interpret=False,
) -> Any:
    H, L = query_BxHxLxK.shape[1:3]
    query_BxHxLxK = (query_BxHxLxK * scale).astype(query_BxHxLxK.dtype)
    heads = meshes.spec("batch", "heads", None, None)
    arrays, in_specs = [query_BxHxLxK, key_BxGxSxK, value_BxGxSxK], [heads] * 3
    if segment_BxL is not None:
        arrays, in_specs = [*arrays, segment_BxL], [*in_specs, meshes.spec("batch", "length")]
    mesh = jax.sharding.get_abstract_mesh()
    kernel = _splash_kernel(H // meshes.axis_shards(mesh, "heads"), L, window, interpret)
    if not mesh.empty and mesh.size > 1:
        # XLA cannot partition a kernel: each device runs it on its own rows and heads.
        kernel = jax.shard_map(kernel, in_specs=tuple(in_specs), out_specs=heads, check_vma=False)
    return kernel(*arrays)


def _splash_kernel(heads: int, length: int, window: int | None, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention  # slow to import

    block = next(size for size in SPLASH_BLOCKS if length % size == 0)
    # One block of keys in the backward pass, where it fits: several would leave a sum over them.
    keys = length if length <= SPLASH_KEYS else block
    mask: Any = splash_attention.CausalMask((length, length))
    if window is not None and window < length:
        mask = splash_attention.LocalMask((length, length), (window - 1, 0), 0)
    names = ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv_compute")
    blocks: dict[str, Any] = {**dict.fromkeys(names, block), "block_kv_dkv": keys}
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(**blocks, use_fused_bwd_kernel=True),
        residual_checkpoint_name="attention",  # of the output and its log-sum-exp
        interpret=interpret,
    )

    def one_row(query, key, value, *segment):
        ids = splash_attention.SegmentIds(*segment, *segment) if segment else None
        return kernel(query, key, value, segment_ids=ids)

    return jax.vmap(one_row)
