"""Decoding beside transformers' `generate` with its key-value cache, weights and prompts equal.

Rounds alternate, so that a busy machine slows both sides. Nothing ends early on either side.
"""

import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.generation import beam, decoding
from biomedlm_jax.generation.decoder import Decoder, make_decoder
from biomedlm_jax.generation.sampling import Strategy
from biomedlm_jax.generation.stats import bandwidth, step_bytes
from biomedlm_jax.interop.weights import tensor_reader, tensor_shapes
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT


def run_benchmark(
    *, dtype: str, batch_sizes: list[str], prompt_length: int, new_tokens: int, **options
) -> dict:
    """Measure as `measure_decode` does, on a model of the shape in `options`; print a table."""
    if not all(size.isdigit() and int(size) for size in batch_sizes):
        raise ValueError(f"got --batch_sizes={','.join(batch_sizes)}; give numbers above 0")
    shape = {name: options.pop(name) for name in ("layers", "width", "heads", "vocab_size")}
    length = prompt_length + new_tokens
    figures = measure_decode(
        GPTConfig(context_length=length, compute_dtype=dtype, **shape),
        batch_sizes=tuple(map(int, batch_sizes)),
        prompt_length=prompt_length,
        new_tokens=new_tokens,
        notify=lambda text: print(text, file=sys.stderr, flush=True),
        **options,
    )
    print_table(figures)
    return figures


def measure_decode(
    config: GPTConfig,
    *,
    batch_sizes: tuple[int, ...] = (1, 8, 16),
    beams: int = 5,
    prompt_length: int = 32,
    new_tokens: int = 128,
    rounds: int = 3,
    peers: tuple[str, ...] = ("hf sdpa",),
    notify: Callable[[str], None] = lambda text: None,
) -> dict:
    """Median seconds of each side for whole calls, prefill included, over alternating rounds.

    `peers` name transformers' variants: "hf ATTENTION [static] [compile]" (the latter two are a
    static cache and torch.compile). Greedy for every batch size, and beam search at batch 1 if
    `beams` is above 1. `ratio` is the peer's time over ours: above 1, ours is faster. `equal` is
    the share of rows whose tokens are all the same; random weights leave near ties. `notify` is
    told each case's figures as soon as they are there.
    """
    keep_freed_memory()
    model = GPT(config, key=jax.random.key(0))
    decoder = make_decoder(model)
    sides = {"biomedlm_jax": _ours(decoder, new_tokens)}
    for peer in peers:
        sides[peer] = _theirs(model, new_tokens, *peer.split()[1:])
    cases = {f"greedy, batch {size}": (size, 1) for size in batch_sizes}
    if beams > 1:
        cases[f"{beams} beams, batch 1"] = (1, beams)
    found = {}
    for case, (size, width) in cases.items():
        shape = size, prompt_length
        prompts = np.random.default_rng(0).integers(0, config.vocab_size, shape).tolist()
        said = {name: side(prompts, width) for name, side in sides.items()}  # compiles, too
        seconds = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                began = time.perf_counter()
                side(prompts, width)
                seconds[name].append(time.perf_counter() - began)
        ours = statistics.median(seconds["biomedlm_jax"])
        found[case] = {
            name: {
                "median_seconds": (median := statistics.median(times)),
                "fastest_seconds": min(times),
                "tokens_per_second": size * new_tokens / median,
                "milliseconds_per_step": 1e3 * median / new_tokens,
                "ratio": median / ours,
                "equal": np.mean(
                    [a == b for a, b in zip(said[name], said["biomedlm_jax"], strict=True)]
                ).item(),
            }
            for name, times in seconds.items()
        }
        notify(_row(case, found[case]))
    versions = ("jax", "flax", *(("torch", "transformers") if peers else ()))
    return {
        "parameters": config.parameter_count,
        "shape": f"{config.layers} layers, width {config.width}, vocabulary "
        f"{config.vocab_size:,}, prompt {prompt_length}, {new_tokens} new, "
        f"{config.dtype.__name__}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "bytes_per_step_at_batch_1": step_bytes(decoder, 1, prompt_length + new_tokens),
        "memory_bandwidth": bandwidth(1)[0],
        "versions": {name: importlib.metadata.version(name) for name in versions},
        "cases": found,
    }


def _ours(decoder: Decoder, new_tokens: int):
    def decode(prompts: list[list[int]], beams: int) -> list[list[int]]:
        options = {"max_new_tokens": new_tokens, "strategy": Strategy()}
        if beams == 1:
            return decoding.decode(decoder, prompts, **options).tokens
        found = beam.search(decoder, prompts, beams=beam.Beams(beams=beams), **options)
        return [row[0] for row in found.tokens]

    return decode


def _theirs(model: GPT, new_tokens: int, attention: str, *options: str):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(os.cpu_count())
    config = GPT2Config(**model.config.to_hf(), attn_implementation=attention)
    peer = GPT2LMHeadModel(config).eval()
    read = tensor_reader(model, fold=False)
    for name in tensor_shapes(model.config):
        tensor = torch.from_numpy(np.array(read(name)))
        peer.load_state_dict({f"transformer.{name}": tensor}, strict=False)
    half = model.config.dtype == jax.numpy.bfloat16
    peer = peer.to(device, torch.bfloat16 if half else torch.float32)
    if "compile" in options:
        peer.forward = torch.compile(peer.forward, mode="reduce-overhead", fullgraph=True)
    static = {"cache_implementation": "static"} if "static" in options else {}

    def decode(prompts: list[list[int]], beams: int) -> list[list[int]]:
        tokens = torch.tensor(prompts, device=device)
        with torch.no_grad():
            out = peer.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new_tokens,
                do_sample=False,
                num_beams=beams,
                use_cache=True,
                eos_token_id=None,
                pad_token_id=0,
                **static,
            )
        return out[:, tokens.shape[1] :].tolist()

    return decode


def print_table(figures: dict) -> None:
    """Print the figures of `measure_decode` as a table."""
    print(f"{figures['parameters']:,} parameters: {figures['shape']}")
    print(figures["machine"], ", ".join(f"{n} {v}" for n, v in figures["versions"].items()))
    for case, sides in figures["cases"].items():
        print(_row(case, sides))


def _row(case: str, sides: dict) -> str:
    lines = [case]
    for name, side in sides.items():
        lines.append(
            f"  {name:24} {side['milliseconds_per_step']:8.2f} ms/step "
            f"{side['tokens_per_second']:9.1f} tokens/s   ratio {side['ratio']:.2f}   "
            f"equal rows {side['equal']:.0%}"
        )
    return "\n".join(lines)
