"""Benchmark of decoding against transformers' `generate`, with equal weights and prompts.

Rounds alternate, so that load affects all sides. Sequences do not end early on any side.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.benchmarks import rounds as timed
from biomedlm_jax.benchmarks.peers import check_hf, load_hf
from biomedlm_jax.benchmarks.release import execution_of, random_release
from biomedlm_jax.benchmarks.rounds import OURS
from biomedlm_jax.benchmarks.sides import Measured, for_device, measure_sides
from biomedlm_jax.errors import InputError
from biomedlm_jax.generation import beam, decoding
from biomedlm_jax.generation.decoder import make_decoder
from biomedlm_jax.generation.sampling import Strategy
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.model.config import ModelConfig

PEERS = ("hf eager", "hf sdpa")


def measure(
    config: ModelConfig,
    *,
    batch_sizes: Sequence[int] = (1, 8, 16),
    beams: int = 5,
    prompt_length: int = 32,
    new_tokens: int = 128,
    rounds: int = 3,
    peers: Iterable[str] = PEERS,
    blocks: int | None = None,
    details: bool = True,
) -> dict[str, Any]:
    """Time whole calls, prefill included, in alternating rounds; return the figures.

    `peers` name transformers' variants: "hf ATTENTION [static] [compile]" (the latter two are a
    static cache and torch.compile). Greedy for every batch size, and beam search at batch 1 if
    `beams` is above 1. `blocks` is as in `sides.measure_sides`, with new processes for each case;
    None are some on a GPU. `equal_rows` is the fraction of rows with the same tokens as ours: in
    float32 the result has an error if it is below 1, in bfloat16 near ties differ. `details` adds
    the peak memory, of the largest batch.
    """
    keep_freed_memory()
    notes: list[str] = []
    for peer in peers:
        check_hf(peer)
    names = (OURS, *timed.available_peers(peers, notes))
    cases = {f"greedy, batch {size}": (size, 1) for size in batch_sizes}
    if beams > 1:
        cases[f"{beams} beams, batch 1"] = (1, beams)
    if not cases:
        raise InputError(f"got no batch size and beams={beams}; expected a batch size, or 2 beams")
    largest = max(cases, key=lambda case: cases[case][0]) if details else None
    config, blocks = for_device(config, blocks)
    tables, errors, memory, measured = {}, [], {}, Measured({})
    with random_release(config, apart=blocks is not None) as release:
        work: dict[str, Any] = {"release": str(release), "execution": execution_of(config)}
        work |= {"prompt_length": prompt_length, "new_tokens": new_tokens}
        for some in [cases] if blocks is None else [{case: cases[case]} for case in cases]:
            options: dict[str, Any] = {"rounds": rounds, "blocks": blocks}
            options["memory_of"] = largest if largest in some else None
            given = {**work, "cases": some}
            measured = measure_sides("bench_generate", names, given, list(some), **options)
            names = [name for name in names if name not in measured.failures]
            memory |= measured.memory
            notes += [line for line in measured.notes if line not in notes]
            for case, timings in measured.timings.items():
                tokens = cases[case][0] * new_tokens
                tables[case] = timed.summarise_timings(timings, "tokens", tokens)
                errors += _compare(case, tables[case], timings, new_tokens, config)
    if memory:
        tables["peak memory"] = memory
        notes.append(f"peak memory of {largest}")
    size = f"prompt {prompt_length}, {new_tokens} new tokens"
    packages = ("jax", "flax", "torch", "transformers")
    return {
        **timed.benchmark_header(size, packages, config=config, about=measured.about),
        "notes": [f"energy: {measured.energy}", *notes],
        "errors": errors,
        "tables": tables,
    }


def _compare(
    case: str, table: dict, timings: Mapping, new_tokens: int, config: ModelConfig
) -> list:
    """Set the time of a step and the share of rows equal to ours; return an error for each side."""
    errors = []
    for name, side in table.items():
        rows = zip(timings[name].first, timings[OURS].first, strict=True)
        side["milliseconds_per_step"] = 1e3 * side["median_seconds"] / new_tokens
        side["equal_rows"] = float(np.mean([a == b for a, b in rows]))
        if side["equal_rows"] < 1 and np.dtype(config.dtype).name == "float32":
            differ = f"{1 - side['equal_rows']:.0%} of the rows have other tokens than ours"
            errors.append(f"{case}, {name}: {differ}")
    return errors


def make_side(
    name: str,
    *,
    release: str,
    execution: Mapping[str, Any],
    cases: Mapping[str, Sequence[int]],
    prompt_length: int,
    new_tokens: int,
) -> dict[str, Callable]:
    """Return a call for each case, of (rows, beams), that returns the new tokens of each row."""
    config = model_config(release, **execution)
    dtype = np.dtype(config.dtype).name
    if name == OURS:
        decode = _ours(make_decoder(load(release, **execution)[0]), new_tokens)
    else:
        decode = _theirs(load_hf(name, release, dtype=dtype), new_tokens, *name.split()[2:])

    def prompts(size: int) -> list[list[int]]:
        shape = size, prompt_length
        return np.random.default_rng(0).integers(0, config.vocab_size, shape).tolist()

    return {
        case: functools.partial(decode, prompts(size), width)
        for case, (size, width) in cases.items()
    }


def _ours(decoder, new_tokens: int):
    def decode(prompts: list[list[int]], beams: int) -> list[list[int]]:
        options: dict[str, Any] = {"max_new_tokens": new_tokens, "strategy": Strategy()}
        if beams == 1:
            result = decoding.decode(decoder, prompts, **options)
        else:
            result = beam.search(decoder, prompts, beams=beam.Beams(beams=beams), **options)
        return [[int(token) for token in rows[0]] for rows in result.tokens]

    return decode


def _theirs(peer: Any, new_tokens: int, *options: str):
    import torch

    more: dict[str, Any] = {"cache_implementation": "static"} if "static" in options else {}
    more |= {"eos_token_id": None, "pad_token_id": 0, "max_new_tokens": new_tokens}

    def decode(prompts: list[list[int]], beams: int) -> list[list[int]]:
        tokens = torch.tensor(prompts, device=peer.device)
        mask = torch.ones_like(tokens)
        with torch.no_grad():
            out = peer.generate(
                tokens, attention_mask=mask, do_sample=False, num_beams=beams, **more
            )
        return out[:, tokens.shape[1] :].tolist()

    return decode
