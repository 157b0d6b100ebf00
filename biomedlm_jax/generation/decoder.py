"""The decoding model, its key-value cache, and the step that uses both.

Training scans stacked layers. For decoding each layer has its own arrays in the compute dtype, and
the loop over them is unrolled: XLA then reads every weight and updates every cache in place. The
blocks are the model's own; only the `attend` function that they are given differs.

Slots 0..P-1 of a cache hold a row's prompt without its last token, right-aligned; slot
P + step * W + g holds the token that sequence g was given at `step`. No step copies or reorders
what is cached, not even for beams: each query sees the slots of its own past only.

Axes: B rows, W sequences that share a row's prompt (beams; else 1), Q queries of a row (W in the
loop, the prompt's length in prefill), S slots, H key/value heads, K head dimension, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from biomedlm_jax import mesh as meshes
from biomedlm_jax.mesh import constrain
from biomedlm_jax.model.attention import softmax_attention, within
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.model.layers import axis_metadata

# Of each layer: keys and values [B, H, S, K], on a single CPU device [B * H, S, K]; or shapes.
Cache = tuple[tuple[Any, Any], ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoder:
    """A model with one block per layer; on a CPU with joined products and its head transposed.

    Its arrays are one list, so that no call of a jitted function flattens hundreds of modules.
    """

    leaves: list[Any]
    structure: Any = dataclasses.field(metadata={"static": True})

    @functools.cached_property
    def _parts(self) -> tuple[LanguageModel, nnx.Param | None]:
        return jax.tree.unflatten(self.structure, self.leaves)

    @property
    def model(self) -> LanguageModel:
        """The model, with a tuple of blocks."""
        return self._parts[0]

    @property
    def transposed_lm_head(self) -> nnx.Param | None:
        """The transposed output head [D, V], padding included."""
        return self._parts[1]

    @property
    def config(self) -> ModelConfig:
        """The model's config."""
        return self.model.config


def make_decoder(model: LanguageModel) -> Decoder:
    """Return the decoding form of `model`: a copy in its compute dtype, on its own devices."""
    mesh, on_cpu = mesh_of(model), jax.default_backend() == "cpu"
    build = functools.partial(_decoding_parts, on_cpu=on_cpu)
    shardings = None if mesh is None else meshes.tree_shardings(jax.eval_shape(build, model), mesh)
    return Decoder(*jax.tree.flatten(jax.jit(build, out_shardings=shardings)(model)))


def abstract_decoder(config: ModelConfig, mesh: Mesh) -> Decoder:
    """Return the decoder's shapes, dtypes and shardings on `mesh`, without values."""
    build = functools.partial(_decoding_parts, on_cpu=mesh.devices.flat[0].platform == "cpu")
    return Decoder(*jax.tree.flatten(meshes.abstract_sharded(build, mesh, abstract_model(config))))


def _decoding_parts(model: LanguageModel, *, on_cpu: bool):
    model, head = model.unstacked(model.config.dtype), None
    if on_cpu:
        blocks = tuple(block.with_joined_products() for block in model.blocks)
        model = model.with_blocks(nnx.data(blocks))
        # XLA's CPU multiplies up to twice as fast by a matrix whose rows are the inputs.
        head = nnx.Param(model.head_weight.T, **axis_metadata("embed", "vocab"))
    return model, head


def make_cache(config: ModelConfig, batch: int, length: int) -> Cache:
    """Return an empty cache of `length` slots for `batch` rows; `cache_bytes` is a row's size."""
    mesh = jax.sharding.get_abstract_mesh()
    shape = _cache_shape(config, batch, length, mesh, meshes.platform())
    zeros = (_constrain_cache(jnp.zeros(shape, config.dtype)) for _ in range(2 * config.layers))
    return tuple(zip(zeros, zeros, strict=True))


def abstract_cache(config: ModelConfig, batch: int, length: int, mesh: Mesh) -> Cache:
    """Return the cache's shapes, dtypes and shardings on `mesh`, without values."""
    shape = _cache_shape(config, batch, length, mesh, mesh.devices.flat[0].platform)
    names = ("batch", "heads", None, None) if len(shape) == 4 else ()
    one = jax.ShapeDtypeStruct(shape, config.dtype, sharding=meshes.sharding(mesh, *names))
    return ((one, one),) * config.layers


