"""initial_weights(): the model of a directory, for pre-training to start from."""

import functools
from pathlib import Path

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json
from biomedlm_jax.interop import directories
from biomedlm_jax.interop.finetuned import read_weights
from biomedlm_jax.training.pretrain import InitialWeights


def initial_weights(path: str | Path) -> InitialWeights:
    """Return the language model at `path`, a run or a Hugging Face directory, for `pretrain`.

    Its weights are read later, straight onto the devices of the run's mesh. Its
    generation_config.json is kept. Raises InputError if it has a head, or no
    tokenizer.
    """
    directories.refuse_heads(path)
    config = directories.model_config(path)
    tokenizer = directories.read_tokenizer(path, config)
    if tokenizer is None:
        raise InputError(f"{path} has no tokenizer; add the tokenizer.json it was trained with")
    generation = directories.model_directory(path) / directories.GENERATION_CONFIG
    return InitialWeights(
        path=str(path),
        config=config,
        tokenizer=tokenizer,
        read=functools.partial(read_weights, path),
        files={generation.name: read_json(generation)} if generation.is_file() else {},
    )
