"""Llama, Mistral, Qwen2 and Qwen3: one model with switches, and Hugging Face's names of its parts.

RMSNorm, rotary position embeddings (RoPE), a gated MLP (SwiGLU), and query heads that share keys
and values (Touvron et al., arXiv 2302.13971, 2307.09288; Jiang et al., arXiv 2310.06825).

Axes as in language_model.py. Parameters carry Hugging Face's names; its kernels are [out, in].
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from biomedlm_jax.errors import InputError
from biomedlm_jax.mesh import constrain
from biomedlm_jax.model import layers
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.language_model import GGUF, Family, LanguageModel, Tensor, stack_blocks
from biomedlm_jax.settings import check_object, setting

# Settings of the type llama3 -> their names in Hugging Face's rope_scaling.
ROPE_SETTINGS = {
    "rope_factor": "factor",
    "rope_low_freq_factor": "low_freq_factor",
    "rope_high_freq_factor": "high_freq_factor",
    "rope_original_context_length": "original_max_position_embeddings",
}
ROPE_TYPES = ("default", "llama3")
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(ModelConfig):
    """The defaults are the shape of Llama 2 7B; eos_token_id is the last id, as in all configs."""

    model_type = "llama"
    QUERY_KEY_NORM: ClassVar[bool] = False  # RMSNorm of each head's query and key
    OUTPUT_BIAS: ClassVar[bool] = True  # attention_bias is of the output projection, too

    vocab_size: int = setting(32_000, least=1)
    context_length: int = setting(4_096, least=1)
    layers: int = setting(32, least=1, most=10_000)
    width: int = setting(4_096, least=1)
    heads: int = setting(32, least=1)
    # None: as many as heads, and width / heads.
    key_value_heads: int = setting(None, least=1)
    head_dim: int = setting(None, least=2)
    rms_norm_epsilon: float = setting(1e-5, above=0)
    rope_theta: float = setting(10_000.0, above=0)
    rope_type: str = setting("default", choices=ROPE_TYPES)
    # Of the type llama3: the longest waves are slowed down by the factor.
    rope_factor: float | None = setting(None, above=0)
    rope_low_freq_factor: float | None = setting(None, above=0)
    rope_high_freq_factor: float | None = setting(None, above=0)
    rope_original_context_length: int | None = setting(None, least=1)
    tie_word_embeddings: bool = setting(False)
    attention_bias: bool = setting(False)
    mlp_bias: bool = setting(False)
    # None: all earlier tokens; transformers' Llama has no window
    sliding_window: int | None = setting(None, choices=(None,))

    def __post_init__(self):
        derived = {
            "head_dim": lambda: self.width // self.heads,
            "key_value_heads": lambda: self.heads,
            # Two thirds of 4 * width in multiples of 256, as Llama 2's.
            "mlp_width": lambda: -(-8 * self.width // (3 * 256)) * 256,
        }
        self.check_heads()
        if type(self.width) is type(self.heads) is int and self.heads > 0:
            for name, value in derived.items():
                if getattr(self, name) is None:
                    object.__setattr__(self, name, value())
        super().__post_init__()
        if self.heads % self.key_value_heads:
            divisors = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
            got = f"got model.key_value_heads={self.key_value_heads}, which does not divide"
            raise InputError(f"{got} model.heads={self.heads}; choose one of {divisors}")
        if self.head_dim % 2:
            raise InputError(f"got model.head_dim={self.head_dim}; expected an even number")
        scaled, values = self.rope_type != "default", _rope_settings(self)
        for name, value in values.items():
            if (value is None) == scaled:
                wanted = "a number" if scaled else "None"
                got = f"got model.{name}={value} with model.rope_type={self.rope_type}"
                raise InputError(f"{got}; expected {wanted}")
        if scaled and not values["rope_low_freq_factor"] < values["rope_high_freq_factor"]:
            got = f"{values['rope_low_freq_factor']}, {values['rope_high_freq_factor']}"
            names = "model.rope_low_freq_factor, model.rope_high_freq_factor"
            raise InputError(f"got {names}={got}; expected the first below the second")

    def check_heads(self) -> None:
        """Raise InputError if the heads have no width of their own and do not divide the width."""
        numbers = type(self.width) is type(self.heads) is int and self.heads > 0
        if numbers and self.head_dim is None:
            super().check_heads()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaConfig):
    """The defaults are the shape of Mistral 7B v0.1."""

    model_type = "mistral"

    context_length: int = setting(32_768, least=1)
    key_value_heads: int = setting(8, least=1)
    mlp_width: int = setting(14_336, least=1)
    attention_bias: bool = setting(False, choices=(False,))
    mlp_bias: bool = setting(False, choices=(False,))
    sliding_window: int | None = setting(4_096, least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2Config(LlamaConfig):
    """The defaults are the shape of Qwen2 7B."""

    model_type = "qwen2"
    OUTPUT_BIAS = False

    vocab_size: int = setting(152_064, least=1)
    context_length: int = setting(32_768, least=1)
    layers: int = setting(28, least=1, most=10_000)
    width: int = setting(3_584, least=1)
    heads: int = setting(28, least=1)
    key_value_heads: int = setting(4, least=1)
    mlp_width: int = setting(18_944, least=1)
    rms_norm_epsilon: float = setting(1e-6, above=0)
    rope_theta: float = setting(1e6, above=0)
    attention_bias: bool = setting(True, choices=(True,))
    mlp_bias: bool = setting(False, choices=(False,))
    sliding_window: int | None = setting(None, least=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3Config(LlamaConfig):
    """The defaults are the shape of Qwen3 8B."""

    model_type = "qwen3"
    QUERY_KEY_NORM = True

    vocab_size: int = setting(151_936, least=1)
    context_length: int = setting(40_960, least=1)
    layers: int = setting(36, least=1, most=10_000)
    key_value_heads: int = setting(8, least=1)
    head_dim: int = setting(128, least=2)
    mlp_width: int = setting(12_288, least=1)
    rms_norm_epsilon: float = setting(1e-6, above=0)
    rope_theta: float = setting(1e6, above=0)
    mlp_bias: bool = setting(False, choices=(False,))
    sliding_window: int | None = setting(None, least=1)


def _rope_settings(config: LlamaConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ROPE_SETTINGS}


@functools.lru_cache(maxsize=32)
def rope_frequencies(config: LlamaConfig) -> np.ndarray:
    """Return the angle of each pair of a head's elements at position 1: [K / 2] in float32."""
    # Steps and roundings are those of transformers: at position 10,000 another last bit is another
    # angle. torch's power is nearly always the nearest number, numpy's of float32 often is not.
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    powers = np.float64(config.rope_theta) ** exponents.astype(np.float64)
    plain = np.float32(1) / powers.astype(np.float32)
    if config.rope_type == "default":
        return plain
    # A wave that turns at least `high` times in the original context keeps its frequency, one that
    # turns at most `low` times is slowed down by the factor, and those between are interpolated.
    factor, low, high, original = map(np.float32, _rope_settings(config).values())
    wave_lengths = np.float32(2 * math.pi) * (1 / plain)
    turns = original * (1 / wave_lengths)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - kept) * plain / factor + kept * plain


