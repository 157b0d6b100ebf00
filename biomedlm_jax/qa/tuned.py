"""What is fine-tuned: a whole model with its head, or low-rank factors beside a frozen one.

A fine-tuned directory is a run directory (config.json, tokenizer, checkpoints) whose config.json
has a `head` beside the `model`, and whose checkpoint is a model with its head.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
from flax import nnx
from jax.sharding import Mesh
from tokenizers import Tokenizer

from biomedlm_jax.corpus.tokenizer import load_tokenizer, save_tokenizer
from biomedlm_jax.interop import hub
from biomedlm_jax.interop.directories import (
    FINETUNING,
    HUGGING_FACE,
    RUN,
    building,
    check_output,
    kind_of,
    model_config,
    read_config,
)
from biomedlm_jax.interop.heads import load_head
from biomedlm_jax.interop.modelcard import source_facts
from biomedlm_jax.interop.tensorfiles import TensorFiles
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

    A run of `finetune` stands for its best checkpoint; a Hugging Face directory that `export-hf`
    made of one serves as well. `execution` sets fields such as
    `compute_dtype` of GPTConfig. Raises FileNotFoundError or ValueError if there is none.
    """
    path = best_of(path)
    head = read_head(path)
    if head is None:
        raise ValueError(
            f"{path} has no head; fine-tune it first: biomedlm finetune --config=CONFIG "
            f"--model={path} --workdir=DIR"
        )
    if kind_of(path) == HUGGING_FACE:
        return *load_head(path, mesh=mesh, **execution), head
    config = model_config(path, **execution)
    abstract = abstract_tuned(config, head, one_device() if mesh is None else mesh)
    return load_tree(path, abstract), load_tokenizer(path), head


def import_tuned(
    source: str | Path,
    path: str | Path,
    *,
    overwrite: bool = False,
    notify: Callable[[str], None] = print,
) -> Path:
    """Turn an exported head's directory into the fine-tuned directory `path`, and return it.

    Raises what `import_hf` does, and leaves `path` as it was then.
    """
    source = hub.local(source)
    check_output(path, kind=RUN, overwrite=overwrite)
    if kind_of(source) != HUGGING_FACE:
        raise ValueError(f"{source} is a fine-tuned directory already; there is nothing to import")
    tuned, tokenizer, head = load_tuned(source)
    facts = {"source": source_facts(TensorFiles(source), tuned.gpt.config, notify)}
    with building(path, kind=RUN, overwrite=overwrite) as new:
        save_tuned(new, tuned, tokenizer, head, step=0, facts=facts)
    return Path(path)


def card_facts(path: Path) -> dict[str, dict]:
    """What a fine-tuned directory says of how it was made, as sections of a model card."""
    facts = {**read_config(path).get("facts", {})}
    sections = {"Source": facts.pop("source", {}), "Started from": facts.pop("started_from", {})}
    sections["Best checkpoint"] = facts
    run = path.parent / FINETUNING
    if path.name == "best" and run.exists():
        config = json.loads(run.read_text(encoding="utf-8"))
        sections |= {"Schedule": config["training"], "Optimizer": config["optimizer"]}
        sections |= {"LoRA": config["lora"]} if config["lora"]["rank"] else {}
    return {name: facts for name, facts in sections.items() if facts}


def best_of(path: str | Path) -> Path:
    """The fine-tuned directory that `path` stands for: a run's best, or itself.

    Raises FileNotFoundError for a run that has not been evaluated yet.
    """
    path = Path(path)
    if not (path / FINETUNING).exists():
        return path
    if not (path / "best").is_dir():
        raise FileNotFoundError(f"{path} has no best checkpoint yet; let finetune end an epoch")
    return path / "best"


def best_facts(path: Path) -> dict:
    """What was written beside the best checkpoint of a run, or nothing if there is none.

    A crash may have left the one before it under another name; it is put back.
    """
    before = path / ".best.old"
    if before.exists() and not (path / "best").exists() and jax.process_index() == 0:
        os.replace(before, path / "best")
    file = path / "best" / "config.json"
    return json.loads(file.read_text(encoding="utf-8"))["facts"] if file.exists() else {}
