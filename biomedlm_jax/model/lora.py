"""LoRA: a low-rank change beside each linear kernel of the layers (Hu et al., arXiv 2106.09685).

Only the factors are trained: Adam's moments of the whole model are not needed. Kernels and
vocabulary rows are found by their metadata, so that every family has LoRA.
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
from biomedlm_jax.model.layers import axes


class LoRA(nnx.Module):
    """Factors A [N, in, R] and B [N, R, out] of every kernel; the change is alpha / R * A B.

    B is zero at first, so the first step starts from the model as it is.
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
            a = a_init(key, (N, size_in, rank), jnp.float32)
            b = jnp.zeros((N, rank, size_out))
            factors[name] = {
                "a": nnx.Param(a, **axes(layers, before, None)),
                "b": nnx.Param(b, **axes(layers, None, after)),
            }
        self.factors = nnx.data(factors)
        self.scale = alpha / rank

    def merged(self, block):
        """Return `block`, one layer or all of them stacked as `self` is, with the change added."""

        def add(path, leaf):
            name, _, last = leaf_name(path).rpartition(".")
            if last != "kernel" or name not in self.factors:
                return leaf
            factors = self.factors[name]
            return leaf + self.scale * (factors["a"][...] @ factors["b"][...])

        return jax.tree_util.tree_map_with_path(add, block)


class Adapter(nnx.Module):
    """What LoRA trains of a model: the factors, the rows of added tokens, and a score layer."""

    def __init__(self, model, *, added: int, rank: int, alpha: float, key: jax.Array):
        scorer = isinstance(model, Scorer)
        trunk = model.trunk if scorer else model
        self.kind, self.score = (model.kind, model.score) if scorer else (None, None)
        self.lora = LoRA(trunk, rank=rank, alpha=alpha, key=key)
        last = trunk.config.vocab_size
        rows = {
            name: nnx.Param(variable[last - added : last], **axes(None, axis_names(variable)[1]))
            for name, variable in named_parameters(trunk).items()
            if added and "vocab" in axis_names(variable)
        }
        self.rows = nnx.data(rows)

    def view(self, trunk: LanguageModel):
        """Return the frozen `trunk` with the trained parts, the factors beside its kernels."""
        trunk = self._with_rows(trunk)
        trunk.lora = nnx.data(self.lora)
        return self._with_score(trunk)

    def merged(self, trunk: LanguageModel):
        """Return a model in which the factors are part of the kernels."""
        trunk = self._with_rows(trunk)
        return self._with_score(trunk.with_blocks(self.lora.merged(trunk.blocks)))

    def _with_rows(self, trunk: LanguageModel) -> LanguageModel:
        last = trunk.config.vocab_size

        def put(name, variable):
            if name not in self.rows:
                return variable
            rows = self.rows[name][...]
            return variable.replace(variable[...].at[last - len(rows) : last].set(rows))

        return map_parameters(put, trunk)

    def _with_score(self, trunk: LanguageModel):
        return trunk if self.kind is None else HEADS[self.kind](trunk, self.score)