def _linear(config: LlamaConfig, axis_names, sizes, *, bias: bool, rngs: nnx.Rngs):
    return nnx.Linear(
        *sizes,
        use_bias=bias,
        dtype=config.dtype,
        kernel_init=nnx.initializers.normal(config.initializer_range),
        kernel_metadata=layers.axis_metadata(*axis_names),
        bias_metadata=layers.axis_metadata(None if axis_names[1] == "embed" else axis_names[1]),
        rngs=rngs,
    )


def _norm(config: LlamaConfig, width: int | None = None) -> layers.RMSNorm:
    epsilon = config.rms_norm_epsilon
    return layers.RMSNorm(width or config.width, epsilon=epsilon, dtype=config.dtype)


class Attention(nnx.Module):
    """Causal self-attention with rotary positions; H query heads share G keys and values."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        D, K, bias = config.width, config.head_dim, config.attention_bias
        H, G = config.heads, config.key_value_heads
        into = functools.partial(_linear, config, ("embed", "heads"), bias=bias, rngs=rngs)
        self.q_proj, self.k_proj, self.v_proj = (into((D, heads * K)) for heads in (H, G, G))
        bias = bias and config.OUTPUT_BIAS
        self.o_proj = _linear(config, ("heads", "embed"), (H * K, D), bias=bias, rngs=rngs)
        normed = config.QUERY_KEY_NORM
        self.q_norm, self.k_norm = (_norm(config, K) if normed else None for _ in range(2))
        self.config = config

    def __call__(self, x_BxLxD, positions_xL, attend, *, dropout_key=None) -> jax.Array:
        """Mix the positions of `x`; `positions_xL` are their position ids, [L] or [B, L]."""
        query_BxHxLxK, key_BxGxLxK, value_BxGxLxK = self._products(x_BxLxD)
        if self.q_norm is not None and self.k_norm is not None:
            query_BxHxLxK, key_BxGxLxK = self.q_norm(query_BxHxLxK), self.k_norm(key_BxGxLxK)
        frequencies = rope_frequencies(self.config)
        query_BxHxLxK = layers.rotate(query_BxHxLxK, positions_xL, frequencies)
        key_BxGxLxK = layers.rotate(key_BxGxLxK, positions_xL, frequencies)
        # In the query, because fused kernels take only a static scale; saved scaled.
        scale = 1 / math.sqrt(self.config.head_dim)
        query_BxHxLxK = (query_BxHxLxK * scale).astype(query_BxHxLxK.dtype)
        arrays = {"query": query_BxHxLxK, "key": key_BxGxLxK, "value": value_BxGxLxK}
        saved = (checkpoint_name(array, name) for name, array in arrays.items())
        y_BxHxLxK = attend(*saved, dropout_key=dropout_key)
        arguments = "BHLK,HKD->BLD", self.config.reduce_dtype, y_BxHxLxK, self.o_proj
        return layers.apply_linear(*arguments, shape=(*y_BxHxLxK.shape[1::2], -1))

    def _products(self, x_BxLxD: jax.Array):
        K, reduce_dtype = self.config.head_dim, self.config.reduce_dtype
        return (
            layers.apply_linear(
                "BLD,DHK->BHLK", reduce_dtype, x_BxLxD, linear, shape=(-1, H, K), bias=(H, 1, K)
            )
            for linear, H in (
                (self.q_proj, self.config.heads),
                (self.k_proj, self.config.key_value_heads),
                (self.v_proj, self.config.key_value_heads),
            )
        )


class MLP(nnx.Module):
    """SwiGLU: a linear layer of silu(gate) * up."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        D, F, bias = config.width, config.mlp_width, config.mlp_bias
        into = functools.partial(_linear, config, ("embed", "mlp"), (D, F), bias=bias, rngs=rngs)
        self.gate_proj, self.up_proj = into(), into()
        self.down_proj = _linear(config, ("mlp", "embed"), (F, D), bias=bias, rngs=rngs)
        self.config = config

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        """Transform each position by itself."""
        reduce_dtype = self.config.reduce_dtype
        gate_BxLxF, up_BxLxF = (
            checkpoint_name(layers.apply_linear("BLD,DF->BLF", reduce_dtype, x_BxLxD, into), name)
            for into, name in ((self.gate_proj, "mlp_input"), (self.up_proj, "mlp_input"))
        )
        arguments = "BLF,FD->BLD", reduce_dtype, gate_BxLxF, up_BxLxF, self.down_proj
        return layers.apply_gated(*arguments)


