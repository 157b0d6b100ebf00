"""Benchmark of question scoring against transformers, with equal weights and random questions.

All sides score the same questions with the same number of threads. The peers have one padded row
per option, in batches of similar lengths, as lm-evaluation-harness has; `bench_medqa` compares with
that.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.benchmarks import rounds as timed
from biomedlm_jax.benchmarks.peers import UNCACHED, check_hf, load_hf
from biomedlm_jax.benchmarks.release import execution_of, random_release
from biomedlm_jax.benchmarks.rounds import OURS
from biomedlm_jax.benchmarks.sides import for_device, measure_sides
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.qa.packing import LAST, Prompt, one_prompt_per_option, size
from biomedlm_jax.qa.scoring import branch_log_probabilities

SCORE = "score"
PEERS = ("hf eager", "hf sdpa")
UNSHARED = f"{OURS}, one row per option"
# Random questions: tokens of a question, of an option, and options.
QUESTION, OPTIONS, CHOICES = (60, 240), (2, 12), 4
HF_BATCH = 8  # rows of a batch of the peers, lm-evaluation-harness's in docs/benchmarks.md
# Largest difference of the log-probabilities of an option, in nats.
TOLERANCE = {"float32": 1e-3, "bfloat16": 1.0}


def measure(
    config: ModelConfig,
    *,
    questions: int = 100,
    rounds: int = 5,
    peers: Iterable[str] = PEERS,
    blocks: int | None = None,
    details: bool = True,
) -> dict[str, Any]:
    """Time the scoring of random questions; return the figures.

    A side computes the log-probability of each option of `questions` questions. `peers` name
    transformers' variants: "hf ATTENTION [compile]". `blocks` is as in `sides.measure_sides`; None
    are some on a GPU. `difference` is the largest one between the log-probabilities of a side and
    ours, in nats. `details` adds the peak memory.
    """
    keep_freed_memory()
    notes: list[str] = []
    for peer in peers:
        check_hf(peer, UNCACHED)
    names = (OURS, UNSHARED, *timed.available_peers(peers, notes))
    config, blocks = for_device(config, blocks)
    random_prompts(config, 1)  # raises before one side starts
    with random_release(config, apart=blocks is not None) as release:
        work: dict[str, Any] = {"release": str(release), "execution": execution_of(config)}
        work["questions"] = questions
        options: dict[str, Any] = {"rounds": rounds, "blocks": blocks}
        options["memory_of"] = SCORE if details else None
        measured = measure_sides("bench_score", names, work, [SCORE], **options)
    timings = measured.timings[SCORE]
    table = timed.summarise_timings(timings, "questions", questions)
    timed.compare_first(table, timings)
    tables = {"scoring": table, "peak memory": measured.memory}
    notes += measured.notes
    notes.append(
        f"{OURS} computes a question once for all its options, transformers once for each option, "
        f"as lm-evaluation-harness does; the side '{UNSHARED}' shows the gain of that"
    )
    tokens = np.mean([size(prompt, LAST) for prompt in random_prompts(config, questions)])
    work_text = f"{questions} questions of {CHOICES} options, {tokens:.0f} tokens each"
    packages = ("jax", "flax", "torch", "transformers")
    return {
        **timed.benchmark_header(work_text, packages, config=config, about=measured.about),
        "notes": [f"energy: {measured.energy}", *notes],
        "errors": timed.unequal(table, "log-probabilities", TOLERANCE[np.dtype(config.dtype).name]),
        "tables": {title: rows for title, rows in tables.items() if rows},
    }


def random_prompts(config: ModelConfig, count: int) -> list[Prompt]:
    """Return questions of random tokens, each with options of different lengths."""
    rng = np.random.default_rng(0)
    longest = config.context_length - OPTIONS[1]
    if longest < QUESTION[0]:
        got = f"got a context length of {config.context_length}"
        raise InputError(f"{got}; expected at least {QUESTION[0] + OPTIONS[1]}; fix: --length")

    def ids(least: int, most: int) -> list[int]:
        return rng.integers(0, config.vocab_size, rng.integers(least, most + 1)).tolist()

    lengths = QUESTION[0], min(QUESTION[1], longest)
    return [
        Prompt(ids(*lengths), [ids(*OPTIONS) for _ in range(CHOICES)], number)
        for number in range(count)
    ]


def make_side(
    name: str, *, release: str, execution: Mapping[str, Any], questions: int
) -> dict[str, Callable]:
    """Return a call that returns the log-probabilities of all options, in order."""
    config = model_config(release, **execution)
    prompts = random_prompts(config, questions)
    if not name.startswith(OURS):
        peer = load_hf(name, release, dtype=np.dtype(config.dtype).name)
        return {SCORE: functools.partial(_by_transformers, peer, prompts)}
    model, _ = load(release, **execution)
    packed = one_prompt_per_option(prompts) if name == UNSHARED else prompts

    def by_packing() -> list[float]:
        values = np.empty((questions, CHOICES))
        for question, option, value, _ in branch_log_probabilities(model, packed):
            values[question, option] = value
        return values.ravel().tolist()

    return {SCORE: by_packing}


def _by_transformers(peer: Any, prompts: Sequence[Prompt]) -> list[float]:
    """Score each option in a padded row of its own, longest rows first, as lm-eval's backend."""
    import torch

    rows = [
        (prompt.prefix + branch, len(branch)) for prompt in prompts for branch in prompt.branches
    ]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    values = np.empty(len(rows))
    for first in range(0, len(order), HF_BATCH):
        chosen = order[first : first + HF_BATCH]
        texts = [torch.tensor(rows[i][0]) for i in chosen]
        lengths = torch.tensor([len(text) for text in texts])
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        ids, mask = ids.to(peer.device), mask.to(peer.device)
        with torch.no_grad():
            logits = peer(ids, attention_mask=mask, use_cache=False).logits.float()
        for row, i in enumerate(chosen):
            text, branch = rows[i]
            end = len(text)
            targets = ids[row, end - branch : end]
            logp = torch.log_softmax(logits[row, end - branch - 1 : end - 1], dim=-1)
            values[i] = logp.gather(1, targets[:, None]).sum().item()
    return values.tolist()
