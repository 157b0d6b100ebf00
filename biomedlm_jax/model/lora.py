"""LoRA: a low-rank change beside each linear kernel of the layers (Hu et al., arXiv 2106.09685).

Only the factors are trained: Adam's moments of the whole model are not needed.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from biomedlm_jax.model.config import GPTConfig

# The kernels that are changed: the logical axes of each, and its sizes by names of GPTConfig.
KERNELS = {
    "attn.c_attn.query": (("embed", "heads"), ("width", "width")),
    "attn.c_attn.key": (("embed", "heads"), ("width", "width")),
    "attn.c_attn.value": (("embed", "heads"), ("width", "width")),
    "attn.c_proj": (("heads", "embed"), ("width", "width")),
    "mlp.c_fc": (("embed", "mlp"), ("width", "mlp_width")),
    "mlp.c_proj": (("mlp", "embed"), ("mlp_width", "width")),
}


class LoRA(nnx.Module):
    """Factors A [N, in, R] and B [N, R, out] for every kernel; the change is alpha / R * A B.

    B begins at zero, so the first step starts from the model as it is.
    """

    def __init__(self, config: GPTConfig, *, rank: int, alpha: float, key: jax.Array):
        def factor(sizes, axes, init, key):
            value = init(key, (config.layers, *sizes), jnp.float32)
            return nnx.Param(value, out_sharding=("layers", *axes), eager_sharding=False)

        inwards = nnx.initializers.he_uniform(in_axis=-2, out_axis=-1, batch_axis=0)
        factors = {}
        keys = jax.random.split(key, len(KERNELS))
        for (name, (axes, sizes)), key in zip(KERNELS.items(), keys, strict=True):
            before, after = (getattr(config, size) for size in sizes)
            factors[name] = {
                "a": factor((before, rank), (axes[0], None), inwards, key),
                "b": factor((rank, after), (None, axes[1]), nnx.initializers.zeros, key),
            }
        self.factors = nnx.data(factors)
        self.scale = alpha / rank

    def merged(self, block):
        """`block`, one layer or all of them stacked as `self` is, with the change added."""

        def add(path, leaf):
            *name, last = [str(getattr(key, "name", getattr(key, "key", key))) for key in path]
            if name[-1] != "kernel" or last != "value":
                return leaf
            factors = self.factors[".".join(name[:-1])]
            return leaf + self.scale * (factors["a"][...] @ factors["b"][...])

        return jax.tree_util.tree_map_with_path(add, block)
