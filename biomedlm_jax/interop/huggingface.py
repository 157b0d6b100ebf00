"""Hugging Face directories: load one, write one from a model, turn one into a run directory."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from biomedlm_jax.corpus.tokenizer import END_OF_TEXT, load_tokenizer, save_tokenizer
from biomedlm_jax.interop import hub
from biomedlm_jax.interop.directories import (
    EXECUTION,
    GENERATION_CONFIG,
    HUGGING_FACE,
    RUN,
    building,
    check_output,
    kind_of,
    model_config,
    read_config,
    refuse_heads,
)
from biomedlm_jax.interop.modelcard import Facts, model_card, source_facts
from biomedlm_jax.interop.shards import parse_size, write_tensors
from biomedlm_jax.interop.tensorfiles import TensorFiles
from biomedlm_jax.interop.weights import (
    PREFIX,
    check_tensors,
    read_model,
    tensor_reader,
    tensor_shapes,
)
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT
from biomedlm_jax.training.checkpoint import load_model, save_model

TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


def load(
    path: str | Path, *, step: int | None = None, mesh: Mesh | None = None, **execution
) -> tuple[GPT, Tokenizer | None]:
    """The model and tokenizer of a run directory or a Hugging Face directory.

    Args:
      step: a run's checkpoint, the newest by default.
      mesh: where the parameters go; one device by default.
      execution: `compute_dtype`, `attention`, `remat`, `unroll` of GPTConfig, which otherwise are
        its defaults, whatever the run used on its machine.

    Returns:
      The model, and the tokenizer or None if the directory has none.

    Raises:
      FileNotFoundError, ValueError: there is no such directory or checkpoint, or what it holds is
        not exactly a GPT-2 of its config; a fine-tuned model, which has a head, is none.
    """
    refuse_heads(path)
    config = model_config(path, **execution)
    tokenizer = read_tokenizer(path, config)
    if kind_of(path) == RUN:
        return load_model(path, config, step=step, mesh=mesh), tokenizer
    if step is not None:
        raise ValueError(f"got step={step}; {path} is a Hugging Face directory, without steps")
    files = TensorFiles(path)
    check_tensors(files.shapes, config, where=str(path))
    return read_model(config, files.read, mesh=mesh), tokenizer


def import_hf(
    source: str | Path,
    path: str | Path,
    *,
    overwrite: bool = False,
    notify: Callable[[str], None] = print,
) -> Path:
    """Turn the Hugging Face directory `source` into the run directory `path`, and return it.

    A source of `hf://owner/name` is downloaded first; nothing else uses the network. Reads
    model.safetensors, safetensors shards, or pytorch_model.bin (through torch), with or without
    the prefix `transformer.`. Tensors of other float dtypes become float32. How the model decodes,
    `generation_config.json`, is kept. `notify` is told the licence of the weights and whatever was
    converted or left out.

    Raises:
      FileExistsError: `path` is there and `overwrite` is false, or it is no run directory.
      FileNotFoundError, ValueError: `source` is not exactly a GPT-2 of its config; `path` is as
        it was.
    """
    source = Path(hub.local(source))
    if kind_of(source) != HUGGING_FACE:
        raise ValueError(f"{source} is a run directory already; import-hf reads Hugging Face's")
    refuse_heads(source)
    config = model_config(source)
    check_output(path, kind=RUN, overwrite=overwrite)
    tokenizer = read_tokenizer(source, config)
    files = TensorFiles(source)
    check_tensors(files.shapes, config, where=str(source))
    found = source_facts(files, config, notify)
    if tokenizer is None:
        notify(f"no tokenizer in {source}: the run will have a model that reads no text")
    with building(path, kind=RUN, overwrite=overwrite) as new:
        if tokenizer is not None:
            save_tokenizer(tokenizer, new, model_max_length=config.context_length)
        save_model(new, read_model(config, files.read))
        fields = dataclasses.asdict(config)
        write_json(new / "config.json", {"model": fields, "source": found})
        if (source / GENERATION_CONFIG).is_file():
            shutil.copyfile(source / GENERATION_CONFIG, new / GENERATION_CONFIG)
    return Path(path)


def export_hf(
    model: GPT,
    tokenizer: Tokenizer | None,
    path: str | Path,
    *,
    overwrite: bool = False,
    fold_attention_scale: bool = False,
    max_shard_size: int | str = "5GB",
    training_facts: Facts | None = None,
    generation: Mapping[str, object] | None = None,
) -> Path:
    """Write `model` as the Hugging Face directory `path`, read it back, and return it.

    Args:
      fold_attention_scale: divide the query part of layer l's c_attn by l + 1 and clear
        `scale_attn_by_inverse_layer_idx`, for engines that refuse or ignore that flag.
      max_shard_size: bytes, or a size such as "5GB"; above it the weights are cut into shards.
      training_facts: sections for the model card; see `modelcard.training_facts`.
      generation: how the model decodes, entries of generation_config.json with transformers' names.

    Raises:
      FileExistsError: `path` is there and `overwrite` is false, or it is no Hugging Face directory.
      ValueError: the tokenizer does not fit the model.
      OSError: what was read back is not what was written; `path` is as it was.
    """

    def finish(new: Path, config: GPTConfig, folded: bool) -> str:
        ends = {"bos_token_id": config.eos_token_id, "eos_token_id": config.eos_token_id}
        write_json(new / GENERATION_CONFIG, {**ends, **(generation or {})})
        return model_card(
            config,
            name=Path(path).name,
            facts=training_facts,
            folded=folded,
            has_tokenizer=tokenizer is not None,
        )

    return write_directory(
        model,
        tokenizer,
        path,
        overwrite=overwrite,
        fold_attention_scale=fold_attention_scale,
        max_shard_size=max_shard_size,
        finish=finish,
    )


def write_directory(
    model: GPT,
    tokenizer: Tokenizer | None,
    path: str | Path,
    *,
    overwrite: bool,
    fold_attention_scale: bool,
    max_shard_size: int | str,
    finish: Callable[[Path, GPTConfig, bool], str],
    settings: Mapping[str, object] | None = None,
    score: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """What `export_hf` does, for a model alone or with the `score` tensors of its head.

    `settings` go into config.json; `finish(directory, config, folded)` writes what else there is
    and gives the model card.
    """
    check_output(path, kind=HUGGING_FACE, overwrite=overwrite)
    parse_size(max_shard_size)
    config, score = model.config, score or {}
    if tokenizer is not None:
        check_tokenizer(tokenizer, config)
    folded = fold_attention_scale and config.scale_attn_by_inverse_layer_idx
    if folded:
        config = dataclasses.replace(config, scale_attn_by_inverse_layer_idx=False)
    of_model = tensor_reader(model, fold=folded)
    shapes = {PREFIX + name: shape for name, shape in tensor_shapes(config).items()}
    shapes |= {name: tensor.shape for name, tensor in score.items()}

    def read(name: str) -> np.ndarray:
        return score[name] if name in score else of_model(name.removeprefix(PREFIX))

    with building(path, kind=HUGGING_FACE, overwrite=overwrite) as new:
        fields = {**config.to_hf(), **(settings or {})}
        write_json(new / "config.json", fields)
        if tokenizer is not None:
            save_tokenizer(tokenizer, new, model_max_length=config.context_length)
        write_tensors(new, shapes, read, max_shard_size=max_shard_size)
        (new / "README.md").write_text(finish(new, config, folded), encoding="utf-8")
        _check_written(new, config, fields, shapes, read)
    return Path(path)


def _check_written(directory: Path, config: GPTConfig, fields: dict, shapes: dict, read) -> None:
    written = model_config(directory, **{name: getattr(config, name) for name in EXECUTION})
    files = TensorFiles(directory)
    expected = {name.removeprefix(PREFIX): shape for name, shape in shapes.items()}
    same = written.architecture() == config.architecture() and read_config(directory) == fields
    if not same or files.shapes != expected:
        raise OSError(f"{directory}: what was written does not read back; is the disk in order?")
    for name in files.entries:
        if files.read(name).tobytes() != read(name).tobytes():
            raise OSError(f"{directory}: tensor {name} does not read back; is the disk in order?")


def read_tokenizer(path: str | Path, config: GPTConfig) -> Tokenizer | None:
    """The tokenizer of a directory, or None; raises ValueError if it does not fit the model."""
    if not any((Path(path) / name).exists() for name in TOKENIZER_FILES):
        return None
    tokenizer = load_tokenizer(path)
    check_tokenizer(tokenizer, config)
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, config: GPTConfig) -> None:
    """Raise ValueError unless this tokenizer's ids, and its end of text, are the model's."""
    largest = max(tokenizer.get_vocab().values())
    if largest >= config.vocab_size:
        raise ValueError(
            f"the tokenizer has id {largest}, and the model's vocabulary ends at "
            f"{config.vocab_size - 1}; use the tokenizer that the model was trained with"
        )
    end = tokenizer.token_to_id(END_OF_TEXT)
    if end is not None and end != config.eos_token_id:
        raise ValueError(
            f"the tokenizer's {END_OF_TEXT} is id {end}, and the model's eos_token_id is "
            f"{config.eos_token_id}; use the tokenizer that the model was trained with"
        )


def write_json(path: Path, value: dict) -> None:
    """Write `value` as people read it."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
