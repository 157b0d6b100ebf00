"""GPTConfig: what the model computes, and how it is executed.

Reads and writes Hugging Face's GPT-2 `config.json`.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model import attention
from biomedlm_jax.model.product import REDUCE_DTYPES

# Our name -> the name in Hugging Face's GPT2Config. Everything here changes what is computed.
HF_NAMES = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "layers": "n_layer",
    "width": "n_embd",
    "heads": "n_head",
    "mlp_width": "n_inner",
    "scale_attn_by_inverse_layer_idx": "scale_attn_by_inverse_layer_idx",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "initializer_range": "initializer_range",
    "embedding_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "residual_dropout": "resid_pdrop",
    "eos_token_id": "eos_token_id",
}
# Settings of GPT2Config that this model has only one value of, and what transformers assumes.
HF_FIXED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SAVEABLE = ("query", "key", "value", "attention", "residual", "norm", "mlp_input")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """A GPT-2 as BioMedLM computes it. The defaults are BioMedLM 2.7B's published config."""

    vocab_size: int = 28_896  # entries of the tokenizer, the end-of-text token included
    context_length: int = 1_024  # learned absolute positions
    layers: int = 32
    width: int = 2_560  # of the residual stream
    heads: int = 20
    mlp_width: int | None = None  # None: 4 * width
    scale_attn_by_inverse_layer_idx: bool = True  # attention logits of layer i divided by i + 1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02  # standard deviation; / sqrt(2 * layers) for both c_proj
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1  # > 0 needs the XLA attention: fused kernels have none
    residual_dropout: float = 0.1
    eos_token_id: int | None = None  # None: the last id; also begins and separates texts

    # How it is executed: another value computes the same function.
    compute_dtype: str = "auto"  # float32, bfloat16, or auto: bfloat16 on TPU and GPU
    reduce_dtype: str = "float32"  # of the kernels' gradients as devices sum them; or compute
    attention: str = "auto"  # the kernel; see model/attention.py
    remat: str = "none"  # none, full, or the names to save: "query,key,value,attention"
    unroll: int = 1  # layers per iteration of the scan over layers
    vocab_multiple: int = 128  # the embedding is padded to a multiple of this inside

    def __post_init__(self):
        if self.mlp_width is None:
            object.__setattr__(self, "mlp_width", 4 * self.width)
        if self.eos_token_id is None:
            object.__setattr__(self, "eos_token_id", self.vocab_size - 1)
        for field in dataclasses.fields(self):
            _check_type(field, getattr(self, field.name))
        sizes = ("vocab_size", "context_length", "layers", "width", "heads", "mlp_width")
        for name in (*sizes, "unroll", "vocab_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}; it must be at least 1")
        if self.width % self.heads:
            divisors = [n for n in range(1, self.width + 1) if self.width % n == 0]
            raise ValueError(
                f"model.heads={self.heads} does not divide model.width={self.width}; "
                f"choose one of {divisors}"
            )
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)}; it must be in [0, 1)")
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(
                f"model.eos_token_id={self.eos_token_id} is not in the vocabulary: it must be at "
                f"least 0 and below model.vocab_size={self.vocab_size}; the tokenizers made here "
                f"end with it, at {self.vocab_size - 1}"
            )
        if self.layer_norm_epsilon <= 0 or self.initializer_range < 0:
            raise ValueError(
                f"model.layer_norm_epsilon={self.layer_norm_epsilon} must be above 0, and "
                f"model.initializer_range={self.initializer_range} at least 0"
            )
        if self.attention not in attention.NAMES:
            raise ValueError(
                f"model.attention={self.attention!r}; choose one of {', '.join(attention.NAMES)}"
            )
        why = attention.never(self.attention, head_dim=self.head_dim, dtype=self.compute_dtype)
        if why is not None:
            raise ValueError(f"model.attention={self.attention}: {why}; choose auto or xla")
        if self.compute_dtype not in ("auto", *COMPUTE_DTYPES):
            raise ValueError(
                f"model.compute_dtype={self.compute_dtype!r}; choose auto, float32 or bfloat16"
            )
        if self.reduce_dtype not in REDUCE_DTYPES:
            raise ValueError(
                f"model.reduce_dtype={self.reduce_dtype!r}; choose one of "
                f"{', '.join(REDUCE_DTYPES)}"
            )
        if self.remat not in ("none", "full"):
            unknown = set(self.remat.split(",")) - set(SAVEABLE)
            if unknown:
                raise ValueError(
                    f"model.remat={self.remat!r} names {sorted(unknown)}; choose none, full, or a "
                    f"comma-separated choice of {', '.join(SAVEABLE)}"
                )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding inside the model: `vocab_size` rounded up."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of activations and matrix products; parameters are always float32."""
        if self.compute_dtype == "auto":
            return jnp.float32 if meshes.platform() == "cpu" else jnp.bfloat16
        return COMPUTE_DTYPES[self.compute_dtype]

    @property
    def parameter_count(self) -> int:
        """Number of parameters, padding left out (the head is tied to the embedding)."""
        attention = 4 * self.width * self.width + 4 * self.width
        mlp = 2 * self.width * self.mlp_width + self.width + self.mlp_width
        block = attention + mlp + 4 * self.width
        embeddings = (self.vocab_size + self.context_length) * self.width
        return embeddings + self.layers * block + 2 * self.width

    def architecture(self) -> dict:
        """The fields that decide what is computed from given parameters, dropout left out."""
        names = [name for name in HF_NAMES if not name.endswith("_dropout")]
        return {name: getattr(self, name) for name in names if name != "initializer_range"}

    @classmethod
    def from_hf(cls, config: Mapping, **execution) -> "GPTConfig":
        """Read a Hugging Face `config.json`; `execution` sets fields such as `compute_dtype`.

        Raises ValueError for a model that is not a GPT-2 of this shape.
        """
        for name, only in HF_FIXED.items():
            got = config.get(name, None if name == "model_type" else only)
            if got != only:
                raise ValueError(
                    f"config.json has {name}={got!r}; this library computes {name}={only!r} only"
                )
        missing = [
            name
            for name in ("vocab_size", "n_positions", "n_layer", "n_embd", "n_head")
            if name not in config
        ]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}, which a GPT-2 needs")
        values = {ours: config[theirs] for ours, theirs in HF_NAMES.items() if theirs in config}
        # transformers leaves the inverse-layer scale off, and the end of text at GPT-2's id.
        values.setdefault("scale_attn_by_inverse_layer_idx", False)
        values.setdefault("eos_token_id", None)
        return cls(**{**values, **execution})

    def to_hf(self) -> dict:
        """The Hugging Face `config.json` that makes transformers compute the same function."""
        return {
            "architectures": ["GPT2LMHeadModel"],
            **HF_FIXED,
            **{theirs: getattr(self, ours) for ours, theirs in HF_NAMES.items()},
            "n_ctx": self.context_length,
            "n_inner": None if self.mlp_width == 4 * self.width else self.mlp_width,
            "bos_token_id": self.eos_token_id,
            "reorder_and_upcast_attn": False,
            "torch_dtype": "float32",
            "use_cache": True,
        }


def _check_type(field: dataclasses.Field, value) -> None:
    kinds = {int: int, float: (int, float), bool: bool, str: str}
    allowed = kinds.get(field.type, int)  # the rest is `int | None`, already filled in
    if not isinstance(value, allowed) or (isinstance(value, bool) and field.type is not bool):
        wanted = getattr(field.type, "__name__", field.type)
        raise ValueError(
            f"model.{field.name}={value!r} is a {type(value).__name__}; it must be {wanted}"
        )
