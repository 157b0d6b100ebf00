"""Heads: a GPT and one linear layer that scores the state of a text's last token.

Axes as in gpt.py; C classes. The layer is called `score`, as in transformers.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT

CHOICE, CLASSIFICATION = "choice", "classification"


def score_layer(config: GPTConfig, kind: str, classes: int, *, key: jax.Array) -> nnx.Linear:
    """Linear(D, 1) with a bias for choices, Linear(D, C) without one for classes; float32."""
    choice = kind == CHOICE
    return nnx.Linear(
        config.width,
        1 if choice else classes,
        use_bias=choice,
        kernel_init=nnx.initializers.normal(config.initializer_range),
        kernel_metadata={"out_sharding": ("embed", None), "eager_sharding": False},
        bias_metadata={"out_sharding": (None,), "eager_sharding": False},
        rngs=nnx.Rngs(key),
    )


class MultipleChoice(nnx.Module):
    """One score for each option of a question (BioMedLM's MedQA, MedMCQA and MMLU)."""

    kind = CHOICE

    def __init__(self, gpt: GPT, score: nnx.Linear):
        self.gpt, self.score = gpt, score

    def __call__(self, x_xD: jax.Array) -> jax.Array:
        """Scores [...] in float32 of the states [..., D] of the options' last tokens."""
        return self.score(x_xD.astype(jnp.float32))[..., 0]


class SequenceClassifier(nnx.Module):
    """A score for each class of a text (PubMedQA, BioASQ)."""

    kind = CLASSIFICATION

    def __init__(self, gpt: GPT, score: nnx.Linear):
        self.gpt, self.score = gpt, score

    def __call__(self, x_xD: jax.Array) -> jax.Array:
        """Scores [..., C] in float32 of the states [..., D] of the texts' last tokens."""
        return self.score(x_xD.astype(jnp.float32))


HEADS = {CHOICE: MultipleChoice, CLASSIFICATION: SequenceClassifier}
