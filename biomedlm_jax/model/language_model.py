"""LanguageModel: embed -> scan over blocks -> norm -> head, the same for every family.

Axes carry one letter each: B batch, L query length, S key length, D width, H heads, G key/value
heads, K head dimension, F MLP width, V vocabulary, N layers, x any axes before the last.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from biomedlm_jax.errors import InputError
from biomedlm_jax.mesh import constrain
from biomedlm_jax.model.attention import attend
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.layers import axis_metadata, rematerialise


class Tensor(NamedTuple):
    """The leaves that a Hugging Face tensor consists of, joined along their last axis.

    A `*` in the tensor's name is a layer; its leaves have a leading axis of layers. `transposed`:
    the file stores the joined matrix as [out, in], as torch's Linear does.
    """

    leaves: tuple[str, ...]
    transposed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class GGUF:
    """A family in llama.cpp: the name of its architecture, its settings, and what it cannot do.

    `fields` are settings by llama.cpp's names beside those that all families have, `constants` are
    tensors by its names that Hugging Face has not.
    """

    architecture: str
    fields: Callable[[Any], dict[str, int | float]]
    constants: Callable[[Any], dict[str, np.ndarray]] = lambda config: {}
    # Leaves whose heads it rotates as pairs of neighbours, not of halves, with their heads.
    neighbours: Callable[[Any], dict[str, int]] = lambda config: {}
    # What of a config it does not compute; None: it computes the same function.
    unsupported: Callable[[Any], str | None] = lambda config: None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """Everything about one `model_type`: its classes, and what Hugging Face calls its parts.

    Names of settings are ours -> theirs; `read_more` and `write_more` convert settings that are no
    plain entry of config.json. An `absent` value is what transformers assumes for a missing entry.
    """

    config: type[ModelConfig]
    model: Callable[..., "LanguageModel"]
    architectures: Mapping[str, str]  # of a language_model, its trunk and a classification
    prefix: str  # of the language model's tensors; the trunk's have none
    fields: Mapping[str, str]  # everything here changes what is computed
    tensors: Mapping[str, Tensor]  # the table of all; a model has those whose leaves it has
    required: tuple[str, ...]  # their names
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # their other names
    repeated: tuple[str, ...] = ()  # entries that `read_more` reads and `write_more` writes
    absent: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # by our names
    ids_of_tokenizer: bool = False  # bos and eos are the tokenizer's where config.json differs
    absent_ids: Mapping[str, int] = dataclasses.field(default_factory=dict)  # if in the vocabulary
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of which we have one value
    equivalent: Mapping[str, tuple] = dataclasses.field(default_factory=dict)  # of `fixed`
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)  # why others are refused
    stated: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # in every export
    read_more: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}
    write_more: Callable[[Any], dict[str, Any]] = lambda config: {}
    gguf: GGUF
    tied: Mapping[str, str]  # tensors that repeat another if the output head is the embedding
    unprefixed: tuple[str, ...] = ()  # tensors whose names never have the prefix
    other_heads: str = "(?!)"  # pattern of tensors that a language model drops
    buffers: str = "(?!)"  # pattern of constants in old files
    published: Mapping[str, tuple[ModelConfig, str]] = dataclasses.field(default_factory=dict)
    # Config without a scale that other engines ignore, and the leaves that absorb it (None: none).
    fold_attention_scale: Callable[[Any], tuple[Any, str | None]] = lambda config: (config, None)
    # What a user of an export must know about its attention, as Markdown.
    export_warning: Callable[..., str | None] = lambda config, *, folded: None


class LanguageModel(nnx.Module):
    """Tokens [B, L] -> logits [B, L, V] in float32.

    Parameters are float32; every leaf of the blocks has a leading axis N. A family (gpt2.py) adds
    the constructor and `embed`, and names the attributes of its blocks, final norm and output head;
    its blocks have `with_joined_products`, for decoding on a CPU.
    """

    BLOCKS: ClassVar[str]
    NORM: ClassVar[str]
    config: ModelConfig
    lora: Any = None  # factors that change the kernels layer by layer, see lora.py

    def __call__(self, tokens_BxL: jax.Array, *, dropout_key=None) -> jax.Array:
        """Return logits [B, L, V] in float32, with dropout only if there is a key."""
        return self.logits(self.hidden(tokens_BxL, dropout_key=dropout_key))

    def embed(self, tokens_BxL: jax.Array, positions_BxL, *, dropout_key=None) -> jax.Array:
        """Return the residual stream [B, L, D] before the first block."""
        raise NotImplementedError

    @property
    def blocks(self) -> Any:
        """The stacked blocks; of a model from `unstacked`, a tuple with one block per layer."""
        return getattr(self, self.BLOCKS)

    @property
    def head_name(self) -> str:
        """The attribute with the output head's rows [V, D]; of a tied head, the embedding."""
        raise NotImplementedError

    @property
    def head_weight(self) -> jax.Array:
        """The output head's rows [V, D], padding included."""
        return getattr(self, self.head_name)[...]

    def hidden(self, tokens_BxL: jax.Array, *, positions_BxL=None, mask=None, dropout_key=None):
        """Return the final normalised states [B, L, D] in the compute dtype.

        Position ids are 0..L-1 by default; `mask` is an `attention.Mask` of packed rows. Raises
        InputError for more tokens than positions.
        """
        return self._run(tokens_BxL, positions_BxL, mask, dropout_key)[0]

    def hidden_with_streams(self, tokens_BxL: jax.Array, *, positions_BxL=None, mask=None):
        """Return what `hidden` does, and the residual stream before each block: [N, B, L, D]."""
        return self._run(tokens_BxL, positions_BxL, mask, None, streams=True)

    def _run(self, tokens_BxL: jax.Array, positions_BxL, mask, dropout_key, *, streams=False):
        config, L = self.config, tokens_BxL.shape[1]
        if positions_BxL is None and L > config.context_length:
            raise InputError(
                f"got {L} tokens; expected at most the model's {config.context_length} positions"
            )
        no_keys = (None, None)
        embed_key, block_key = no_keys if dropout_key is None else jax.random.split(dropout_key)
        window = config.sliding_window
        if mask is not None and window is not None:
            mask = mask._replace(position_BxL=positions_BxL)
        settings = {"dropout_rate": config.attention_dropout, "window": window}
        full = functools.partial(attend, kernel=config.attention, scale=1.0, mask=mask, **settings)

        def step(x_BxLxD, sliced):
            block, layer, factors = sliced
            block = block if factors is None else factors.merged(block)
            key = None if block_key is None else jax.random.fold_in(block_key, layer)
            y_BxLxD = block(x_BxLxD, positions_BxL, layer, full, dropout_key=key)
            return y_BxLxD, x_BxLxD if streams else None

        x_BxLxD, streams_NxBxLxD = jax.lax.scan(
            rematerialise(step, config.remat),
            self.embed(tokens_BxL, positions_BxL, dropout_key=embed_key),
            (self.blocks, jnp.arange(config.layers), self.lora),
            unroll=config.unroll,
        )
        x_BxLxD = getattr(self, self.NORM)(constrain(x_BxLxD, "batch", "length", None))
        return x_BxLxD, streams_NxBxLxD

    def hidden_with_attention(
        self, tokens_BxL: jax.Array, positions_BxL, attend_of: Callable[[int], Callable]
    ):
        """Return the final states [B, L, D] with `attend_of(layer)` as each layer's attention.

        For a model from `unstacked`, whose unrolled blocks let XLA update every cache in place. The
        query that attention gets is scaled already.
        """
        x_BxLxD = self.embed(tokens_BxL, positions_BxL)
        for layer, block in enumerate(self.blocks):
            x_BxLxD = block(x_BxLxD, positions_BxL, layer, attend_of(layer))
        return getattr(self, self.NORM)(x_BxLxD)

    def logits(self, x_BxLxD: jax.Array) -> jax.Array:
        """Return the output head's logits in float32, padding cut off: [B, L, V]."""
        return head_logits(x_BxLxD, self.head_weight)[..., : self.config.vocab_size]

    def with_blocks(self, blocks: Any) -> Self:
        """Return this model, its other arrays shared, with other blocks."""
        model = jax.tree.map(lambda leaf: leaf, self)
        setattr(model, self.BLOCKS, blocks)
        return model

    def unstacked(self, dtype) -> Self:
        """Return the model for decoding: one block per layer, matrices in `dtype`.

        LoRA's factors are merged layer by layer.
        """

        def cast(name, variable):
            matrix = len(variable.shape) > 1
            return variable.replace(variable[...].astype(dtype)) if matrix else variable

        def block(index):
            def sliced(_, stacked):
                return nnx.Param(stacked[index], **axis_metadata(*axis_names(stacked)[1:]))

            layer = map_parameters(sliced, self.blocks)
            if self.lora is not None:
                layer = jax.tree.map(lambda leaf: leaf[index], self.lora).merged(layer)
            return map_parameters(cast, layer)

        blocks = tuple(block(index) for index in range(self.config.layers))
        rest = self.with_blocks(None)
        if self.lora is not None:
            del rest.lora
        return map_parameters(cast, rest).with_blocks(nnx.data(blocks))


