"""The decoder: a GPT laid out for decoding, its key-value cache, and the step that uses both.

Axes: B rows, G sequences that share a row's prompt (beams; else 1), Q queries of a row (G in the
loop, the prompt's length in prefill), S slots of the cache, and those of `model/gpt.py`.

A model's layers are stacked, for training scans them. Here each has arrays of its own, in the
compute dtype, and the loop over them is unrolled: XLA then reads every weight where it lies and
writes every cache where it lies. Slots 0..P-1 hold a row's prompt, without its last token and
aligned to the right; slot P + step * G + g holds the token that sequence g was given at `step`.
So no step copies, moves or reorders what is cached, not even for beams: they are told apart by
what each query may see.
"""

import dataclasses
import functools
import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from biomedlm_jax import mesh as meshes
from biomedlm_jax.mesh import constrain
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.training.state import abstract_model

# Of each layer: keys and values [B, H, S, K], on one CPU [B * H, S, K].
Cache = tuple[tuple[jax.Array, jax.Array], ...]

# The logical axes of a layer's arrays. Queries, keys and values are one product whose columns are
# ordered by head first, so that tensor parallelism cuts between heads.
LAYER_AXES = {
    "ln_1.scale": (None,),
    "ln_1.bias": (None,),
    "c_attn.kernel": ("embed", "heads"),
    "c_attn.bias": ("heads",),
    "attn.c_proj.kernel": ("heads", "embed"),
    "attn.c_proj.bias": (None,),
    "ln_2.scale": (None,),
    "ln_2.bias": (None,),
    "c_fc.kernel": ("embed", "mlp"),
    "c_fc.bias": ("mlp",),
    "mlp.c_proj.kernel": ("mlp", "embed"),
    "mlp.c_proj.bias": (None,),
}
TABLE_AXES = {
    "wte": ("vocab", "embed"),
    "head": ("embed", "vocab"),
    "wpe": (None, "embed"),
    "ln_f.scale": (None,),
    "ln_f.bias": (None,),
}


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("layers", "tables"), meta_fields=("config",)
)
@dataclasses.dataclass(frozen=True)
class Decoder:
    """A model's weights for decoding: `layers[i]` and `tables` are dictionaries of arrays."""

    layers: tuple[dict[str, jax.Array], ...]
    tables: dict[str, jax.Array]
    config: GPTConfig


def make_decoder(model: GPT) -> Decoder:
    """Lay out `model` for decoding, in its compute dtype and on its own devices.

    Takes the memory of another copy in that dtype; the model itself is not needed afterwards.
    """
    mesh = mesh_of(model)
    on_cpu = jax.default_backend() == "cpu"
    shardings = None if mesh is None else _shardings(model.config, mesh, on_cpu)
    lay_out = jax.jit(_lay_out, static_argnums=1, out_shardings=shardings)
    return lay_out(model, on_cpu)


def abstract_decoder(config: GPTConfig, mesh: Mesh) -> Decoder:
    """The decoder's shapes, dtypes and shardings on `mesh`, without its values."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda model: _lay_out(model, on_cpu), abstract_model(config, mesh)),
        _shardings(config, mesh, on_cpu),
    )


def make_cache(config: GPTConfig, batch: int, length: int) -> Cache:
    """An empty cache of `length` slots for `batch` rows.

    It takes 2 * layers * length * width * (bytes of the compute dtype) a row, and no more.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shape = _cache_shape(config, batch, length, mesh, meshes.platform())

    def zeros():
        empty = jnp.zeros(shape, config.dtype)
        return constrain(empty, "batch", "heads", None, None) if len(shape) == 4 else empty

    return tuple((zeros(), zeros()) for _ in range(config.layers))


def abstract_cache(config: GPTConfig, batch: int, length: int, mesh: Mesh) -> Cache:
    """The cache's shapes, dtypes and shardings on `mesh`, without its values."""
    shape = _cache_shape(config, batch, length, mesh, mesh.devices.flat[0].platform)
    axes = ("batch", "heads", None, None) if len(shape) == 4 else ()
    one = jax.ShapeDtypeStruct(shape, config.dtype, sharding=meshes.sharding(mesh, *axes))
    return ((one, one),) * config.layers


def _cache_shape(config: GPTConfig, batch: int, length: int, mesh, platform: str):
    # On one CPU rows and heads are one axis: of a single row, XLA drops the axis of size 1 before
    # the products, and its CPU then copies every cache four times a step.
    merged = platform == "cpu" and mesh.size <= 1
    over = (batch * config.heads,) if merged else (batch, config.heads)
    return *over, length, config.head_dim


def cache_bytes(config: GPTConfig, length: int) -> int:
    """Bytes of one row's cache of `length` slots."""
    return 2 * config.layers * length * config.width * jnp.dtype(config.dtype).itemsize


