"""Benchmark of MedQA's questions: scoring against lm-evaluation-harness, tuning against torch.

All sides have the same questions, weights and number of threads, and run on the CPU in one process,
in float32. In fine-tuning the peer is
transformers' model with a linear head and torch's AdamW, on the rows of the original code: a row
per option, padded to the longest of the batch.
"""

import functools
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from biomedlm_jax import mesh as meshes
from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.benchmarks import rounds as timed
from biomedlm_jax.benchmarks.training_steps import JaxSteps, TorchSteps
from biomedlm_jax.corpus.tokenizer import load_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.losses import Batch, question_loss
from biomedlm_jax.finetuning.shuffling import ShuffledQuestions
from biomedlm_jax.interop.finetuned import KEEP_END, Head, with_head
from biomedlm_jax.interop.huggingface import export_hf, load
from biomedlm_jax.model.families import make_config, make_model
from biomedlm_jax.model.heads import CHOICE, Scorer
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.model.vocabulary import grow_vocabulary
from biomedlm_jax.qa.packing import LAST, Bucket, build_rows, one_prompt_per_option, size
from biomedlm_jax.qa.prompts import ADDED_TOKENS, choice_prompts
from biomedlm_jax.qa.questions import Question
from biomedlm_jax.qa.scoring import OPTION, score
from biomedlm_jax.qa.splits import read_questions
from biomedlm_jax.qa.tasks import find_task
from biomedlm_jax.training.config import OptimizerSettings

SCORING, TUNING = PARTS = ("scoring", "tuning")
PACKAGES = ("torch", "transformers", "lm_eval", "accelerate")  # of the peers
OPTIMIZER = OptimizerSettings(learning_rate=1e-5, warmup_steps=0)
# Largest difference of the log-probabilities of an option, and of losses, in nats.
TOLERANCE = 1e-3
MODEL = {"model_type": "gpt2", "layers": 6, "width": 384, "heads": 6, "context_length": 1024}

Sides = dict[str, Callable]


def measure(
    path: str | Path,
    *,
    parts: Sequence[str] = PARTS,
    model: str | Path | None = None,
    tokenizer: str | Path | None = None,
    questions: int = 100,
    steps: int = 4,
    rounds: int = 5,
    batch_size: int = 16,
    max_length: int = 512,
    hf_batch_sizes: Sequence[int] = (8,),
) -> dict[str, Any]:
    """Time scoring and fine-tuning on MedQA's questions; return the figures.

    Without a `model`, a random one of 6 layers and width 384 with the vocabulary of `tokenizer` is
    used. A round scores the first `questions` and trains on `steps` batches. `difference` is the
    largest one between the numbers of a side's first call and the first side's: the result has an
    error if it is above `TOLERANCE`. Raises InputError if jax runs on another device than the CPU.
    """
    keep_freed_memory()  # it applies to the peers in this process, too
    if jax.default_backend() != "cpu":
        raise InputError(
            f"bench score --path runs on the CPU only, got jax on {jax.default_backend()}; fix: "
            "JAX_PLATFORMS=cpu"
        )
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"bench score --path needs {', '.join(missing)}; fix: pip install "
            "'biomedlm-jax[hf,harness]' accelerate"
        )
    unknown = set(parts) - set(PARTS)
    if unknown or not parts:
        raise InputError(f"got the parts {sorted(unknown)}; expected some of {', '.join(PARTS)}")
    examples = read_questions(find_task("medqa"), path, split="dev")
    if TUNING in parts and steps * batch_size > len(examples):
        got = f"got steps={steps} with {batch_size} questions each, and {len(examples)} questions"
        raise InputError(f"{got}; expected at most one step for each {batch_size}")
    ours, tokens = _model(model, tokenizer)
    tables, errors = {}, []
    with tempfile.TemporaryDirectory() as folder:
        release = export_hf(ours, tokens, Path(folder, "model"))
        if SCORING in parts:
            scored = examples[:questions]
            sides = scoring_sides(ours, tokens, release, scored, hf_batch_sizes)
            tables[SCORING] = _compare(sides, rounds, len(scored))
            errors += timed.unequal(tables[SCORING], "log-probabilities", TOLERANCE)
        if TUNING in parts:
            sides = tuning_sides(ours, tokens, release, examples, steps, batch_size, max_length)
            tables[TUNING] = _compare(sides, rounds, steps * batch_size)
            errors += timed.unequal(tables[TUNING], "losses", TOLERANCE)
    work = f"context {ours.config.context_length}"
    return {
        **timed.benchmark_header(work, ("jax", *PACKAGES[:3]), config=ours.config),
        "notes": [
            "all sides run on the CPU only",
            f"scores and losses of all sides are compared: at most {TOLERANCE:g} nats apart",
        ],
        "errors": errors,
        "tables": tables,
    }


def _compare(sides: Sides, rounds: int, questions: int) -> dict[str, dict]:
    timings, ours = timed.alternate(sides, rounds=rounds), next(iter(sides))
    table = timed.summarise_timings(timings, "questions", questions, ours)
    timed.compare_first(table, timings)
    return table


def _model(model, tokenizer) -> tuple[LanguageModel, Tokenizer]:
    tokens = load_tokenizer(tokenizer) if tokenizer else None
    if model:
        same: dict[str, Any] = {"compute_dtype": "float32", **timed.NO_DROPOUT}
        loaded, own = load(model, **same)  # so that all sides compute the same
        tokens = tokens or own
        if tokens is None:
            raise InputError(f"{model} has no tokenizer; give --tokenizer")
        return loaded, tokens
    if tokens is None:
        raise InputError("bench score --path needs --model, or --tokenizer for a random model")
    config = make_config(MODEL, vocab_size=tokens.get_vocab_size(), **timed.NO_DROPOUT)
    return make_model(config, key=jax.random.key(0)), tokens


