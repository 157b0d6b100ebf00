"""What is fine-tuned: a whole model with its head, or low-rank factors beside a frozen one.

A fine-tuned directory is a run directory (config.json, tokenizer, checkpoints) whose config.json
has a `head` beside the `model`, and whose checkpoint is a model with its head.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh
from tokenizers import Tokenizer

from biomedlm_jax.corpus.tokenizer import load_tokenizer, save_tokenizer
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.mesh import one_device
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.model.heads import HEADS, score_layer
from biomedlm_jax.model.lora import LoRA
from biomedlm_jax.model.tokens import grow_vocabulary
from biomedlm_jax.qa.setup import Head, read_head
from biomedlm_jax.training.checkpoint import load_tree, save_model
from biomedlm_jax.training.run import write_json
from biomedlm_jax.training.state import laid_out


class Adapter(nnx.Module):
    """The trained part of LoRA: factors, the embedding rows of added tokens, the score layer."""

    def __init__(self, gpt: GPT, score: nnx.Linear, *, added: int, rank: int, alpha: float, key):
        self.kind = "choice" if score.out_features == 1 else "classification"
        self.lora = LoRA(gpt.config, rank=rank, alpha=alpha, key=key)
        first = gpt.config.vocab_size - added
        axes = {"out_sharding": (None, "embed"), "eager_sharding": False}
        self.rows = nnx.Param(gpt.wte[first : gpt.config.vocab_size], **axes)
        self.score = score

    def head(self, gpt: GPT):
        """The frozen model with the trained rows and score; its layers are as they were."""
        last = gpt.config.vocab_size
        gpt = jax.tree.map(lambda leaf: leaf, gpt)  # another module, of the same arrays
        wte_VxD = gpt.wte[...].at[last - self.rows.shape[0] : last].set(self.rows[...])
        gpt.wte = gpt.wte.replace(wte_VxD)
        return HEADS[self.kind](gpt, self.score)

    def merged(self, gpt: GPT):
        """A model with its head in which the factors have become part of the kernels."""
        head = self.head(gpt)
        head.gpt.h = self.lora.merged(head.gpt.h)
        return head


def with_head(gpt: GPT, head: Head, *, added: int, key: jax.Array):
    """`gpt` with `added` more tokens and a fresh score layer."""
    grow_key, score_key = jax.random.split(key)
    score = score_layer(gpt.config, head.kind, head.outputs, key=score_key)
    return HEADS[head.kind](grow_vocabulary(gpt, added, key=grow_key), score)


def abstract_tuned(config: GPTConfig, head: Head, mesh: Mesh):
    """A fine-tuned model's shapes, dtypes and shardings; `config` has the added tokens."""

    def make():
        key = jax.random.key(0)
        return with_head(GPT(config, key=key), head, added=0, key=key)

    return laid_out(make, mesh)


def save_tuned(path: Path, tuned, tokenizer: Tokenizer, head: Head, *, step: int, facts: dict):
    """Write a fine-tuned directory whole, or leave the one that is there."""
    new, old = (path.with_name(f".{path.name}.{what}") for what in ("new", "old"))
    first = jax.process_index() == 0
    if first:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        new.mkdir(parents=True)
        config = tuned.gpt.config
        save_tokenizer(tokenizer, new, model_max_length=config.context_length)
        fields = {"model": dataclasses.asdict(config), "head": head.to_json(), "facts": facts}
        write_json(new / "config.json", fields)
    save_model(new, tuned, step=step)
    if first:
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
        shutil.rmtree(old, ignore_errors=True)


def load_tuned(path: str | Path, *, mesh: Mesh | None = None, **execution):
    """The model with its head, the tokenizer and the Head of a fine-tuned directory.

    A run of `finetune` stands for its best checkpoint. `execution` sets fields such as
    `compute_dtype` of GPTConfig. Raises FileNotFoundError or ValueError if there is none.
    """
    path = best_of(path)
    head = read_head(path)
    if head is None:
        raise ValueError(
            f"{path} has no head; fine-tune it first: biomedlm finetune --config=CONFIG "
            f"--model={path} --workdir=DIR"
        )
    config = model_config(path, **execution)
    abstract = abstract_tuned(config, head, one_device() if mesh is None else mesh)
    return load_tree(path, abstract), load_tokenizer(path), head


def best_of(path: str | Path) -> Path:
    """The fine-tuned directory that `path` stands for: a run's best, or itself.

    Raises FileNotFoundError for a run that has not been evaluated yet.
    """
    path = Path(path)
    if not (path / "finetuning.json").exists():
        return path
    if not (path / "best").is_dir():
        raise FileNotFoundError(f"{path} has no best checkpoint yet; let finetune end an epoch")
    return path / "best"


def best_facts(path: Path) -> dict:
    """What was written beside the best checkpoint of a run, or nothing if there is none."""
    file = path / "best" / "config.json"
    return json.loads(file.read_text(encoding="utf-8"))["facts"] if file.exists() else {}
