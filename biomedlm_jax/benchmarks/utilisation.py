"""Model FLOPs utilisation in the conventions of the literature, of a known or a measured peak."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from biomedlm_jax.benchmarks.rounds import cores, torch_device
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.language_model import parameter_count
from biomedlm_jax.training.metrics import peak_flops

# FLOPs of a training token: N parameters of matrix products, L layers, H heads, K head dim,
# T length.
CONVENTIONS = ("6N", "6N + 12LHKT", "6N + 6LHKT, causal")


def flops_by_convention(config: ModelConfig, length: int) -> dict[str, int]:
    """Return the FLOPs of a training token in each of `CONVENTIONS`.

    The first leaves attention out, the second counts all pairs of positions (PaLM, arXiv
    2204.02311, appendix B), the third those that a causal mask keeps, about half of them.
    """
    matrices = 6 * parameter_count(abstract_model(config), lookups=False)
    pairs = config.layers * config.heads * config.head_dim * length
    return dict(
        zip(CONVENTIONS, (matrices, matrices + 12 * pairs, matrices + 6 * pairs), strict=True)
    )


def utilisation(
    config: ModelConfig, table: Mapping[str, Mapping[str, Any]], device_kind: str, dtype: str
) -> tuple[dict[str, dict[str, Any]], str]:
    """Return each side's FLOP/s and share of the peak in each convention, and what the peak is.

    Where no peak is known, as of a CPU, it is that of the faster of jax and torch in a matrix
    product in `dtype`, on all cores.
    """
    peak, source = peak_flops(device_kind), f"peak of {device_kind}: bf16, from its data sheet"
    if peak is None:
        peak, library = measured_peak(dtype)
        source = (
            f"no peak known for {device_kind}; the shares are of {peak / 1e9:,.0f} GFLOP/s, "
            f"measured in a {dtype} matrix product of {library}"
        )
    flops = flops_by_convention(config, config.context_length)
    rows = {}
    for name, side in table.items():
        speed = {title: side["tokens_per_second"] * count for title, count in flops.items()}
        rows[name] = {"gflops_per_second": speed[CONVENTIONS[1]] / 1e9}
        rows[name] |= {f"share_{title}": value / peak for title, value in speed.items()}
    return rows, source


def measured_peak(dtype: str, *, size: int = 2048, calls: int = 5) -> tuple[float, str]:
    """Return the FLOP/s of the fastest product of two square matrices, and whose it is."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    sides: dict[str, Callable] = {"jax": lambda: product(x, x).block_until_ready()}
    try:
        import torch
    except ImportError:
        pass
    else:
        torch_device()
        y = torch.ones((size, size), dtype=getattr(torch, dtype))
        sides["torch"] = lambda: y @ y
    fastest = {}
    for name, side in sides.items():
        side()
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            side()
            times.append(time.perf_counter() - start)
        fastest[name] = 2 * size**3 / min(times)
    best = max(fastest, key=lambda name: fastest[name])
    return fastest[best], f"{best}, {cores()} cores"