def decode_step(
    decoder: Decoder,
    cache: Cache,
    tokens_BxG: jax.Array,
    positions_BxG: jax.Array,
    slot: jax.Array,
    visible_BxGxS: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Feed one token to each sequence: logits [B, G, V] in float32, and the cache with it.

    A pure function of its arguments, to be jitted (and the cache donated) by the caller. The keys
    and values go into the slots `slot` .. `slot + G - 1` before they are looked at.
    """
    x_BxGxD, cache = _states(decoder, cache, tokens_BxG, positions_BxG, slot, visible_BxGxS)
    config, tables = decoder.config, decoder.tables
    x_BxGxD = _norm(x_BxGxD, tables["ln_f.scale"], tables["ln_f.bias"], config)
    head_DxV = tables["head"] if "head" in tables else tables["wte"].T
    logits_BxGxV = _product(x_BxGxD, head_DxV, jnp.float32)
    return logits_BxGxV[..., : config.vocab_size], cache


def prefill(decoder: Decoder, cache: Cache, tokens_BxP: jax.Array, lengths_B: jax.Array) -> Cache:
    """Fill the slots 0..P-1 with prompts of `lengths_B` tokens, aligned to the right."""
    P = tokens_BxP.shape[1]
    starts_Bx1 = P - lengths_B[:, None]
    positions_BxP = jnp.maximum(jnp.arange(P) - starts_Bx1, 0)
    causal_PxP = jnp.arange(P) <= jnp.arange(P)[:, None]
    visible_BxPxP = causal_PxP & (jnp.arange(P) >= starts_Bx1)[:, None]
    _, cache = _states(decoder, cache, tokens_BxP, positions_BxP, 0, visible_BxPxP)
    return cache


def fingerprint(decoder: Decoder) -> str:
    """Identify the weights and how they compute, the same on every mesh, without reading them all.

    A SHA-256 (hexadecimal) of the config, the compute dtype and up to 64 numbers of each array.
    """
    config, tables = decoder.config, {k: v for k, v in decoder.tables.items() if k != "head"}
    arrays = jax.tree.leaves((decoder.layers, tables))

    def firsts(arrays: list[jax.Array]) -> jax.Array:
        some = [x[(0,) * (x.ndim - 1)][:64].astype(jnp.float32) for x in arrays]
        return jnp.concatenate(some)

    mesh = mesh_of(decoder)
    whole = None if mesh is None else meshes.sharding(mesh)
    some = np.asarray(jax.jit(firsts, out_shardings=whole)(arrays))
    computed = repr((config.architecture(), config.dtype.__name__))
    return hashlib.sha256(computed.encode() + some.tobytes()).hexdigest()


def mesh_of(model: GPT | Decoder) -> Mesh | None:
    """The mesh of several devices that the parameters are spread over, or None."""
    sharding = getattr(jax.tree.leaves(model)[0], "sharding", None)
    several = isinstance(sharding, NamedSharding) and sharding.mesh.size > 1
    return sharding.mesh if several else None


def _states(decoder, cache, tokens_BxQ, positions_BxQ, slot, visible_BxQxS):
    """The residual stream after all layers [B, Q, D], and the cache with these tokens in it."""
    config, tables = decoder.config, decoder.tables
    x_BxQxD = tables["wte"][tokens_BxQ].astype(config.dtype)
    x_BxQxD += tables["wpe"][positions_BxQ].astype(config.dtype)
    filled = []
    for index, layer in enumerate(decoder.layers):
        x_BxQxD = constrain(x_BxQxD, "batch", None, None)
        y_BxQxD, keys_and_values = _attention(
            layer, index, config, x_BxQxD, cache[index], slot, visible_BxQxS
        )
        filled.append(keys_and_values)
        x_BxQxD += y_BxQxD
        y_BxQxD = _norm(x_BxQxD, layer["ln_2.scale"], layer["ln_2.bias"], config)
        y_BxQxF = _product(y_BxQxD, layer["c_fc.kernel"]) + layer["c_fc.bias"]
        y_BxQxF = jax.nn.gelu(y_BxQxF, approximate=True)
        x_BxQxD += _product(y_BxQxF, layer["mlp.c_proj.kernel"]) + layer["mlp.c_proj.bias"]
    return x_BxQxD, tuple(filled)


def _attention(layer, index, config, x_BxQxD, keys_and_values, slot, visible_BxQxS):
    B, Q, _ = x_BxQxD.shape
    y_BxQxD = _norm(x_BxQxD, layer["ln_1.scale"], layer["ln_1.bias"], config)
    y_BxQxE = _product(y_BxQxD, layer["c_attn.kernel"]) + layer["c_attn.bias"]
    y_BxQxHx3xK = y_BxQxE.reshape(B, Q, config.heads, 3, config.head_dim)
    query_BxHxQxK, *new = (y_BxQxHx3xK[:, :, :, i].swapaxes(1, 2) for i in range(3))
    scale = 1 / math.sqrt(config.head_dim)
    if config.scale_attn_by_inverse_layer_idx:
        scale /= index + 1
    filled = tuple(_fill(*pair, slot) for pair in zip(keys_and_values, new, strict=True))
    # In prefill the tokens look at one another only, which spares the slots that are still empty.
    key_xSxK, value_xSxK = new if visible_BxQxS.shape[-1] == Q else filled
    x = key_xSxK.shape[:-2]  # B, H; or their product
    query_xQxK = query_BxHxQxK.reshape(*x, *query_BxHxQxK.shape[2:])
    logits_xQxS = jnp.einsum(
        "...QK,...SK->...QS", query_xQxK, key_xSxK, preferred_element_type=jnp.float32
    )
    logits_BxHxQxS = logits_xQxS.reshape(B, config.heads, Q, -1) * scale
    least = jnp.finfo(jnp.float32).min
    logits_BxHxQxS = jnp.where(visible_BxQxS[:, None], logits_BxHxQxS, least)
    weights_BxHxQxS = jax.nn.softmax(logits_BxHxQxS, axis=-1).astype(config.dtype)
    weights_xQxS = weights_BxHxQxS.reshape(*x, Q, -1)
    y_xQxK = jnp.einsum("...QS,...SK->...QK", weights_xQxS, value_xSxK)
    y_BxHxQxK = y_xQxK.reshape(query_BxHxQxK.shape)
    y_BxQxD = y_BxHxQxK.swapaxes(1, 2).reshape(B, Q, -1)
    y_BxQxD = _product(y_BxQxD, layer["attn.c_proj.kernel"]) + layer["attn.c_proj.bias"]
    return y_BxQxD, filled


def _fill(old: jax.Array, new_BxHxQxK: jax.Array, slot) -> jax.Array:
    """The cache `old`, in its own shape, with new keys or values from `slot` on."""
    new = new_BxHxQxK.reshape(*old.shape[:-2], *new_BxHxQxK.shape[2:])
    filled = jax.lax.dynamic_update_slice(old, new, (*(0,) * (old.ndim - 2), slot, 0))
    return constrain(filled, "batch", "heads", None, None) if old.ndim == 4 else filled


def _product(x_BxQxI, kernel_IxO, dtype=None):
    # As a product of two matrices, because XLA's CPU runs a batched one row by row.
    B, Q, _ = x_BxQxI.shape
    y = jnp.dot(x_BxQxI.reshape(B * Q, -1), kernel_IxO, preferred_element_type=dtype)
    return y.reshape(B, Q, -1)


def _norm(x_BxQxD, scale_D, bias_D, config):
    x_BxQxD = x_BxQxD.astype(jnp.float32)
    centred_BxQxD = x_BxQxD - x_BxQxD.mean(-1, keepdims=True)
    variance_BxQx1 = jnp.square(centred_BxQxD).mean(-1, keepdims=True)
    y_BxQxD = centred_BxQxD * jax.lax.rsqrt(variance_BxQx1 + config.layer_norm_epsilon)
    return (y_BxQxD * scale_D + bias_D).astype(config.dtype)


def _lay_out(model: GPT, on_cpu: bool) -> Decoder:
    config = model.config
    dtype, h = config.dtype, model.h
    projections = [h.attn.c_attn.query, h.attn.c_attn.key, h.attn.c_attn.value]

    def joined(name: str) -> jax.Array:
        # [N, (D,) H * K] three times -> [N, (D,) H * 3 * K]
        parts = [getattr(p, name)[...] for p in projections]
        parts = [p.reshape(*p.shape[:-1], config.heads, 1, config.head_dim) for p in parts]
        return jnp.concatenate(parts, -2).reshape(*parts[0].shape[:-3], -1)

    stacked = {
        "ln_1.scale": h.ln_1.scale[...],
        "ln_1.bias": h.ln_1.bias[...],
        "c_attn.kernel": joined("kernel").astype(dtype),
        "c_attn.bias": joined("bias").astype(dtype),
        "attn.c_proj.kernel": h.attn.c_proj.kernel[...].astype(dtype),
        "attn.c_proj.bias": h.attn.c_proj.bias[...].astype(dtype),
        "ln_2.scale": h.ln_2.scale[...],
        "ln_2.bias": h.ln_2.bias[...],
        "c_fc.kernel": h.mlp.c_fc.kernel[...].astype(dtype),
        "c_fc.bias": h.mlp.c_fc.bias[...].astype(dtype),
        "mlp.c_proj.kernel": h.mlp.c_proj.kernel[...].astype(dtype),
        "mlp.c_proj.bias": h.mlp.c_proj.bias[...].astype(dtype),
    }
    layers = tuple({k: v[i] for k, v in stacked.items()} for i in range(config.layers))
    wte_VxD = model.wte[...].astype(dtype)
    tables = {
        "wte": wte_VxD,
        "wpe": model.wpe[...].astype(dtype),
        "ln_f.scale": model.ln_f.scale[...],
        "ln_f.bias": model.ln_f.bias[...],
    }
    if on_cpu:
        # XLA's CPU multiplies up to twice as fast by a matrix whose rows are the inputs.
        tables["head"] = wte_VxD.T
    return Decoder(layers, tables, config)


def _shardings(config: GPTConfig, mesh: Mesh, on_cpu: bool) -> Decoder:
    layer = {name: meshes.sharding(mesh, *axes) for name, axes in LAYER_AXES.items()}
    tables = {name: meshes.sharding(mesh, *axes) for name, axes in TABLE_AXES.items()}
    if not on_cpu:
        del tables["head"]
    return Decoder((layer,) * config.layers, tables, config)
