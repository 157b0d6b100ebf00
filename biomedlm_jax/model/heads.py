"""Heads: a language model and one linear layer that scores the state of a text's last token.

Axes as in language_model.py; C classes. The layer is called `score`, as in transformers.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.model.layers import axis_metadata

CHOICE, CLASSIFICATION = "choice", "classification"


def score_layer(config: ModelConfig, kind: str, classes: int, *, key: jax.Array) -> nnx.Linear:
    """Build Linear(D, 1) with a bias for choices, Linear(D, C) without for classes; float32."""
    choice = kind == CHOICE
    return nnx.Linear(
        config.width,
        1 if choice else classes,
        use_bias=choice,
        kernel_init=nnx.initializers.normal(config.initializer_range),
        kernel_metadata=axis_metadata("embed", None),
        bias_metadata=axis_metadata(None),
        rngs=nnx.Rngs(key),
    )


class Scorer(nnx.Module):
    """A language model `trunk` with a score layer."""

    kind: str

    def __init__(self, trunk: LanguageModel, score: nnx.Linear):
        self.trunk, self.score = trunk, score

    @property
    def config(self) -> ModelConfig:
        """The language model's config."""
        return self.trunk.config

    def __call__(self, x_xD: jax.Array) -> jax.Array:
        """Return float32 scores [..., C] of the states [..., D] of the texts' last tokens."""
        return self.score(x_xD.astype(jnp.float32))


class SequenceClassifier(Scorer):
    """A score for each class of a text (PubMedQA, BioASQ)."""

    kind = CLASSIFICATION


class MultipleChoice(Scorer):
    """One score for each option of a question (BioMedLM's MedQA, MedMCQA and MMLU)."""

    kind = CHOICE

    def __call__(self, x_xD: jax.Array) -> jax.Array:
        """Return float32 scores [...] of the states [..., D] of the options' last tokens."""
        return super().__call__(x_xD)[..., 0]


HEADS = {CHOICE: MultipleChoice, CLASSIFICATION: SequenceClassifier}
