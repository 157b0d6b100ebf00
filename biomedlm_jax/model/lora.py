"""LoRA: a low-rank update of each linear kernel of the layers (Hu et al., arXiv 2106.09685).

Only the factors are trained, so Adam has moments of the factors only. Kernels and vocabulary rows
are identified by their metadata, so that every family has LoRA. The frozen model's matrices may be
bfloat16; the update is added in float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from biomedlm_jax.model.heads import HEADS, Scorer
from biomedlm_jax.model.language_model import (
    LanguageModel,
    axis_names,
    leaf_name,
    map_parameters,
    named_parameters,
)
from biomedlm_jax.model.layers import axis_metadata


class LoRA(nnx.Module):
    """Factors A [N, in, R] and B [N, R, out] of every kernel; the update is alpha / R * A B.

    B is initialised to zero, so the first step computes the loss of the unchanged model.
    """

    def __init__(self, model: LanguageModel, *, rank: int, alpha: float, key: jax.Array):
        a_init = nnx.initializers.he_uniform(in_axis=-2, out_axis=-1, batch_axis=0)
        kernels = {
            name.removesuffix(".kernel"): variable
            for name, variable in named_parameters(model.blocks).items()
            if name.endswith(".kernel") and len(variable.shape) == 3
        }
        factors, keys = {}, jax.random.split(key, len(kernels))
        for (name, kernel), key in zip(kernels.items(), keys, strict=True):
            (layers, before, after), (N, size_in, size_out) = axis_names(kernel), kernel.shape
            a, b = a_init(key, (N, size_in, rank), jnp.float32), jnp.zeros((N, rank, size_out))
            a = nnx.Param(a, **axis_metadata(layers, before, None))
            factors[name] = {"a": a, "b": nnx.Param(b, **axis_metadata(layers, None, after))}
        self.factors = nnx.data(factors)
        self.scale = alpha / rank

    def merged(self, block):
        """Return `block`, one layer or all of them stacked as `self` is, with the update added."""

        def add(path, leaf):
            name, _, last = leaf_name(path).rpartition(".")
            if last != "kernel" or name not in self.factors:
                return leaf
            factors = self.factors[name]
            return _updated(leaf, factors["a"][...], factors["b"][...], self.scale)

        return jax.tree_util.tree_map_with_path(add, block)


def _updated(kernel, a, b, scale: float) -> jax.Array:
    if kernel.dtype != jnp.float32:
        # The TPU compiler would copy the stacks of all layers to the layout of the products: 4 GiB
        # of Llama 2 7B.
        kernel = with_layout_constraint(kernel, Layout(tuple(range(kernel.ndim))))
    return kernel.astype(jnp.float32) + scale * (a @ b)


class Adapter(nnx.Module):
    """The trained parameters under LoRA: factors, rows of added tokens, and a score layer."""

    def __init__(self, model, *, added: int, rank: int, alpha: float, key: jax.Array):
        scorer = isinstance(model, Scorer)
        trunk = model.trunk if scorer else model
        self.kind, self.score = (model.kind, model.score) if scorer else (None, None)
        self.lora = LoRA(trunk, rank=rank, alpha=alpha, key=key)
        last = trunk.config.vocab_size
        rows = {
            name: nnx.Param(
                variable[last - added : last].astype(jnp.float32),
                **axis_metadata(None, axis_names(variable)[1]),
            )
            for name, variable in named_parameters(trunk).items()
            if added and "vocab" in axis_names(variable)
        }
        self.rows = nnx.data(rows)

    def view(self, trunk: LanguageModel):
        """Return the frozen `trunk` with the trained parts; its kernels are unchanged."""
        return self._around(trunk, lora=self.lora)

    def merged(self, trunk: LanguageModel):
        """Return a model with the update added to its kernels."""
        return self._around(trunk.with_blocks(self.lora.merged(trunk.blocks)), lora=None)

    def _around(self, trunk: LanguageModel, *, lora: LoRA | None):
        last = trunk.config.vocab_size

        def put(name, variable):
            if name not in self.rows:
                return variable
            rows, table_VxD = self.rows[name][...], variable[...].astype(jnp.float32)
            return variable.replace(table_VxD.at[last - len(rows) : last].set(rows))

        trunk = map_parameters(put, trunk)
        if lora is not None:
            trunk.lora = nnx.data(lora)
        if self.kind is None or self.score is None:
            return trunk
        return HEADS[self.kind](trunk, self.score)


def matrices_in(abstract: Any, dtype: str) -> Any:
    """Return the shapes of a model, or of one with a head, with its matrices in `dtype`.

    Matrices are kernels and tables. Norms, biases and the score layer stay as they are.
    """

    def narrow(name, variable):
        matrix = sum(axis != "layers" for axis in axis_names(variable)) > 1
        if not matrix or name.startswith("score."):
            return variable
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding), variable
        )

    return map_parameters(narrow, abstract)


def without_factors(model: Any) -> Any:
    """Return a model, or one with a head, with the update of its `lora` in its kernels: float32.

    A model that one process has whole is merged layer by layer and returned on the host, so that
    no device holds its float32 kernels. Without factors it is returned as it is.
    """
    if isinstance(model, Scorer):
        return type(model)(without_factors(model.trunk), model.score)
    lora, prefix = model.lora, f"{model.BLOCKS}."
    if lora is None:
        return model
    on_host = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(model))

    def merge(path, leaf):
        name, _, last = leaf_name(path).rpartition(".")
        factors = lora.factors.get(name.removeprefix(prefix)) if last == "kernel" else None
        if factors is None:
            if leaf.dtype == jnp.float32:
                return leaf
            return np.asarray(leaf).astype(np.float32) if on_host else leaf.astype(jnp.float32)
        a, b = (factors[half][...] for half in "ab")
        if not on_host:
            return _updated(leaf, a, b, lora.scale)
        merged = np.empty(leaf.shape, np.float32)
        for layer in range(len(leaf)):
            merged[layer] = _updated_layer(leaf, a, b, layer, lora.scale)
        return merged

    plain = jax.tree.map(lambda leaf: leaf, model)
    del plain.lora
    return jax.tree_util.tree_map_with_path(merge, plain)


@jax.jit
def _updated_layer(kernels, a, b, layer, scale) -> jax.Array:
    return _updated(kernels[layer], a[layer], b[layer], scale)
