"""GPT-2, as BioMedLM computes it: Attention, MLP, Block and the model, and Hugging Face's names.

Axes as in language_model.py. Parameters carry GPT-2's names. One differs in shape: `attn.c_attn`
is kept as three kernels, so that queries, keys and values leave their products as [B, H, L, K] and
no transpose surrounds the attention kernel.
"""

import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from biomedlm_jax.mesh import constrain
from biomedlm_jax.model import layers
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.language_model import GGUF, Family, LanguageModel, Tensor, stack_blocks
from biomedlm_jax.settings import setting

PARTS = ("query", "key", "value")
SCALED = (
    "**Attention scale.** Layer l (from 0) divides its attention logits by l + 1 "
    "(scale_attn_by_inverse_layer_idx). transformers 4.42 to 4.57 silently ignore that setting on "
    "their default SDPA path and compute another function (huggingface/transformers issue 44380, "
    'fixed by 44397). Load with attn_implementation="eager", which is right in all versions. vLLM '
    "and SGLang refuse the setting: for them, export with --fold_attention_scale."
)
FOLDED = (
    "The model was trained with scale_attn_by_inverse_layer_idx: layer l (from 0) divides its "
    "attention logits by l + 1. In this export the factor is folded into the query part of each "
    "c_attn and the setting is off, so that every engine, vLLM and SGLang included, computes the "
    "trained function."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config(ModelConfig):
    """The defaults are BioMedLM 2.7B's published config."""

    model_type = "gpt2"

    vocab_size: int = setting(28_896, least=1)
    context_length: int = setting(1_024, least=1)
    layers: int = setting(32, least=1, most=10_000)
    width: int = setting(2_560, least=1)
    heads: int = setting(20, least=1)
    scale_attn_by_inverse_layer_idx: bool = setting(True)  # divide layer i's logits by i + 1
    layer_norm_epsilon: float = setting(1e-5, above=0)
    embedding_dropout: float = setting(0.1, least=0, below=1)
    attention_dropout: float = setting(0.1, least=0, below=1)
    residual_dropout: float = setting(0.1, least=0, below=1)

    def __post_init__(self):
        if self.mlp_width is None and type(self.width) is int:
            object.__setattr__(self, "mlp_width", 4 * self.width)
        super().__post_init__()


def fold_attention_scale(config: GPT2Config) -> tuple[GPT2Config, str | None]:
    """Return the config without the inverse-layer scale, and what absorbs it.

    Leaves whose name contains it are divided by their layer index + 1 (None: nothing to fold).
    """
    folded = dataclasses.replace(config, scale_attn_by_inverse_layer_idx=False)
    return folded, ".c_attn.query." if config.scale_attn_by_inverse_layer_idx else None


def export_warning(config: GPT2Config, *, folded: bool) -> str | None:
    """Return what a user of an export must know about its attention, as Markdown, or None."""
    return FOLDED if folded else SCALED if config.scale_attn_by_inverse_layer_idx else None


def _linear(config: GPT2Config, axis_names, sizes, *, rngs, residual: bool = False):
    deviation = config.initializer_range / (math.sqrt(2 * config.layers) if residual else 1)
    return nnx.Linear(
        *sizes,
        dtype=config.dtype,
        kernel_init=nnx.initializers.normal(deviation),
        kernel_metadata=layers.axis_metadata(*axis_names),
        # A replicated vector of the width need not be gathered in every layer.
        bias_metadata=layers.axis_metadata(None if axis_names[1] == "embed" else axis_names[1]),
        rngs=rngs,
    )


def _layer_norm(config: GPT2Config) -> layers.LayerNorm:
    return layers.LayerNorm(config.width, epsilon=config.layer_norm_epsilon, dtype=config.dtype)


class QueryKeyValue(nnx.Module):
    """GPT-2's `c_attn` as three linear layers of [D, H * K]."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        shape = ("embed", "heads"), (config.width, config.width)
        self.query, self.key, self.value = (_linear(config, *shape, rngs=rngs) for _ in PARTS)
        self.config = config

    def __call__(self, x_BxLxD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return queries, keys and values, each [B, H, L, K]."""
        H, K = self.config.heads, self.config.head_dim
        arguments = "BLD,DHK->BHLK", self.config.reduce_dtype, x_BxLxD
        query, key, value = (
            layers.apply_linear(*arguments, layer, shape=(-1, H, K), bias=(H, 1, K))
            for layer in (self.query, self.key, self.value)
        )
        return query, key, value


class JoinedQueryKeyValue(nnx.Module):
    """The same as one product: fewer calls, for decoding on a CPU (a TPU would transpose)."""

    def __init__(self, parts: QueryKeyValue):
        linear: tuple[Any, ...] = parts.query, parts.key, parts.value
        kernel_Dx3xE = jnp.stack([part.kernel[...] for part in linear], 1)
        bias_3xE = jnp.stack([part.bias[...] for part in linear])
        self.kernel = nnx.Param(kernel_Dx3xE, **layers.axis_metadata("embed", None, "heads"))
        self.bias = nnx.Param(bias_3xE, **layers.axis_metadata(None, "heads"))
        self.config = parts.config

    def __call__(self, x_BxLxD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return queries, keys and values, each [B, H, L, K]."""
        H, K = self.config.heads, self.config.head_dim
        arguments = "BLD,DPHK->PBHLK", self.config.reduce_dtype, x_BxLxD, self
        shapes = {"shape": (-1, 3, H, K), "bias": (3, 1, H, 1, K)}
        query, key, value = layers.apply_linear(*arguments, **shapes)
        return query, key, value


class Attention(nnx.Module):
    """Causal self-attention; layer i's logits are divided by i + 1 as well, if so configured."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        self.c_attn = QueryKeyValue(config, rngs=rngs)
        sizes = (config.width, config.width)
        self.c_proj = _linear(config, ("heads", "embed"), sizes, rngs=rngs, residual=True)
        self.config = config

    def __call__(self, x_BxLxD: jax.Array, layer, attend, *, dropout_key=None) -> jax.Array:
        """Mix the positions of `x`; `layer` is the 0-based index, traced under the scan."""
        query_BxHxLxK, key_BxHxLxK, value_BxHxLxK = self.c_attn(x_BxLxD)
        scale = 1 / math.sqrt(self.config.head_dim)
        if self.config.scale_attn_by_inverse_layer_idx:
            scale = scale / (layer + 1)
        # In the query, because fused kernels take only a static scale; saved scaled.
        query_BxHxLxK = (query_BxHxLxK * scale).astype(query_BxHxLxK.dtype)
        arrays = zip((query_BxHxLxK, key_BxHxLxK, value_BxHxLxK), PARTS, strict=True)
        saved = (checkpoint_name(array, name) for array, name in arrays)
        y_BxHxLxK = attend(*saved, dropout_key=dropout_key)
        arguments = "BHLK,HKD->BLD", self.config.reduce_dtype, y_BxHxLxK, self.c_proj
        return layers.apply_linear(*arguments, shape=(*y_BxHxLxK.shape[1::2], -1))


class MLP(nnx.Module):
    """Two linear layers with GPT-2's tanh-approximated GELU between them."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        D, F = config.width, config.mlp_width
        self.c_fc = _linear(config, ("embed", "mlp"), (D, F), rngs=rngs)
        self.c_proj = _linear(config, ("mlp", "embed"), (F, D), rngs=rngs, residual=True)
        self.config = config

    def __call__(self, x_BxLxD: jax.Array) -> jax.Array:
        """Transform each position by itself."""
        h_BxLxF = layers.apply_linear("BLD,DF->BLF", self.config.reduce_dtype, x_BxLxD, self.c_fc)
        h_BxLxF = jax.nn.gelu(checkpoint_name(h_BxLxF, "mlp_input"), approximate=True)
        return layers.apply_linear("BLF,FD->BLD", self.config.reduce_dtype, h_BxLxF, self.c_proj)


class Block(nnx.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs):
        self.ln_1 = _layer_norm(config)
        self.attn = Attention(config, rngs=rngs)
        self.ln_2 = _layer_norm(config)
        self.mlp = MLP(config, rngs=rngs)
        self.config = config

    def __call__(self, x_BxLxD: jax.Array, positions_BxL, layer, attend, *, dropout_key=None):
        """Apply one layer; `attend(query, key, value)` decides where keys and values come from."""
        x_BxLxD = constrain(x_BxLxD, "batch", "length", None)
        keys = (None,) * 3 if dropout_key is None else jax.random.split(dropout_key, 3)
        rate = self.config.residual_dropout
        y_BxLxD = self.attn(self.ln_1(x_BxLxD), layer, attend, dropout_key=keys[0])
        x_BxLxD = checkpoint_name(x_BxLxD + layers.dropout(y_BxLxD, rate, keys[1]), "residual")
        return x_BxLxD + layers.dropout(self.mlp(self.ln_2(x_BxLxD)), rate, keys[2])

    def with_joined_products(self) -> Self:
        """Return the block with one product for queries, keys and values; it shares the rest."""
        block = jax.tree.map(lambda leaf: leaf, self)
        block.attn.c_attn = JoinedQueryKeyValue(self.attn.c_attn)
        return block


class GPT2(LanguageModel):
    """GPT-2 with a tied head: `GPT2(config, key=key)(tokens_BxL) -> logits_BxLxV`."""

    BLOCKS, NORM = "h", "ln_f"

    def __init__(self, config: GPT2Config, *, key: jax.Array):
        block_key, *keys = jax.random.split(key, 4)
        embed = nnx.initializers.normal(config.initializer_range)
        wte_VxD = embed(keys[0], (config.vocab_size, config.width))
        padding = config.padded_vocab_size - config.vocab_size
        wte_VxD = jnp.pad(wte_VxD, ((0, padding), (0, 0)))
        self.wte = nnx.Param(wte_VxD, **layers.axis_metadata("vocab", "embed"))
        wpe_SxD = embed(keys[1], (config.context_length, config.width))
        self.wpe = nnx.Param(wpe_SxD, **layers.axis_metadata("length", "embed"))
        keys = jax.random.split(block_key, config.layers)
        self.h = stack_blocks(lambda key: Block(config, rngs=nnx.Rngs(key)), keys)
        self.ln_f = _layer_norm(config)
        self.config = config

    @property
    def head_name(self) -> str:
        """The embedding."""
        return "wte"

    def embed(self, tokens_BxL: jax.Array, positions_BxL, *, dropout_key=None) -> jax.Array:
        """Return the tokens' embeddings plus those of their positions."""
        x_BxLxD = layers.lookup(self.config.dtype, True, self.wte[...], tokens_BxL)
        x_BxLxD = constrain(x_BxLxD, "batch", "length", None)
        positions = slice(tokens_BxL.shape[1]) if positions_BxL is None else positions_BxL
        wpe_xLxD = constrain(self.wpe[...], "length", None)[positions]
        wpe_BxLxD = jnp.broadcast_to(wpe_xLxD, x_BxLxD.shape)
        x_BxLxD += layers.cast_with_float32_gradient(self.config.dtype, wpe_BxLxD)
        return layers.dropout(x_BxLxD, self.config.embedding_dropout, dropout_key)


def _more_fields(config: GPT2Config) -> dict[str, Any]:
    narrow = config.mlp_width != 4 * config.width
    return {"n_ctx": config.context_length, "n_inner": config.mlp_width if narrow else None}


FAMILY = Family(
    config=GPT2Config,
    model=GPT2,
    architectures={
        "language_model": "GPT2LMHeadModel",
        "trunk": "GPT2Model",
        "classification": "GPT2ForSequenceClassification",
    },
    prefix="transformer.",
    fields={
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
        "bos_token_id": "bos_token_id",
        "pad_token_id": "pad_token_id",
    },
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    repeated=("n_ctx",),
    write_more=_more_fields,
    required=("vocab_size", "n_positions", "n_layer", "n_embd", "n_head"),
    absent={"scale_attn_by_inverse_layer_idx": False},
    absent_ids={"bos_token_id": 50_256, "eos_token_id": 50_256},
    fixed={
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "add_cross_attention": False,
        "is_causal": True,
        "tie_word_embeddings": True,
        "quantization_config": None,
    },
    equivalent={
        "activation_function": (
            "gelu_pytorch_tanh",
            "gelu_python_tanh",
            "gelu_fast",
            "gelu_accurate",
        ),
    },
    reasons={
        "tie_word_embeddings": "an output head of its own; GPT-2's is the embedding here",
        "quantization_config": "quantized weights; save the model in float32 or float16",
    },
    # Another value computes the same in float32.
    stated={"reorder_and_upcast_attn": False, "use_cache": True},
    # Both sides store kernels as [in, out].
    tensors={
        "wte.weight": Tensor(("wte",)),
        "wpe.weight": Tensor(("wpe",)),
        "h.*.ln_1.weight": Tensor(("h.ln_1.scale",)),
        "h.*.ln_1.bias": Tensor(("h.ln_1.bias",)),
        "h.*.attn.c_attn.weight": Tensor(tuple(f"h.attn.c_attn.{part}.kernel" for part in PARTS)),
        "h.*.attn.c_attn.bias": Tensor(tuple(f"h.attn.c_attn.{part}.bias" for part in PARTS)),
        "h.*.attn.c_proj.weight": Tensor(("h.attn.c_proj.kernel",)),
        "h.*.attn.c_proj.bias": Tensor(("h.attn.c_proj.bias",)),
        "h.*.ln_2.weight": Tensor(("h.ln_2.scale",)),
        "h.*.ln_2.bias": Tensor(("h.ln_2.bias",)),
        "h.*.mlp.c_fc.weight": Tensor(("h.mlp.c_fc.kernel",)),
        "h.*.mlp.c_fc.bias": Tensor(("h.mlp.c_fc.bias",)),
        "h.*.mlp.c_proj.weight": Tensor(("h.mlp.c_proj.kernel",)),
        "h.*.mlp.c_proj.bias": Tensor(("h.mlp.c_proj.bias",)),
        "ln_f.weight": Tensor(("ln_f.scale",)),
        "ln_f.bias": Tensor(("ln_f.bias",)),
    },
    tied={"lm_head.weight": "wte.weight"},
    # Heads of other tasks: trl's value model, transformers' own.
    other_heads=r"(v_head|multiple_choice_head|classifier|qa_outputs)\..+",
    buffers=r"h\.\d+\.attn\.(bias|masked_bias)",  # causal mask, masked logit
    # The config by which released weights are recognised, and their licence.
    published={"BioMedLM": (GPT2Config(), "bigscience-bloom-rail-1.0")},
    gguf=GGUF(
        architecture="gpt2",
        fields=lambda config: {"attention.layer_norm_epsilon": float(config.layer_norm_epsilon)},
    ),
    fold_attention_scale=fold_attention_scale,
    export_warning=export_warning,
)