class Block(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: LlamaConfig, *, rngs: nnx.Rngs):
        self.input_layernorm = _norm(config)
        self.self_attn = Attention(config, rngs=rngs)
        self.post_attention_layernorm = _norm(config)
        self.mlp = MLP(config, rngs=rngs)
        self.config = config

    def __call__(self, x_BxLxD: jax.Array, positions_BxL, layer, attend, *, dropout_key=None):
        """Apply one layer; `attend(query, key, value)` decides where keys and values come from."""
        x_BxLxD = constrain(x_BxLxD, "batch", "length", None)
        positions_xL = jnp.arange(x_BxLxD.shape[1]) if positions_BxL is None else positions_BxL
        keys = (None,) * 3 if dropout_key is None else jax.random.split(dropout_key, 3)
        rate = self.config.residual_dropout
        normed_BxLxD = self.input_layernorm(x_BxLxD)
        y_BxLxD = self.self_attn(normed_BxLxD, positions_xL, attend, dropout_key=keys[0])
        x_BxLxD = checkpoint_name(x_BxLxD + layers.dropout(y_BxLxD, rate, keys[1]), "residual")
        y_BxLxD = self.mlp(self.post_attention_layernorm(x_BxLxD))
        return x_BxLxD + layers.dropout(y_BxLxD, rate, keys[2])

    def with_joined_products(self) -> Self:
        """Return the block itself: a CPU multiplies by its wide kernels at full speed."""
        return self


