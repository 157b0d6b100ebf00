"""describe_run(): the line about a model and its devices that a run begins with."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from biomedlm_jax.model.attention import explained_kernel
from biomedlm_jax.model.language_model import LanguageModel, parameter_count


def describe_run(model: LanguageModel, mesh: Mesh, **rows: Any) -> str:
    """Return one line: parameters, devices, dtype, the attention kernel and why it is not fused.

    `model` may be abstract; `rows` are those of `explained_kernel`. Raises InputError if the kernel
    named in the config cannot serve.
    """
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    kernel, reason = explained_kernel(model.config, mesh, **rows)
    why = f" ({reason})" if reason else ""
    return (
        f"{parameter_count(model):,} parameters on {mesh.size} {jax.devices()[0].device_kind} "
        f"({sizes}), {np.dtype(model.config.dtype).name}, attention by {kernel}{why}"
    )
