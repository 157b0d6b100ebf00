"""A model of large random weights, and transformers' model of the same weights."""

import json

import jax
import numpy as np

from biomedlm_jax.interop.weights import file_name, hf_tensor_map, tensor_reader
from biomedlm_jax.model.families import abstract_model, config_to_hf

HEAD = "lm_head.weight"


def random_model(config, *, seed: int = 0, deviation: float = 0.3):
    """Return the config's model, all leaves random, biases and scales too; padding is zero."""
    random = np.random.default_rng(seed)

    def fill(path, leaf):
        values = deviation * random.standard_normal(leaf.shape, np.float32)
        return jax.numpy.asarray(values + (path[-2].name == "scale"))

    model = jax.tree_util.tree_map_with_path(fill, abstract_model(config))
    for name in {model.head_name, "embed_tokens", "wte"}:
        if (rows := getattr(model, name, None)) is not None:
            rows[...] = rows[...].at[config.vocab_size :].set(0)
    return model


def tensors_of(model) -> dict:
    """Return the tensors of a model, or of its gradients, by transformers' names."""
    import torch

    read = tensor_reader(model)
    return {
        file_name(name, model.config): torch.from_numpy(np.array(read(name)))
        for name in hf_tensor_map(model)
    }


def read_by_transformers(config, folder, **changes):
    """Return transformers' config of the config.json that an export would have, with changes."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_to_hf(config) | changes))
    return transformers.AutoConfig.from_pretrained(folder)


def make_peer(model, folder, **changes):
    """Return transformers' model with eager attention; it reads config.json from `folder`."""
    import transformers

    config = read_by_transformers(model.config, folder, **changes)
    options = {"attn_implementation": "eager"}
    peer = transformers.AutoModelForCausalLM.from_config(config, **options).float().eval()
    loaded = peer.load_state_dict(tensors_of(model), strict=False)
    assert loaded.missing_keys == ([HEAD] if model.config.tie_word_embeddings else [])
    assert not loaded.unexpected_keys
    return peer
