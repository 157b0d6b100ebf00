"""Time decoding beside transformers' `generate` with its key-value cache, on equal weights.

Rounds alternate, so that a busy machine slows both sides. No sequence ends early on either side.
"""

import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.generation import beam, decoding
from biomedlm_jax.generation.decoder import Decoder, make_decoder
from biomedlm_jax.generation.sampling import Strategy
from biomedlm_jax.generation.stats import bandwidth, step_bytes
from biomedlm_jax.interop.weights import file_name, places, tensor_reader
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import config_to_hf, make_config, make_model
from biomedlm_jax.model.language_model import LanguageModel, parameter_count


def run_benchmark(
    *, dtype: str, batch_sizes: list[str], prompt_length: int, new_tokens: int, **options
) -> dict:
    """Run `measure_decode` on a GPT-2 of the shape in `options`, and print a table."""
    if not all(size.isdigit() and int(size) for size in batch_sizes):
        raise ValueError(f"got --batch_sizes={','.join(batch_sizes)}; expected numbers above 0")
    shape = {name: options.pop(name) for name in ("layers", "width", "heads", "vocab_size")}
    length = prompt_length + new_tokens
    figures = measure_decode(
        make_config({"model_type": "gpt2", "context_length": length, **shape}, compute_dtype=dtype),
        batch_sizes=tuple(map(int, batch_sizes)),
        prompt_length=prompt_length,
        new_tokens=new_tokens,
        notify=lambda text: print(text, file=sys.stderr, flush=True),
        **options,
    )
    print_table(figures)
    return figures


def measure_decode(
    config: ModelConfig,
    *,
    batch_sizes: tuple[int, ...] = (1, 8, 16),
    beams: int = 5,
    prompt_length: int = 32,
    new_tokens: int = 128,
    rounds: int = 3,
    peers: tuple[str, ...] = ("hf sdpa",),
    notify: Callable[[str], None] = lambda text: None,
) -> dict:
    """Return median seconds of whole calls, prefill included, over alternating rounds.

    `peers` name transformers' variants: "hf ATTENTION [static] [compile]" (the latter two are a
    static cache and torch.compile). Decoding is greedy for every batch size, with beam search at
    batch 1 if `beams` is above 1. `ratio` is the peer's time over ours: above 1, ours is faster.
    `equal` is the fraction of rows with the same tokens; random weights leave near ties. `notify`
    is called with each case's figures as soon as they exist.
    """
    keep_freed_memory()
    model = make_model(config, key=jax.random.key(0))
    decoder = make_decoder(model)
    sides = {"biomedlm_jax": _ours(decoder, new_tokens)}
    for peer in peers:
        sides[peer] = _theirs(model, new_tokens, *peer.split()[1:])
    cases = {f"greedy, batch {size}": (size, 1) for size in batch_sizes}
    if beams > 1:
        cases[f"{beams} beams, batch 1"] = (1, beams)
    figures = {}
    for case, (size, width) in cases.items():
        shape = size, prompt_length
        prompts = np.random.default_rng(0).integers(0, config.vocab_size, shape).tolist()
        tokens = {name: side(prompts, width) for name, side in sides.items()}  # compiles, too
        seconds = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                began = time.perf_counter()
                side(prompts, width)
                seconds[name].append(time.perf_counter() - began)
        ours = statistics.median(seconds["biomedlm_jax"])
        figures[case] = {
            name: {
                "median_seconds": (median := statistics.median(times)),
                "fastest_seconds": min(times),
                "tokens_per_second": size * new_tokens / median,
                "milliseconds_per_step": 1e3 * median / new_tokens,
                "ratio": median / ours,
                "equal": np.mean(
                    [a == b for a, b in zip(tokens[name], tokens["biomedlm_jax"], strict=True)]
                ).item(),
            }
            for name, times in seconds.items()
        }
        notify(_row(case, figures[case]))
    versions = ("jax", "flax", *(("torch", "transformers") if peers else ()))
    return {
        "parameters": parameter_count(model),
        "shape": f"{config.layers} layers, width {config.width}, vocabulary "
        f"{config.vocab_size:,}, prompt {prompt_length}, {new_tokens} new, "
        f"{config.dtype.__name__}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "bytes_per_step_at_batch_1": step_bytes(decoder, 1, prompt_length + new_tokens),
        "memory_bandwidth": bandwidth(1)[0],
        "versions": {name: importlib.metadata.version(name) for name in versions},
        "cases": figures,
    }


def _ours(decoder: Decoder, new_tokens: int):
    def decode(prompts: list[list[int]], beams: int) -> list[list[int]]:
        options: dict[str, Any] = {"max_new_tokens": new_tokens, "strategy": Strategy()}
        if beams == 1:
            decoded = decoding.decode(decoder, prompts, **options)
        else:
            decoded = beam.search(decoder, prompts, beams=beam.Beams(beams=beams), **options)
        return [rows[0] for rows in decoded.tokens]

    return decode


def _theirs(model: LanguageModel, new_tokens: int, attention: str, *options: str):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    fields = config_to_hf(model.config)
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    peer = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    read = tensor_reader(model)
    for name in places(model):
        tensor = torch.from_numpy(np.array(read(name)))
        peer.load_state_dict({file_name(name, model.config): tensor}, strict=False)
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
