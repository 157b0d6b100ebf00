"""ModelConfig: the settings that every model family has, and how a model is executed."""

import dataclasses
import json
from typing import Any, ClassVar

import jax.numpy as jnp

from biomedlm_jax import mesh as meshes
from biomedlm_jax.errors import InputError
from biomedlm_jax.model import attention
from biomedlm_jax.model.layers import REDUCE_DTYPES
from biomedlm_jax.settings import Settings, setting

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SAVEABLE = ("query", "key", "value", "attention", "residual", "norm", "mlp_input")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """What is computed (each family adds its own settings) and how it is executed."""

    group = "model"
    model_type: ClassVar[str]  # the family's name in Hugging Face's config.json

    vocab_size: int = setting(least=1)  # entries of the tokenizer, the end-of-text token included
    context_length: int = setting(least=1)  # positions
    layers: int = setting(least=1, most=10_000)
    width: int = setting(least=1)  # of the residual stream
    heads: int = setting(least=1)
    mlp_width: int = setting(None, least=1)  # None: the family's own multiple of width
    initializer_range: float = setting(0.02, least=0)  # standard deviation
    eos_token_id: int = setting(None, least=0)  # None: the last id; separates texts
    bos_token_id: int = setting(None, least=0)  # None: eos_token_id; begins texts
    more_eos_token_ids: tuple[int, ...] = setting(())  # that end an answer, too
    pad_token_id: int | None = setting(None)  # kept for exports
    hf_entries: str = setting("{}")  # JSON of entries of config.json that are kept for exports
    embedding_dropout: float = setting(0.0, least=0, below=1)
    attention_dropout: float = setting(0.0, least=0, below=1)  # > 0 needs attention=xla
    residual_dropout: float = setting(0.0, least=0, below=1)

    # Execution: another value computes the same function.
    compute_dtype: str = setting("auto", choices=("auto", *COMPUTE_DTYPES), free=True)
    # Of kernel gradients as devices sum them: float32, or the compute dtype.
    reduce_dtype: str = setting("float32", choices=REDUCE_DTYPES, free=True)
    attention: str = setting("auto", choices=attention.NAMES, free=True)
    # none, full, or what to save for the backward pass: "query,key,value,attention"
    remat: str = setting("none", free=True)
    unroll: int = setting(1, least=1, free=True)  # layers per iteration of the scan over layers
    vocab_multiple: int = setting(128, least=1)  # embedding rows are padded to a multiple of it

    def __post_init__(self):
        if self.eos_token_id is None and type(self.vocab_size) is int:
            object.__setattr__(self, "eos_token_id", self.vocab_size - 1)
        if self.bos_token_id is None:
            object.__setattr__(self, "bos_token_id", self.eos_token_id)
        if isinstance(self.more_eos_token_ids, list):  # from JSON
            object.__setattr__(self, "more_eos_token_ids", tuple(self.more_eos_token_ids))
        super().__post_init__()
        self.check_heads()
        try:
            entries = json.loads(self.hf_entries)
        except (ValueError, RecursionError) as error:
            raise InputError(f"got model.hf_entries that is no JSON: {error}") from None
        if not isinstance(entries, dict):
            raise InputError(f"got model.hf_entries={self.hf_entries!r}; expected a JSON object")
        for name in ("eos_token_id", "bos_token_id"):
            if getattr(self, name) >= self.vocab_size:
                raise InputError(
                    f"got model.{name}={getattr(self, name)}, which is not below "
                    f"model.vocab_size={self.vocab_size}; tokenizers made here end with it, at "
                    f"{self.vocab_size - 1}"
                )
        kernel = self.attention
        reason = attention.unsupported_reason(
            kernel, head_dim=self.head_dim, dtype=self.compute_dtype
        )
        if reason is not None:
            raise InputError(f"got model.attention={kernel}: {reason}; choose auto or xla")
        unknown = sorted(set(self.remat.split(",")) - {*SAVEABLE})
        if unknown and self.remat not in ("none", "full"):
            raise InputError(
                f"got model.remat={self.remat!r} with unknown names {unknown}; choose none, "
                f"full, or a comma-separated list of {', '.join(SAVEABLE)}"
            )

    def check_heads(self) -> None:
        """Raise InputError unless the heads divide the width."""
        if self.width % self.heads:
            divisors = [n for n in range(1, min(self.width, 4096) + 1) if self.width % n == 0]
            raise InputError(
                f"got model.heads={self.heads}, which does not divide model.width={self.width}; "
                f"choose one of {divisors}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def key_value_heads(self) -> int:
        """Heads of keys and values; fewer than `heads` where query heads share them."""
        return self.heads

    @property
    def sliding_window(self) -> int | None:
        """Positions that a token attends to, itself included; None: all before it."""
        return None

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the output head is the embedding."""
        return True

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end an answer, eos_token_id first."""
        return (self.eos_token_id, *self.more_eos_token_ids)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding inside the model: `vocab_size` rounded up."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def dtype(self) -> Any:
        """The dtype of activations and matrix products; parameters are float32."""
        if self.compute_dtype == "auto":
            return jnp.float32 if meshes.platform() == "cpu" else jnp.bfloat16
        return COMPUTE_DTYPES[self.compute_dtype]

    def architecture(self) -> dict[str, Any]:
        """The settings that decide what is computed from given parameters, dropout excluded."""
        left_out = {*self.free_names(), "initializer_range", "vocab_multiple", "bos_token_id"}
        left_out |= {"more_eos_token_ids", "pad_token_id", "hf_entries"}
        fields = dataclasses.asdict(self)
        kept = {k: v for k, v in fields.items() if k not in left_out and "dropout" not in k}
        return {"model_type": self.model_type, **kept}

    def to_json(self) -> dict[str, Any]:
        """All settings and the family, as a run's config.json holds them."""
        return {"model_type": self.model_type, **dataclasses.asdict(self)}
