"""Origin: the texts of a long-form run, and the model that it starts from."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tokenizers import Tokenizer

from biomedlm_jax.corpus.tokenizer import tokenizer_hash
from biomedlm_jax.generation.options import Options
from biomedlm_jax.generation.text import require_tokenizer
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.longform.examples import Example, read_examples, split
from biomedlm_jax.longform.rows import PAD, Limits, Packed, add_tokens, encode
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.model.tokens import grow_vocabulary
from biomedlm_jax.training.origin import content_hash, weights_hash
from biomedlm_jax.training.state import TrainState


@dataclasses.dataclass
class Origin:
    """What a run starts from: a language model, and texts for it."""

    base: GPT
    added: int  # tokens to add
    seed: int
    tokenizer: Tokenizer  # with the added tokens
    train: Packed
    dev: Packed
    facts: dict

    def state(self, tx: optax.GradientTransformation, base: GPT) -> TrainState:
        """The state before the first step."""
        model = grow_vocabulary(base, self.added, key=jax.random.key(self.seed))
        return TrainState(jnp.int32(0), model, tx.init(model))


def train_and_dev(data: ConfigDict) -> tuple[list[Example], list[Example]]:
    """The examples to learn from and those to evaluate on, as a config's `data` says."""
    fields = {"source": data.source_field, "target": data.target_field, "group": data.group_field}
    train = read_examples(data.train, **fields)
    if data.dev:
        return train, read_examples(data.dev, **fields)
    return split(train, dev_fraction=data.dev_fraction)


def starting_point(
    config: ConfigDict,
    path: str | Path,
    mesh: Mesh,
    *,
    examples: tuple[list[Example], list[Example]],
    limits: Limits,
    options: Options,
) -> Origin:
    """The Origin of a run from the model at `path`; `examples` are to learn and to evaluate.

    Raises FileNotFoundError or ValueError for a model that the config cannot start from.
    """
    base, tokenizer = load(path, mesh=mesh)
    require_tokenizer(tokenizer, base.config)
    positions = base.config.context_length
    if limits.row > positions or limits.source + 1 + options.max_new_tokens > positions:
        raise ValueError(
            f"got row_tokens={limits.row}, and source_tokens={limits.source} with "
            f"max_new_tokens={options.max_new_tokens}; the model has {positions} positions"
        )
    added = add_tokens(tokenizer)
    texts = [[encode(tokenizer, example, limits) for example in side] for side in examples]
    facts = {
        "model": str(Path(path).absolute()),
        "tokenizer": tokenizer_hash(tokenizer),
        "weights": weights_hash(base),
        "texts": content_hash(texts),
    }
    pad, size = tokenizer.token_to_id(PAD), config.training.batch_size
    train, dev = (Packed(t, length=limits.row, batch_size=size, pad=pad) for t in texts)
    return Origin(base, added, config.training.seed, tokenizer, train, dev, facts)
