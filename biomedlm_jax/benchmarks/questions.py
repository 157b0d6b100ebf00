"""Questions per second: scoring beside lm-evaluation-harness; fine-tuning as tuning.py has it.

All sides answer or learn the same questions with the same model and number of threads; rounds
alternate, so that a busy machine slows every side.
"""

import functools
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from tokenizers import Tokenizer

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.benchmarks.tuning import tuning_sides
from biomedlm_jax.corpus.tokenizer import load_tokenizer
from biomedlm_jax.interop.huggingface import export_hf, load
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.qa.scoring import OPTION, score
from biomedlm_jax.qa.tasks import Example, find_task, read_examples

SCORING, TUNING = PARTS = ("scoring", "tuning")
PEERS = ("torch", "transformers", "lm_eval", "accelerate")


def run_benchmark(
    path: str | Path,
    *,
    parts: list[str],
    model: str | Path | None,
    tokenizer: str | Path | None,
    questions: int,
    steps: int,
    rounds: int,
    batch_size: int = 16,
    max_length: int = 512,
    hf_batch_sizes: Sequence[int] = (8,),
) -> dict:
    """Measure the parts on questions of MedQA's form, print tables, and return the figures.

    Without a `model` one of 6 layers and width 384 with random weights is taken, whose vocabulary
    is that of `tokenizer`. A round scores the first `questions` and learns `steps` batches.
    """
    keep_freed_memory()  # the peers in this process have it, too
    missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"bench questions needs {', '.join(missing)}; pip install 'biomedlm-jax[hf,harness]' "
            "accelerate"
        )
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"got the parts {sorted(unknown)}; they are {', '.join(PARTS)}")
    examples = read_examples(find_task("medqa"), path, split="dev")
    gpt, tokens = _model(model, tokenizer)
    config = gpt.config
    figures = {
        "parameters": config.parameter_count,
        "shape": f"{config.layers} layers, width {config.width}, vocabulary "
        f"{config.vocab_size:,}, context {config.context_length}, {config.dtype.__name__}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "versions": {name: importlib.metadata.version(name) for name in ("jax", *PEERS[:3])},
    }
    print(f"{figures['parameters']:,} parameters: {figures['shape']}")
    print(figures["machine"], ", ".join(f"{n} {v}" for n, v in figures["versions"].items()))
    with tempfile.TemporaryDirectory() as folder:
        release = export_hf(gpt, tokens, Path(folder, "model"))
        if SCORING in parts:
            sides = scoring_sides(gpt, tokens, release, examples[:questions], hf_batch_sizes)
            figures[SCORING] = alternate(sides, rounds, len(examples[:questions]))
            print_table(SCORING, figures[SCORING])
        if TUNING in parts:
            sides = tuning_sides(gpt, tokens, release, examples, steps, batch_size, max_length)
            figures[TUNING] = alternate(sides, rounds, steps * batch_size)
            print_table(TUNING, figures[TUNING])
    return figures


def alternate(sides: dict[str, Callable[[], np.ndarray]], rounds: int, questions: int) -> dict:
    """Time the sides in turn, after a first call that compiles.

    A side's `ratio` is the median of its seconds over that of the first side; `difference` is how
    far its first call's numbers are from the first side's.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found, first = {}, {}
    for number in range(rounds + 1):
        for name, run in sides.items():
            began = time.perf_counter()
            numbers = run()
            took = time.perf_counter() - began
            print(f"  round {number} {name:26} {took:8.2f} s", flush=True)
            if number:
                seconds[name].append(took)
            else:
                found[name], first[name] = np.asarray(numbers), took
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ours = next(iter(sides))
    return {
        name: {
            "questions_per_second": questions / medians[name],
            "seconds": seconds[name],
            "first_seconds": first[name],
            "ratio": medians[name] / medians[ours],
            "difference": float(np.abs(found[name] - found[ours]).max()),
        }
        for name in sides
    }


def print_table(title: str, sides: dict) -> None:
    """Print what `alternate` returned."""
    print(f"{title:28} {'questions/s':>11} {'median s':>9} {'first s':>8} {'ratio':>6} difference")
    for name, side in sides.items():
        print(
            f"  {name:26} {side['questions_per_second']:11.2f} "
            f"{statistics.median(side['seconds']):9.2f} {side['first_seconds']:8.1f} "
            f"{side['ratio']:6.2f} {side['difference']:.1e}"
        )
    print("  ratio: the side's median over the first one's; above 1, the first one is faster")


def scoring_sides(
    gpt: GPT,
    tokenizer: Tokenizer,
    release: Path,
    examples: list[Example],
    batch_sizes: Sequence[int],
) -> dict[str, Callable[[], np.ndarray]]:
    """The log-probabilities of the options' texts by `score`, the plug-in and the `hf` backend."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from biomedlm_jax.qa.harness import Harness

    use_all_threads()
    pairs = [(f"Question: {e.question}\nAnswer:", f" {o}") for e in examples for o in e.options]
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i)
        for i, pair in enumerate(pairs)
    ]
    peer = {"pretrained": str(release), "device": "cpu", "dtype": "float32"}
    hf = HFLM(**peer)

    def by_score():
        items = score(gpt, tokenizer, examples, find_task("medqa"), mode=OPTION)[OPTION]
        return [value for item in items for value in item["scores"]]

    def by(backend):
        return [summed for summed, _ in backend.loglikelihood(requests, disable_tqdm=True)]

    def by_hf(batch_size):
        hf.batch_size_per_gpu = int(batch_size)
        return by(hf)

    sides = {
        "score, option": by_score,  # which scores the options without their question as well
        "harness plug-in": lambda: by(Harness(gpt, tokenizer)),
    }
    for size in batch_sizes:
        sides[f"harness hf, batch {size}"] = functools.partial(by_hf, size)
    return sides


def use_all_threads() -> None:
    """Let torch take every core, as XLA does."""
    import torch

    torch.set_num_threads(os.cpu_count())


def _model(model, tokenizer) -> tuple[GPT, Tokenizer]:
    rates = ("embedding_dropout", "attention_dropout", "residual_dropout")
    undisturbed = dict.fromkeys(rates, 0.0)  # so that all sides compute the same
    tokens = load_tokenizer(tokenizer) if tokenizer else None
    if model:
        gpt, own = load(model, **undisturbed)
        if tokens is None and own is None:
            raise ValueError(f"{model} has no tokenizer; give --tokenizer")
        return gpt, tokens or own
    if tokens is None:
        raise ValueError("bench questions needs --model, or --tokenizer for a random one")
    shape = {"layers": 6, "width": 384, "heads": 6, "vocab_size": tokens.get_vocab_size()}
    config = GPTConfig(context_length=1024, **shape, **undisturbed)
    return GPT(config, key=jax.random.key(0)), tokens
