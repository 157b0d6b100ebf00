"""Compare another engine with this library: logits, greedy texts and perplexity.

    python scripts/clients.py llama.cpp --model=run --file=model.gguf --texts=heldout.jsonl
    python scripts/clients.py ctranslate2 --model=run --file=ct2/ --texts=heldout.jsonl

--model is the run or Hugging Face directory that --file was made from. --texts are JSON lines. The
logits are those of rows of consecutive tokens of the texts; prompts are their first tokens. Needs
llama-cpp-python or ctranslate2.
"""

import argparse
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.special import logsumexp

from biomedlm_jax import generate, load
from biomedlm_jax.corpus.documents import read_documents

Logits = Callable[[list[int]], np.ndarray]  # [L] -> [L, V]
Greedy = Callable[[str, list[int], int], str]


def llama_cpp(file: str, length: int) -> tuple[Logits, Greedy]:
    """Return the functions of llama.cpp, with its defaults: 16-bit keys and values."""
    engine: Any = importlib.import_module("llama_cpp").Llama(
        file, n_ctx=length, logits_all=True, verbose=False
    )

    def logits(ids: list[int]) -> np.ndarray:
        engine.reset()
        engine.eval(ids)
        return np.array(engine.scores[: len(ids)])

    def greedy(prompt: str, ids: list[int], count: int) -> str:
        if engine.tokenize(prompt.encode(), add_bos=True, special=True) != ids:
            raise SystemExit(f"llama.cpp has other token ids for {prompt!r}")
        return engine(prompt, max_tokens=count, temperature=0.0)["choices"][0]["text"]

    return logits, greedy


def ctranslate2(file: str, model: str) -> tuple[Logits, Greedy]:
    """Return the functions of CTranslate2."""
    engine: Any = importlib.import_module("ctranslate2").Generator(file)
    _, tokenizer = load(model)
    assert tokenizer is not None

    def tokens(ids: list[int]) -> list[str]:
        return [str(tokenizer.id_to_token(i)) for i in ids]

    def logits(ids: list[int]) -> np.ndarray:
        return np.array(engine.forward_batch([tokens(ids)]))[0]

    def greedy(prompt: str, ids: list[int], count: int) -> str:
        options = {"max_length": count, "sampling_topk": 1, "include_prompt_in_result": False}
        result = engine.generate_batch([tokens(ids)], **options)
        return tokenizer.decode(result[0].sequences_ids[0])

    return logits, greedy


def perplexity(logits_NxLxV: np.ndarray, ids_NxL: np.ndarray) -> float:
    """Return exp of the mean negative log-probability of each token but the first."""
    before = logits_NxLxV[:, :-1].astype(np.float64)
    chosen = np.take_along_axis(before, ids_NxL[:, 1:, None], axis=-1)[..., 0]
    return float(np.exp(np.mean(np.asarray(logsumexp(before, axis=-1)) - chosen)))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures."""
    model, tokenizer = load(options.model)
    if tokenizer is None:
        raise SystemExit(f"{options.model} has no tokenizer")
    if options.engine == "llama.cpp":
        logits_of, greedy_of = llama_cpp(options.file, options.length)
    else:
        logits_of, greedy_of = ctranslate2(options.file, options.model)
    texts: list[str] = []
    ids: list[int] = []
    for document in read_documents([options.texts], text_field=options.text_field):
        texts.append(document.text)
        ids += tokenizer.encode(document.text).ids
        if len(ids) >= options.rows * options.length and len(texts) >= options.prompts:
            break
    rows = np.array(ids[: options.rows * options.length], np.int32).reshape(-1, options.length)
    here = jax.jit(lambda model, tokens: model(tokens))
    ours = np.concatenate([np.asarray(here(model, row[None])) for row in rows])
    theirs = np.stack([logits_of(row.tolist()) for row in rows])
    difference = np.abs(ours - theirs)
    starts = [tokenizer.encode(text).ids[: options.prompt_tokens] for text in texts]
    prompts = [tokenizer.decode(start) for start in starts[: options.prompts]]
    answers = generate(model, tokenizer, prompts, max_new_tokens=options.new_tokens)
    others = [greedy_of(p, tokenizer.encode(p).ids, options.new_tokens) for p in prompts]
    gaps = []
    for prompt, one, other in zip(prompts, answers, others, strict=True):
        if one != other:
            a, b = (tokenizer.encode(prompt + answer).ids for answer in (one, other))
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
            if at is None:  # one text is the start of the other
                raise SystemExit(f"the answers to {prompt!r} have other lengths")
            row = np.asarray(here(model, np.array([a[:at]], np.int32)))[0, -1]
            gaps.append(float(row[a[at]] - row[b[at]]))
    return {
        "tokens": rows.size,
        "largest logit": float(np.abs(ours).max()),
        "max |difference| of logits": float(difference.max()),
        "mean |difference| of logits": float(difference.mean()),
        "perplexity here": perplexity(ours, rows),
        "perplexity there": perplexity(theirs, rows),
        "equal greedy texts": f"{len(prompts) - len(gaps)} of {len(prompts)}",
        "gaps of the two logits where texts part": gaps,
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("engine", choices=("llama.cpp", "ctranslate2"))
    parser.add_argument("--model", required=True, help="Run or Hugging Face directory.")
    parser.add_argument("--file", required=True, help="What the engine reads.")
    parser.add_argument("--texts", required=True, type=Path, help="JSON lines.")
    parser.add_argument("--text_field", default="title,abstract,body")
    for name, default in (("rows", 64), ("length", 256), ("prompts", 20), ("prompt_tokens", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--new_tokens", type=int, default=64)
    print(json.dumps(compare(parser.parse_args()), indent=2))


if __name__ == "__main__":
    main()
