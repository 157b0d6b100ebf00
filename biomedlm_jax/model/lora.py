"""LoRA: a low-rank update of each linear kernel of the layers (Hu et al., arXiv 2106.09685).

Only the factors are trained, so Adam has moments of the factors only. Kernels and vocabulary rows
are identified by their metadata, so that every family has LoRA.
"""

import jax
import jax.numpy as jnp
from flax import nnx

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
            return leaf + self.scale * (factors["a"][...] @ factors["b"][...])

        return jax.tree_util.tree_map_with_path(add, block)


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
                variable[last - added : last], **axis_metadata(None, axis_names(variable)[1])
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
            rows = self.rows[name][...]
            return variable.replace(variable[...].at[last - len(rows) : last].set(rows))

        trunk = map_parameters(put, trunk)
        if lora is not None:
            trunk.lora = nnx.data(lora)
        return trunk if self.kind is None else HEADS[self.kind](trunk, self.score)