class Llama(LanguageModel):
    """Tokens -> logits: `Llama(config, key=key)(tokens_BxL) -> logits_BxLxV`."""

    BLOCKS, NORM = "layers", "norm"

    def __init__(self, config: LlamaConfig, *, key: jax.Array):
        block_key, *keys = jax.random.split(key, 3)
        padding = config.padded_vocab_size - config.vocab_size

        def rows(key):
            initial = nnx.initializers.normal(config.initializer_range)
            rows_VxD = initial(key, (config.vocab_size, config.width))
            rows_VxD = jnp.pad(rows_VxD, ((0, padding), (0, 0)))
            return nnx.Param(rows_VxD, **layers.axis_metadata("vocab", "embed"))

        self.embed_tokens = rows(keys[0])
        keys_N = jax.random.split(block_key, config.layers)
        self.layers = stack_blocks(lambda key: Block(config, rngs=nnx.Rngs(key)), keys_N)
        self.norm = _norm(config)
        self.lm_head = None if config.tie_word_embeddings else rows(keys[1])
        self.config = config

    @property
    def head_name(self) -> str:
        """The embedding if it is tied, else a matrix of its own."""
        return "embed_tokens" if self.config.tie_word_embeddings else "lm_head"

    def embed(self, tokens_BxL: jax.Array, positions_BxL, *, dropout_key=None) -> jax.Array:
        """Return the tokens' embeddings; positions rotate queries and keys instead."""
        config = self.config
        arguments = config.dtype, config.tie_word_embeddings, self.embed_tokens[...], tokens_BxL
        x_BxLxD = layers.lookup(*arguments)
        x_BxLxD = constrain(x_BxLxD, "batch", "length", None)
        return layers.dropout(x_BxLxD, self.config.embedding_dropout, dropout_key)