def head_logits(x_xD: jax.Array, head_VxD: jax.Array) -> jax.Array:
    """Return products with the head's rows [..., V], accumulated in float32."""
    head_VxD = head_VxD.astype(x_xD.dtype)
    return jnp.einsum("...D,VD->...V", x_xD, head_VxD, preferred_element_type=jnp.float32)


def stack_blocks(make_block: Callable, keys_N: jax.Array):
    """Build one block per key, stacked along a leading axis named `layers`."""
    return jax.vmap(nnx.transform_metadata(make_block, partition="layers"))(keys_N)


def map_parameters(function: Callable[[str, Any], Any], module):
    """Return a copy of `module` with `function(dotted name, nnx.Variable)` in place of each."""
    return jax.tree_util.tree_map_with_path(
        lambda path, variable: function(leaf_name(path), variable), module, is_leaf=_is_variable
    )


def named_parameters(module) -> dict[str, Any]:
    """Return the nnx.Variables of a module, or of its shapes, by dotted name."""
    leaves = jax.tree_util.tree_leaves_with_path(module, is_leaf=_is_variable)
    return {leaf_name(path): variable for path, variable in leaves}


def named_leaves(module) -> dict[str, Any]:
    """Return the arrays of a module, or its shapes, by dotted name."""
    return {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(module)}


def leaf_name(path: tuple) -> str:
    """Return a leaf's dotted name: `h.attn.c_proj.kernel`."""
    names = [str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path]
    return ".".join(names[:-1] if names[-1] in ("value", "raw_value") else names)


def axis_names(variable) -> tuple[str | None, ...]:
    """Return the logical axis names of a parameter; () where it has none."""
    return variable.get_metadata().get("out_sharding") or ()


def parameter_count(model, *, lookups: bool = True) -> int:
    """Return the number of parameters of a model or its shapes, vocabulary padding excluded.

    Without `lookups`: no position embeddings, and no input embedding of an untied head.
    """
    config, total = model.config, 0
    for name, variable in named_parameters(model).items():
        names, size = axis_names(variable), math.prod(variable.shape)
        if "vocab" in names:
            size = size // config.padded_vocab_size * config.vocab_size
        if lookups or not ("length" in names or ("vocab" in names and name != model.head_name)):
            total += size
    return total


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)
