"""Measure `biomedlm serve` with one and with several streams, and compare the texts.

    python scripts/serve_load.py --model=random --streams=8 --rounds=5

The script starts the server, and sends it streamed requests with the client of OpenAI: in each
round the requests of one stream, one after the other, and then those of all streams at the same
time. Each stream sends `--requests` prompts of its own. The first round compiles and is left out.
It prints tokens/s of the whole (medians, with the range of the rounds), their ratio, and the median
time to the first text. Afterwards the same prompts are answered one at a time by `generate`: the
exit code is 1 if any text differs.
"""

import argparse
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from openai import OpenAI

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.files import write_json
from biomedlm_jax.generation.generator import generate
from biomedlm_jax.interop.huggingface import load

WORDS = (
    *("aspirin", "kinase", "tumour", "renal", "insulin", "receptor", "trial", "serum", "cardiac"),
    *("infection", "dose", "protein", "therapy", "lesion", "plasma", "enzyme"),
)


def prompts_of(count: int) -> list[str]:
    """Return different prompts of 6 to 20 words."""
    return [f"{n}. " + " ".join(islice(cycle(WORDS), n, 6 + 2 * n % 15 + n)) for n in range(count)]


def ask(client: OpenAI, model: str, prompt: str, max_tokens: int) -> tuple[str, int, float]:
    """Return the text of a streamed answer, its tokens and the seconds to its first piece."""
    began, first, text, tokens = time.perf_counter(), 0.0, "", 0
    stream = client.completions.create(
        model=model,
        prompt=prompt,
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=max_tokens,
        temperature=0,
    )
    for chunk in stream:
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
        if chunk.choices and chunk.choices[0].text:
            first = first or time.perf_counter() - began
            text += chunk.choices[0].text
    return text, tokens, first


def main() -> int:
    """Read the flags, measure, compare, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="directory of a model with a tokenizer")
    parser.add_argument("--streams", type=int, default=8, help="clients at the same time")
    parser.add_argument("--requests", type=int, default=3, help="of each client, in a round")
    parser.add_argument("--rounds", type=int, default=5, help="that are measured")
    parser.add_argument("--max_tokens", type=int, default=128, help="of an answer")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    flags = parser.parse_args()

    command = [sys.executable, "-m", "biomedlm_jax.cli", "serve", f"--model={flags.model}"]
    command += ["--port=0", "--name=model", f"--batch_size={flags.streams}"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    line = next((line for line in server.stderr if line.startswith("model: ")), "")
    if not line:
        return server.wait() or 1
    client = OpenAI(base_url=line.split()[1], api_key="none", max_retries=0)
    prompts = prompts_of(flags.streams)
    texts: list[set[str]] = [set() for _ in prompts]
    speeds: dict[int, list[float]] = {1: [], flags.streams: []}
    firsts: dict[int, list[float]] = {1: [], flags.streams: []}

    def answer(stream: int) -> list[tuple[str, int, float]]:
        return [
            ask(client, "model", prompts[stream], flags.max_tokens) for _ in range(flags.requests)
        ]

    try:
        with ThreadPoolExecutor(flags.streams) as pool:
            for measured in range(flags.rounds + 1):
                for streams in speeds:
                    began = time.perf_counter()
                    results = list(pool.map(answer, range(streams)))
                    seconds = time.perf_counter() - began
                    for stream, answers in enumerate(results):
                        texts[stream] |= {text for text, _, _ in answers}
                    if measured:
                        tokens = sum(tokens for one in results for _, tokens, _ in one)
                        speeds[streams].append(tokens / seconds)
                        firsts[streams] += [first for one in results for _, _, first in one]
    finally:
        server.terminate()
        server.wait()
    keep_freed_memory()
    model, tokenizer = load(flags.model)
    assert tokenizer is not None
    settings: dict[str, Any] = {"max_new_tokens": flags.max_tokens, "temperature": 0.0}
    settings |= {"directory": flags.model, "batch_size": 1}
    expected = generate(model, tokenizer, prompts, **settings)
    different = sum(got != {text} for got, text in zip(texts, expected, strict=True))
    figures: dict[str, Any] = {"different_texts": different, "texts": len(prompts)}
    for streams, values in speeds.items():
        median = statistics.median(values)
        first = statistics.median(firsts[streams])
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"{streams} streams: {median:.0f} tokens/s ({spread}), first text {first:.3f} s")
        figures[f"streams_{streams}"] = {"tokens_per_second": values, "first_text_seconds": first}
    ratio = statistics.median(speeds[flags.streams]) / statistics.median(speeds[1])
    print(f"ratio {ratio:.2f}; {different} of {len(prompts)} texts differ from generate's")
    if flags.json:
        write_json(flags.json, {**figures, "ratio": ratio})
    return min(different, 1)


if __name__ == "__main__":
    sys.exit(main())