def _rope_from_hf(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read rope_theta and rope_scaling (transformers 4) or rope_parameters (5); both must agree."""
    thetas, types = {}, {}
    if config.get("rope_theta") is not None:
        thetas["rope_theta"] = config["rope_theta"]
    for name in ("rope_scaling", "rope_parameters"):
        entry = check_object(config.get(name), f"config.json has {name}")
        if entry:
            types[name] = _rope_entry(name, entry)
            if "rope_theta" in types[name]:
                thetas[f"{name}.rope_theta"] = types[name].pop("rope_theta")
    for readings in (thetas, types):
        for name, value in readings.items():
            first, expected = next(iter(readings.items()))
            if value != expected:
                both = f"{first}={expected!r} and {name}={value!r}"
                raise InputError(f"config.json has {both}, one setting; remove the wrong one")
    theta = next(iter(thetas.values()), 10_000.0)
    return {"rope_theta": theta, **next(iter(types.values()), {})}


def _rope_entry(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    entry = dict(entry)
    types = [entry.pop(key) for key in ("rope_type", "type") if key in entry]
    kind = types[0] if types else "default"
    if kind not in ROPE_TYPES or len({*map(str, types)}) > 1:
        known = ", ".join(ROPE_TYPES)
        raise InputError(f"config.json has {name} of type {kind!r}; the known types are {known}")
    values: dict[str, Any] = {"rope_type": kind}
    if "rope_theta" in entry:
        values["rope_theta"] = entry.pop("rope_theta")
    if entry.get("partial_rotary_factor") == 1.0:
        del entry["partial_rotary_factor"]
    wanted = ROPE_SETTINGS if kind == "llama3" else {}
    unknown = sorted({*entry} - {*wanted.values()})
    missing = [theirs for theirs in wanted.values() if theirs not in entry]
    if unknown or missing:
        what = f"unknown {unknown[0]}" if unknown else f"no {missing[0]}"
        needed = ", ".join(wanted.values()) or "none"
        raise InputError(f"config.json has {name} of type {kind} with {what}; it has {needed}")
    return values | {ours: entry[theirs] for ours, theirs in wanted.items()}


def _rope_to_hf(config: LlamaConfig) -> dict[str, Any]:
    entry: dict[str, Any] = {"rope_type": config.rope_type}
    if config.rope_type != "default":
        entry |= {theirs: getattr(config, ours) for ours, theirs in ROPE_SETTINGS.items()}
    # transformers 4 reads the first two, 5 the third; neither knows the other's.
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_type == "default" else entry,
        "rope_parameters": {"rope_theta": config.rope_theta, **entry},
    }


def _qwen_window(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the window of Qwen's configs, which may have it in some layers only: InputError."""
    count, window = config["num_hidden_layers"], None
    if config.get("use_sliding_window", False):
        window = config.get("sliding_window", 4_096)
    types = config.get("layer_types")
    if types is None and window is not None:
        first = config.get("max_window_layers", 28)
        types = [SLIDING if layer >= first else FULL for layer in range(count)]
    kinds = {*types} if isinstance(types, list) else {FULL}
    if len(kinds) > 1 or not kinds <= {FULL, SLIDING}:
        got = f"layers of {' and '.join(sorted(map(str, kinds)))}"
        raise InputError(f"config.json has {got}; here a window is of all layers or of none")
    return {"sliding_window": window if kinds == {SLIDING} else None}


def _qwen_window_to_hf(config: LlamaConfig) -> dict[str, Any]:
    window = config.sliding_window
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": config.layers if window is None else 0,
        "layer_types": [FULL if window is None else SLIDING] * config.layers,
    }


def _qwen2_entries(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config.get("head_dim")
    return _qwen_window(config) | ({} if width is None else {"head_dim": width})


def _qwen2_entries_to_hf(config: LlamaConfig) -> dict[str, Any]:
    # Published files have head_dim only if it is another than that of the width and the heads.
    usual = config.head_dim == config.width // config.heads
    return _qwen_window_to_hf(config) | ({} if usual else {"head_dim": config.head_dim})


def _gguf_fields(config: LlamaConfig) -> dict[str, int | float]:
    return {
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_epsilon),
        "attention.head_count_kv": config.key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope_theta),
        "vocab_size": config.vocab_size,
    }


def _gguf_constants(config: LlamaConfig) -> dict[str, np.ndarray]:
    """Return what llama.cpp divides the frequencies of the plain type by."""
    if config.rope_type == "default":
        return {}
    settings = {"rope_type": "default", **dict.fromkeys(ROPE_SETTINGS)}
    plain = rope_frequencies(dataclasses.replace(config, **settings))
    return {"rope_freqs.weight": plain / rope_frequencies(config)}


def _gguf_unsupported(config: LlamaConfig) -> str | None:
    if config.model_type == "qwen2" and config.heads * config.head_dim != config.width:
        return f"head_dim={config.head_dim}, which is not width / heads"
    if config.model_type == "qwen3" and config.attention_bias:
        return "attention_bias=True"
    return None


def _gguf_neighbours(config: LlamaConfig) -> dict[str, int]:
    return {".q_proj.": config.heads, ".k_proj.": config.key_value_heads}


FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "key_value_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "rms_norm_epsilon": "rms_norm_eps",
    "initializer_range": "initializer_range",
    "attention_dropout": "attention_dropout",
    "tie_word_embeddings": "tie_word_embeddings",
    "bos_token_id": "bos_token_id",
    "pad_token_id": "pad_token_id",
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEARS = [f"self_attn.{name}" for name in ATTENTION]
LINEARS += [f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
NORMS = ["input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"]
TENSORS = {
    "embed_tokens.weight": Tensor(("embed_tokens",)),
    **{f"layers.*.{n}.weight": Tensor((f"layers.{n}.kernel",), transposed=True) for n in LINEARS},
    **{f"layers.*.{name}.bias": Tensor((f"layers.{name}.bias",)) for name in LINEARS},
    **{f"layers.*.{name}.weight": Tensor((f"layers.{name}.scale",)) for name in NORMS},
    "norm.weight": Tensor(("norm.scale",)),
    "lm_head.weight": Tensor(("lm_head",)),
}


def _family(config: type[LlamaConfig], name: str, **settings: Any) -> Family:
    """Return a model type; `settings` are those in which it differs from the others."""
    settings.setdefault("repeated", ("rope_theta", "rope_scaling", "rope_parameters"))
    more = settings.pop("fields", {})
    read_window, write_window = settings.pop("window", (lambda _: {}, lambda _: {}))
    absent = {"rms_norm_epsilon": 1e-6, **settings.pop("absent", {})}
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    own = config.model_type in ("qwen2", "qwen3")  # the others are llama.cpp's Llama
    gguf = GGUF(
        architecture=config.model_type if own else "llama",
        fields=_gguf_fields,
        constants=_gguf_constants,
        neighbours=(lambda _: {}) if own else _gguf_neighbours,
        unsupported=_gguf_unsupported,
    )
    return Family(
        config=config,
        model=Llama,
        architectures={
            "language_model": f"{name}ForCausalLM",
            "trunk": f"{name}Model",
            "classification": f"{name}ForSequenceClassification",
        },
        prefix="model.",
        ids_of_tokenizer=True,
        unprefixed=("lm_head.weight",),
        fields=FIELDS | more,
        required=(*names, "intermediate_size"),
        absent=absent,
        fixed={"hidden_act": "silu", "partial_rotary_factor": None, "quantization_config": None},
        equivalent={"hidden_act": ("swish",), "partial_rotary_factor": (1.0,)},
        reasons={
            "quantization_config": "quantized weights; save the model in float32 or float16",
        },
        # Execution; another value computes the same.
        stated={"use_cache": True},
        read_more=lambda entries: _rope_from_hf(entries) | read_window(entries),
        write_more=lambda config: _rope_to_hf(config) | write_window(config),
        tensors=TENSORS,
        gguf=gguf,
        tied={"lm_head.weight": "embed_tokens.weight"},
        buffers=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq|rotary_emb\.inv_freq",
        other_heads=r"(v_head|qa_outputs)\..+",
        **settings,
    )


ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
QWEN: dict[str, Any] = {
    "repeated": (*ROPE, *_qwen_window_to_hf(Qwen2Config())),
    "window": (_qwen_window, _qwen_window_to_hf),
}
FAMILIES = (
    _family(
        LlamaConfig,
        "Llama",
        fields={"head_dim": "head_dim", "attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
        aliases={"max_sequence_length": "max_position_embeddings"},  # of the first conversions
        absent={"context_length": 2_048, "key_value_heads": None},
        absent_ids={"bos_token_id": 1, "eos_token_id": 2},
        published={"Llama 2 7B": (LlamaConfig(), "llama2")},
    ),
    _family(
        MistralConfig,
        "Mistral",
        fields={"head_dim": "head_dim", "sliding_window": "sliding_window"},
        absent={"context_length": 131_072, "sliding_window": 4_096},
        absent_ids={"bos_token_id": 1, "eos_token_id": 2},
        published={"Mistral 7B v0.1": (MistralConfig(), "apache-2.0")},
    ),
    _family(
        Qwen2Config,
        "Qwen2",
        absent={"context_length": 32_768, "key_value_heads": 32},
        repeated=(*QWEN["repeated"], "head_dim"),
        window=(_qwen2_entries, _qwen2_entries_to_hf),
    ),
    _family(
        Qwen3Config,
        "Qwen3",
        fields={"head_dim": "head_dim", "attention_bias": "attention_bias"},
        absent={"context_length": 32_768, "key_value_heads": 32},
        **QWEN,
    ),
)
