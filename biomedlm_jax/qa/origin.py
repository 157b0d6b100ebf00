"""Origin: the questions of a fine-tuning run, and the model that it starts from."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from biomedlm_jax import mesh as meshes
from biomedlm_jax.corpus.tokenizer import tokenizer_hash
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.qa import rows as formats
from biomedlm_jax.qa.setup import Head, read_head
from biomedlm_jax.qa.tasks import Example, Skipped, Task, read_examples
from biomedlm_jax.qa.tuned import Adapter, best_of, load_tuned, with_head
from biomedlm_jax.training.origin import weights_hash
from biomedlm_jax.training.state import TrainState, laid_out


def labelled_examples(
    config: ConfigDict, task: Task, split: str, skipped: Skipped
) -> list[Example]:
    """The questions of `config.task[split]`; raises ValueError if one has no answer."""
    examples = read_examples(
        task,
        config.task.path or None,
        split=config.task[split],
        fold=config.task.fold,
        on_error=config.task.on_error,
        skipped=skipped,
    )
    unlabelled = sum(example.label is None for example in examples)
    if unlabelled:
        raise ValueError(
            f"{unlabelled} of {len(examples)} questions of {task.name}, {config.task[split]}, have "
            "no answer; fine-tuning and its dev split need all"
        )
    return examples


@dataclasses.dataclass
class Origin:
    """What a run starts from: a language model, or a fine-tuned one with its head."""

    base: object
    head: Head
    added: int  # tokens to add
    seed: int
    lora: ConfigDict
    facts: dict

    def tuned(self, base):
        """The whole model with its head, from the base."""
        if hasattr(base, "score"):
            return base
        return with_head(base, self.head, added=self.added, key=jax.random.key(self.seed))

    def state(self, tx: optax.GradientTransformation, base) -> TrainState:
        """The state before the first step."""
        trained = self.tuned(base)
        if self.lora.rank:
            key = jax.random.fold_in(jax.random.key(self.seed), 1)
            rank, alpha = self.lora.rank, self.lora.alpha
            tokens = len(formats.ADDED_TOKENS[self.head.kind])
            trained = Adapter(
                trained.gpt, trained.score, added=tokens, rank=rank, alpha=alpha, key=key
            )
        return TrainState(jnp.int32(0), trained, tx.init(trained))

    def frozen(self, mesh: Mesh):
        """The language model that LoRA leaves as it is, with the added tokens' rows."""
        abstract = laid_out(self._gpt, mesh, self.base)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
        return jax.jit(self._gpt, out_shardings=shardings)(self.base)

    def _gpt(self, base):
        return self.tuned(base).gpt


def starting_point(config: ConfigDict, task: Task, model: str | Path, mesh: Mesh):
    """The Origin of a run, its tokenizer with the head's tokens, and its head.

    Raises FileNotFoundError or ValueError for a model that the task cannot start from.
    """
    asked = {
        "kind": task.kind,
        "task": task.name,
        "row_format": config.task.row_format,
        "max_length": config.task.max_length,
        "classes": task.classes if task.kind == "classification" else (),
    }
    facts = {"model": str(Path(model).absolute())}
    meshes.check_fits(
        mesh, batch_size=meshes.batch_shards(mesh), model=model_config(best_of(model))
    )
    if read_head(best_of(model)) is not None:
        base, tokenizer, old = load_tuned(model, mesh=mesh, **config.model)
        if (old.kind, old.classes) != (asked["kind"], asked["classes"]):
            raise ValueError(
                f"{model} has a {old.kind} head {list(old.classes) or ''}, and {task.name} needs "
                f"{asked['kind']} {list(asked['classes']) or ''}; start from the pre-trained model"
            )
        positions, added = base.gpt.config.context_length, 0
        facts["task"] = old.task
    else:
        base, tokenizer = load(model, mesh=mesh, **config.model)
        if tokenizer is None:
            raise ValueError(f"{model} has no tokenizer; export it with one")
        entries = 1 + max(tokenizer.get_vocab().values())
        if entries != base.config.vocab_size:
            raise ValueError(
                f"{model} has {base.config.vocab_size} embedding rows and its tokenizer {entries} "
                "entries; tokens can be added only where both end at the same id"
            )
        tokenizer = formats.add_tokens(tokenizer, task.kind)
        positions, added = base.config.context_length, len(formats.ADDED_TOKENS[task.kind])
    if asked["max_length"] > positions:
        raise ValueError(
            f"config.task.max_length={asked['max_length']}, and the model has "
            f"{positions} positions; choose at most that"
        )
    facts["tokenizer"] = tokenizer_hash(tokenizer)
    facts["weights"] = weights_hash(getattr(base, "gpt", base))
    start = Origin(base, Head(**asked), added, config.training.seed, config.lora, facts)
    return start, tokenizer, start.head
