"""GPT: Attention, MLP, Block and the model around them, read from top to bottom.

Axes carry one letter each: B batch, L query length, S key length, D width, H heads, K head
dimension, F MLP width, V vocabulary, N layers. Weights carry GPT-2's names. One differs in
shape: `attn.c_attn` is kept as three kernels, so that queries, keys and values come out of their
products as [B, H, L, K] and no transpose surrounds the attention kernel.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from biomedlm_jax.mesh import constrain
from biomedlm_jax.model.attention import attend, dropout
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.embedding import lookup
from biomedlm_jax.model.layer_norm import LayerNorm
from biomedlm_jax.model.product import product


def _normal(deviation: float):
    return nnx.initializers.normal(deviation)


def _axes(*names: str | None) -> dict:
    # Without eager_sharding=False a module could not be built outside a mesh.
    return {"out_sharding": names, "eager_sharding": False}


def _of_vector(axis: str) -> str | None:
    # A vector of the width is small: whole on each device, it need not be gathered in each layer.
    return None if axis == "embed" else axis


def _linear(config: GPTConfig, axes: tuple[str, str], sizes, *, rngs, deviation: float):
    return nnx.Linear(
        *sizes,
        dtype=config.dtype,
        kernel_init=_normal(deviation),
        kernel_metadata=_axes(*axes),
        bias_metadata=_axes(_of_vector(axes[1])),
        rngs=rngs,
    )


def _layer_norm(config: GPTConfig, *, rngs: nnx.Rngs) -> LayerNorm:
    return LayerNorm(
        config.width,
        epsilon=config.layer_norm_epsilon,
        dtype=config.dtype,
        scale_metadata=_axes(_of_vector("embed")),
        bias_metadata=_axes(_of_vector("embed")),
        rngs=rngs,
    )


def _add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    # In float32, so that the gradient of the bias is summed in float32 over rows and positions.
    return (y + bias.astype(jnp.float32)).astype(y.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded(dtype, x: jax.Array) -> jax.Array:
    """`x`, a float32 array, as `dtype`; its gradient is float32 before anything is summed."""
    return x.astype(dtype)


def _rounded_backward(dtype, _, dy):
    # The barrier keeps a sum that follows from choosing the layout of all the layers' gradients:
    # without it the compiler reckoned 2 % more for the step of 2.6 B parameters on v5e:16x16.
    return (jax.lax.optimization_barrier(dy).astype(jnp.float32),)


_rounded.defvjp(lambda dtype, x: (x.astype(dtype), None), _rounded_backward)


class QueryKeyValue(nnx.Module):
    """GPT-2's `c_attn` as three linear layers of [D, H * K]."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        def project():
            sizes = (config.width, config.width)
            deviation = config.initializer_range
            return _linear(config, ("embed", "heads"), sizes, rngs=rngs, deviation=deviation)

        self.query, self.key, self.value = project(), project(), project()
        self.config = config

    def __call__(self, x_BxLxD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values, each [B, H, L, K]."""
        return tuple(
            self._heads(x_BxLxD, getattr(self, name)) for name in ("query", "key", "value")
        )

    def _heads(self, x_BxLxD, linear: nnx.Linear):
        H, K = self.config.heads, self.config.head_dim
        kernel_DxHxK = linear.kernel[...].reshape(-1, H, K)
        y_BxHxLxK = product("BLD,DHK->BHLK", self.config.reduce_dtype, x_BxLxD, kernel_DxHxK)
        return _add_bias(y_BxHxLxK, linear.bias[...].reshape(H, 1, K))


class Attention(nnx.Module):
    """Causal self-attention whose logits layer i divides by i + 1 as well, if the config says."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        self.c_attn = QueryKeyValue(config, rngs=rngs)
        sizes = (config.width, config.width)
        deviation = config.initializer_range / math.sqrt(2 * config.layers)
        self.c_proj = _linear(config, ("heads", "embed"), sizes, rngs=rngs, deviation=deviation)
        self.config = config

    def __call__(
        self, x_BxLxD: jax.Array, layer: jax.Array, *, visible_BxLxL=None, dropout_key=None
    ) -> jax.Array:
        """Mix the positions of `x`; `layer` is the 0-based index, traced under the scan."""
        query_BxHxLxK, key_BxHxLxK, value_BxHxLxK = self.c_attn(x_BxLxD)
        scale = 1 / math.sqrt(self.config.head_dim)
        if self.config.scale_attn_by_inverse_layer_idx:
            scale = scale / (layer + 1)
        # In the query, because fused kernels take only a static scale; and saved scaled.
        query_BxHxLxK = (query_BxHxLxK * scale).astype(query_BxHxLxK.dtype)
        y_BxHxLxK = attend(
            checkpoint_name(query_BxHxLxK, "query"),
            checkpoint_name(key_BxHxLxK, "key"),
            checkpoint_name(value_BxHxLxK, "value"),
            scale=1.0,
            kernel=self.config.attention,
            visible_BxLxS=visible_BxLxL,
            dropout_rate=self.config.attention_dropout,
            dropout_key=dropout_key,
        )
        kernel_HxKxD = self.c_proj.kernel[...].reshape(*y_BxHxLxK.shape[1::2], -1)
        y_BxLxD = product("BHLK,HKD->BLD", self.config.reduce_dtype, y_BxHxLxK, kernel_HxKxD)
        return _add_bias(y_BxLxD, self.c_proj.bias[...])


class MLP(nnx.Module):
    """Two linear layers with GPT-2's tanh-approximated GELU between them."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        deviation = config.initializer_range
        wide, narrow = (config.width, config.mlp_width), (config.mlp_width, config.width)
        self.c_fc = _linear(config, ("embed", "mlp"), wide, rngs=rngs, deviation=deviation)
        deviation = config.initializer_range / math.sqrt(2 * config.layers)
        self.c_proj = _linear(config, ("mlp", "embed"), narrow, rngs=rngs, deviation=deviation)
        self.config = config

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        """Transform each position by itself."""
        h_BxLxF = self._project("BLD,DF->BLF", x_BxLxD, self.c_fc)
        h_BxLxF = jax.nn.gelu(checkpoint_name(h_BxLxF, "mlp_input"), approximate=True)
        return self._project("BLF,FD->BLD", h_BxLxF, self.c_proj)

    def _project(self, equation: str, x: jax.Array, linear: nnx.Linear) -> jax.Array:
        y = product(equation, self.config.reduce_dtype, x, linear.kernel[...])
        return _add_bias(y, linear.bias[...])


class Block(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        self.ln_1 = _layer_norm(config, rngs=rngs)
        self.attn = Attention(config, rngs=rngs)
        self.ln_2 = _layer_norm(config, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.config = config

    def __call__(
        self, x_BxLxD: jax.Array, layer: jax.Array, *, visible_BxLxL=None, dropout_key=None
    ) -> jax.Array:
        """One layer of the model."""
        x_BxLxD = constrain(x_BxLxD, "batch", "length", None)
        keys = (None,) * 3
        if dropout_key is not None:
            keys = jax.random.split(jax.random.fold_in(dropout_key, layer), 3)
        rate = self.config.residual_dropout
        y_BxLxD = self.attn(
            self.ln_1(x_BxLxD), layer, visible_BxLxL=visible_BxLxL, dropout_key=keys[0]
        )
        x_BxLxD = checkpoint_name(x_BxLxD + dropout(y_BxLxD, rate, keys[1]), "residual")
        y_BxLxD = self.mlp(self.ln_2(x_BxLxD))
        return x_BxLxD + dropout(y_BxLxD, rate, keys[2])


class GPT(nnx.Module):
    """The language model: `GPT(config, key=key)(tokens_BxL) -> logits_BxLxV` in float32.

    Parameters are float32. The layers are stacked: every leaf of `h` has a leading axis N. The
    module holds nothing but parameters, so it is its own parameter tree.
    """

    def __init__(self, config: GPTConfig, *, key: jax.Array):
        block_key, *keys = jax.random.split(key, 4)
        embed = _normal(config.initializer_range)
        wte_VxD = embed(keys[0], (config.vocab_size, config.width))
        padding = config.padded_vocab_size - config.vocab_size
        self.wte = nnx.Param(jnp.pad(wte_VxD, ((0, padding), (0, 0))), **_axes("vocab", "embed"))
        wpe = embed(keys[1], (config.context_length, config.width))
        self.wpe = nnx.Param(wpe, **_axes("length", "embed"))
        make_block = nnx.transform_metadata(
            lambda key: Block(config, rngs=nnx.Rngs(key)), partition="layers"
        )
        self.h = jax.vmap(make_block)(jax.random.split(block_key, config.layers))
        self.ln_f = _layer_norm(config, rngs=nnx.Rngs(keys[2]))
        self.config = config

    def __call__(self, tokens_BxL: jax.Array, *, dropout_key=None) -> jax.Array:
        """Logits [B, L, V] in float32; dropout is applied only with a key.

        Raises ValueError for a sequence longer than the model's positions.
        """
        return self.logits(self.hidden(tokens_BxL, dropout_key=dropout_key))

    def hidden(
        self,
        tokens_BxL: jax.Array,
        *,
        positions_BxL=None,
        visible_BxLxL=None,
        lora=None,
        dropout_key=None,
    ) -> jax.Array:
        """The final normalised states [B, L, D] in the compute dtype.

        `positions_BxL` are the tokens' positions in their text, 0..L-1 by default;
        `visible_BxLxL` says which tokens (last axis) each token sees, those up to itself by
        default. `lora` (see model/lora.py) changes the kernels layer by layer.
        """
        config, L = self.config, tokens_BxL.shape[1]
        if positions_BxL is None and L > config.context_length:
            raise ValueError(
                f"got {L} tokens; the model has {config.context_length} positions: cut the text"
            )
        embed_key = block_key = None
        if dropout_key is not None:
            embed_key, block_key = jax.random.split(dropout_key)
        x_BxLxD = lookup(config.dtype, self.wte[...], tokens_BxL)
        x_BxLxD = constrain(x_BxLxD, "batch", "length", None)
        positions = slice(L) if positions_BxL is None else positions_BxL
        wpe_xLxD = constrain(self.wpe[...], "length", None)[positions]
        x_BxLxD += _rounded(config.dtype, jnp.broadcast_to(wpe_xLxD, x_BxLxD.shape))
        x_BxLxD = dropout(x_BxLxD, config.embedding_dropout, embed_key)

        def step(x_BxLxD, sliced):
            block, layer, factors = sliced
            if factors is not None:
                block = factors.merged(block)
            x_BxLxD = block(x_BxLxD, layer, visible_BxLxL=visible_BxLxL, dropout_key=block_key)
            return x_BxLxD, None

        layers_N = jnp.arange(config.layers)
        x_BxLxD, _ = jax.lax.scan(
            rematerialise(step, config.remat),
            x_BxLxD,
            (self.h, layers_N, lora),
            unroll=config.unroll,
        )
        return self.ln_f(constrain(x_BxLxD, "batch", "length", None))

    def logits(self, x_BxLxD: jax.Array) -> jax.Array:
        """The tied output head in float32, padding cut off: [B, L, V]."""
        return head(x_BxLxD, self.wte[...])[..., : self.config.vocab_size]


def head(x_xD: jax.Array, wte_VxD: jax.Array) -> jax.Array:
    """Products with the embedding rows [..., V], accumulated and returned in float32."""
    wte_VxD = wte_VxD.astype(x_xD.dtype)
    return jnp.einsum("...D,VD->...V", x_xD, wte_VxD, preferred_element_type=jnp.float32)


def rematerialise(step, policy: str):
    """Wrap a scan's body so that backward recomputes what `policy` does not save."""
    if policy == "none":
        return step
    checkpoint = functools.partial(jax.checkpoint, prevent_cse=False)  # a scan cannot merge them
    if policy == "full":
        return checkpoint(step)
    saved = jax.checkpoint_policies.save_only_these_names(*policy.split(","))
    return checkpoint(step, policy=saved)
