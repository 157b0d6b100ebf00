"""Benchmark of decoding against transformers' `generate`, with equal weights and prompts.

Rounds alternate, so that load affects both sides. Sequences do not end early on either side.
"""

import tempfile
from typing import Any

import jax
import numpy as np

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.benchmarks import rounds as timed
from biomedlm_jax.benchmarks.rounds import OURS
from biomedlm_jax.generation import beam, decoding
from biomedlm_jax.generation.decoder import make_decoder
from biomedlm_jax.generation.sampling import Strategy
from biomedlm_jax.generation.stats import bandwidth, step_bytes
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import make_model
from biomedlm_jax.model.language_model import LanguageModel


def measure(
    config: ModelConfig,
    *,
    batch_sizes: tuple[int, ...] = (1, 8, 16),
    beams: int = 5,
    prompt_length: int = 32,
    new_tokens: int = 128,
    rounds: int = 3,
    peers: tuple[str, ...] = ("hf sdpa",),
) -> dict[str, Any]:
    """Time whole calls, prefill included, in alternating rounds; return the figures.

    `peers` name transformers' variants: "hf ATTENTION [static] [compile]" (the latter two are a
    static cache and torch.compile). Greedy for every batch size, and beam search at batch 1 if
    `beams` is above 1. `equal_rows` is the fraction of rows with the same tokens as ours; random
    weights leave near ties.
    """
    keep_freed_memory()
    model = make_model(config, key=jax.random.key(0))
    decoder = make_decoder(model)
    cases = {f"greedy, batch {size}": (size, 1) for size in batch_sizes}
    if beams > 1:
        cases[f"{beams} beams, batch 1"] = (1, beams)
    decode = {OURS: _ours(decoder, new_tokens)}
    decode |= {peer: _theirs(model, new_tokens, *peer.split()[1:]) for peer in peers}
    tables = {}
    for case, (size, width) in cases.items():
        shape = size, prompt_length
        prompts = np.random.default_rng(0).integers(0, config.vocab_size, shape).tolist()
        sides = {n: lambda side=side: side(prompts, width) for n, side in decode.items()}  # noqa: B023
        timings = timed.alternate(sides, rounds=rounds)
        tables[case] = timed.summarise_timings(timings, "tokens", size * new_tokens)
        for name, side in tables[case].items():
            rows = zip(timings[name].first, timings[OURS].first, strict=True)
            side["milliseconds_per_step"] = 1e3 * side["median_seconds"] / new_tokens
            side["equal_rows"] = float(np.mean([a == b for a, b in rows]))
    work = f"prompt {prompt_length}, {new_tokens} new tokens"
    packages = ("jax", "flax", *(("torch", "transformers") if peers else ()))
    return {
        **timed.benchmark_header(work, packages, config=config),
        "bytes_per_step_at_batch_1": step_bytes(decoder, 1, prompt_length + new_tokens),
        "memory_bandwidth": bandwidth(1),
        "tables": tables,
    }


def _ours(decoder, new_tokens: int):
    def decode(prompts: list[list[int]], beams: int) -> list[list[int]]:
        options = {"max_new_tokens": new_tokens, "strategy": Strategy()}
        if beams == 1:
            result = decoding.decode(decoder, prompts, **options)
        else:
            result = beam.search(decoder, prompts, beams=beam.Beams(beams=beams), **options)
        return [rows[0] for rows in result.tokens]

    return decode


def _theirs(model: LanguageModel, new_tokens: int, kernel: str, *options: str):
    import torch
    from transformers import AutoModelForCausalLM

    device, half = timed.torch_device(), model.config.dtype == jax.numpy.bfloat16
    dtype = torch.bfloat16 if half else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        path = export_hf(model, None, f"{folder}/model")
        peer: Any = AutoModelForCausalLM.from_pretrained(path, attn_implementation=kernel)
    peer = peer.to(device, dtype).eval()
    if "compile" in options:
        peer.forward = torch.compile(peer.forward, mode="reduce-overhead", fullgraph=True)
    more = {"cache_implementation": "static"} if "static" in options else {}
    more |= {"eos_token_id": None, "pad_token_id": 0, "max_new_tokens": new_tokens}

    def decode(prompts: list[list[int]], beams: int) -> list[list[int]]:
        tokens = torch.tensor(prompts, device=device)
        mask = torch.ones_like(tokens)
        with torch.no_grad():
            out = peer.generate(
                tokens, attention_mask=mask, do_sample=False, num_beams=beams, **more
            )
        return out[:, tokens.shape[1] :].tolist()

    return decode