def scoring_sides(
    model: LanguageModel,
    tokenizer: Tokenizer,
    release: Path,
    questions: Sequence[Question],
    batch_sizes: Sequence[int],
) -> Sides:
    """Return the sides that compute the options' log-probabilities: ours, plug-in, `hf` backend."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from biomedlm_jax.qa.harness import Harness

    timed.torch_device()
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=i)
        for i, pair in enumerate(
            (f"Question: {q.question}\nAnswer:", f" {o}") for q in questions for o in q.options
        )
    ]
    options: dict[str, Any] = {"pretrained": str(release), "device": "cpu", "dtype": "float32"}
    hf: Any = HFLM(**options)

    def by_score() -> list[float]:
        items = score(model, tokenizer, questions, find_task("medqa"), mode=OPTION)[OPTION]
        return [value for item in items for value in item["scores"]]

    def by(backend, batch_size: int = 0) -> list[float]:
        hf.batch_size_per_gpu = batch_size
        return [summed for summed, _ in backend.loglikelihood(requests, disable_tqdm=True)]

    plugin = Harness(model, tokenizer)
    return {
        "score, option": by_score,  # it also scores the options without their question
        "harness plug-in": lambda: by(plugin),
        **{f"harness hf, batch {n}": lambda n=int(n): by(hf, n) for n in batch_sizes},
    }


def tuning_sides(
    model: LanguageModel,
    tokenizer: Tokenizer,
    release: Path,
    questions: Sequence[Question],
    steps: int,
    batch_size: int,
    max_length: int,
) -> Sides:
    """Return the sides that train on the same batches of questions; a call returns its losses."""
    extended = Tokenizer.from_str(tokenizer.to_str())
    added = extended.add_special_tokens(list(ADDED_TOKENS[CHOICE]))
    prompts = choice_prompts(
        extended, questions, row_format=KEEP_END, max_length=max_length
    ).prompts
    labels = [int(question.label or 0) for question in questions]
    shuffle: dict[str, Any] = {"batch_size": batch_size, "multiple": 1, "kind": CHOICE, "seed": 0}
    data = ShuffledQuestions(prompts, labels, **shuffle)
    # The order of the first epoch; equal losses of the sides confirm it.
    order = np.random.default_rng([0, 0]).permutation(len(questions))
    chosen = [order[i * batch_size : (i + 1) * batch_size] for i in range(steps)]
    one_each = [
        one_prompt_per_option(prompts[i]._replace(question=q) for q, i in enumerate(c))
        for c in chosen
    ]
    gold = [[labels[i] for i in c] for c in chosen]
    head = Head(kind=CHOICE, task="medqa", row_format=KEEP_END, max_length=max_length)
    key = jax.random.key(0)
    scorer = with_head(grow_vocabulary(model, added, key=key), head, key=key)
    shared = [data.batch(step) for step in range(steps)]
    rows = [one_row_per_option(*batch) for batch in zip(one_each, gold, strict=True)]
    learn = functools.partial(JaxSteps, meshes.one_device())
    copy = functools.partial(jax.tree.map, jax.numpy.copy)  # a step reuses the model's buffers
    return {
        "shared prefix": learn(copy, question_loss, shared, OPTIMIZER, scorer),
        "one row per option": learn(copy, question_loss, rows, OPTIMIZER, scorer),
        "transformers + torch": _torch(scorer, release, one_each, gold),
    }


def one_row_per_option(prompts, gold: Sequence[int]) -> Batch:
    """Return a batch with each option in a row of its own, as long as the batch's longest."""
    length = max(size(prompt, LAST) for prompt in prompts)
    each = [[i] for i in range(len(prompts))]
    bucket = Bucket(length, each, sources=1, entries=1, branched=False)
    rows = build_rows(prompts, bucket, each, batch_size=len(prompts), read=LAST)
    gold_BxE = (rows.option_BxE == np.array(gold)[rows.question_BxE]).astype(np.int32)
    weight_BxE = np.full(gold_BxE.shape, 1 / len(gold), np.float32)
    return Batch(rows._replace(target_BxE=gold_BxE), weight_BxE)


def _torch(scorer: Scorer, release: Path, one_each, gold: Sequence[Sequence[int]]) -> Callable:
    import torch
    from transformers import AutoModel

    timed.torch_device()
    trunk: Any = AutoModel.from_pretrained(release, use_cache=False).train()
    entries, width = scorer.config.vocab_size, scorer.config.width
    trunk.resize_token_embeddings(entries, mean_resizing=False)
    head = torch.nn.Linear(width, 1)
    with torch.no_grad():
        table = np.asarray(scorer.trunk.head_weight[:entries])
        trunk.get_input_embeddings().weight.copy_(torch.tensor(table))
        head.weight.copy_(torch.tensor(np.asarray(scorer.score.kernel[...]).T))
        assert scorer.score.bias is not None
        head.bias.copy_(torch.tensor(np.asarray(scorer.score.bias[...])))

    def loss(prompts, labels):
        texts = [torch.tensor(prompt.prefix + prompt.branches[0]) for prompt in prompts]
        lengths = torch.tensor([len(text) for text in texts])
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        hidden = trunk(ids, attention_mask=mask.long()).last_hidden_state
        scores = head(hidden[torch.arange(len(texts)), lengths - 1]).view(len(labels), -1)
        return torch.nn.functional.cross_entropy(scores, torch.tensor(labels))

    losses = [functools.partial(loss, *batch) for batch in zip(one_each, gold, strict=True)]
    parameters = [*trunk.parameters(), *head.parameters()]
    return TorchSteps(parameters, losses, OPTIMIZER, fused=True)