def cache_bytes(config: ModelConfig, length: int) -> int:
    """Return the bytes of one row's cache of `length` slots."""
    numbers = 2 * config.layers * length * config.key_value_heads * config.head_dim
    return numbers * jnp.dtype(config.dtype).itemsize


def decode_step(
    decoder: Decoder,
    cache: Cache,
    tokens_BxW: jax.Array,
    positions_BxW: jax.Array,
    slot: jax.Array,
    visible_BxWxS: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Decode one token of each sequence: return logits [B, W, V] in float32 and the new cache.

    A pure function, for a jit that donates the cache. Writes the slots `slot` .. `slot + W - 1`
    before attention reads them.
    """
    x_BxWxD, cache = _hidden(decoder, cache, tokens_BxW, positions_BxW, slot, visible_BxWxS)
    if decoder.transposed_lm_head is None:
        return decoder.model.logits(x_BxWxD), cache
    head_DxV = decoder.transposed_lm_head[...]
    logits_BxWxV = jnp.dot(x_BxWxD, head_DxV, preferred_element_type=jnp.float32)
    return logits_BxWxV[..., : decoder.config.vocab_size], cache


def prefill(decoder: Decoder, cache: Cache, tokens_BxP: jax.Array, lengths_B: jax.Array) -> Cache:
    """Fill the slots 0..P-1 with right-aligned prompts of `lengths_B` tokens."""
    P = tokens_BxP.shape[1]
    starts_Bx1 = P - lengths_B[:, None]
    positions_BxP = jnp.maximum(jnp.arange(P) - starts_Bx1, 0)
    visible_BxPxP = jnp.tri(P, dtype=bool) & (jnp.arange(P) >= starts_Bx1)[:, None]
    if decoder.config.sliding_window is not None:
        visible_BxPxP &= within(decoder.config.sliding_window, positions_BxP, positions_BxP)
    return _hidden(decoder, cache, tokens_BxP, positions_BxP, 0, visible_BxPxP)[1]


def mesh_of(model: LanguageModel | Decoder) -> Mesh | None:
    """Return the mesh of several devices that the parameters are on, or None."""
    sharding = getattr(jax.tree.leaves(model)[0], "sharding", None)
    mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
    return mesh if isinstance(mesh, Mesh) and mesh.size > 1 else None


def _hidden(decoder, cache, tokens_BxQ, positions_BxQ, slot, visible_BxQxS):
    """Return the final states [B, Q, D], and the cache with these tokens in it."""
    filled = list(cache)

    def attend_of(layer):
        def attend(query_BxHxQxK, *new, **_):
            keys, values = (_write(*pair, slot) for pair in zip(cache[layer], new, strict=True))
            filled[layer] = keys, values
            if prefilling:  # tokens see one another only: the other slots are still empty
                keys, values = new
            return softmax_attention(query_BxHxQxK, keys, values, visible_BxQxS)

        return attend

    prefilling = visible_BxQxS.shape[-1] == tokens_BxQ.shape[1]
    x_BxQxD = decoder.model.hidden_with_attention(tokens_BxQ, positions_BxQ, attend_of)
    return x_BxQxD, tuple(filled)


def _write(old: jax.Array, new_BxHxQxK: jax.Array, slot) -> jax.Array:
    """Return the cache `old`, in its own shape, with new keys or values from `slot` on."""
    new = new_BxHxQxK.reshape(*old.shape[:-2], *new_BxHxQxK.shape[2:])
    filled = jax.lax.dynamic_update_slice(old, new, (*(0,) * (old.ndim - 2), slot, 0))
    return _constrain_cache(filled)


def _cache_shape(config: ModelConfig, batch: int, length: int, mesh, platform: str):
    # On one CPU device rows and heads are one axis: XLA drops an axis of size 1 before the
    # products, and its CPU compiler then copies every cache four times a step.
    heads = config.key_value_heads
    merged = platform == "cpu" and mesh.size <= 1
    return *((batch * heads,) if merged else (batch, heads)), length, config.head_dim


def _constrain_cache(buffer: jax.Array) -> jax.Array:
    return constrain(buffer, "batch", "heads", None, None) if buffer.ndim == 4 else buffer
