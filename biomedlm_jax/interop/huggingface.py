"""Hugging Face directories: load one, write one from a model, turn one into a run directory."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from biomedlm_jax.buckets import as_path
from biomedlm_jax.corpus.tokenizer import save_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json, write_json, write_text
from biomedlm_jax.interop import directories, finetuned, hub, modelcard, weights
from biomedlm_jax.interop.directories import check_tokenizer, is_hugging_face, is_run
from biomedlm_jax.interop.finetuned import Head
from biomedlm_jax.interop.lora_files import import_adapter, is_adapter
from biomedlm_jax.interop.modelcard import Facts, model_card, source_facts
from biomedlm_jax.interop.rounding import SOURCE, Rounding, most_frequent, source_dtypes
from biomedlm_jax.interop.shards import WRITTEN, parse_size, write_tensors
from biomedlm_jax.interop.tensorfiles import TensorFiles
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import config_to_hf, family
from biomedlm_jax.model.heads import CHOICE, Scorer
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.model.lora import matrices_in
from biomedlm_jax.outputs import atomic_directory, check_output, local_copy, written_locally
from biomedlm_jax.training.saved_steps import latest_step

PAD = "[PAD]"  # transformers needs a padding token to classify a batch


def load(
    path: str | Path,
    *,
    step: int | None = None,
    mesh: Mesh | None = None,
    dtype: str = "float32",
    **execution,
) -> tuple[LanguageModel, Tokenizer | None]:
    """Load the model and the tokenizer (or None) of a run directory or a Hugging Face directory.

    A fine-tuning run is loaded from RUN/model. `step` is a run's checkpoint, the newest by default;
    without a mesh the model goes onto one device. `dtype` is that of its matrices: LoRA may freeze
    them in bfloat16. `execution` sets `compute_dtype`, `attention`,
    `remat`, ... of its config. Raises InputError if the directory does not
    hold exactly a language model of its config, without a head.
    """
    directories.refuse_heads(path)
    config = directories.model_config(path, **execution)
    tokenizer = directories.read_tokenizer(path, config)
    abstract = matrices_in(finetuned.abstract_on(config, None, mesh), dtype)
    return finetuned.read_weights(path, abstract, step=step), tokenizer


def import_hf(
    source: str | Path,
    path: str | Path,
    *,
    base: str | Path | None = None,
    overwrite: bool = False,
    resize_embeddings: bool = False,
    notify: Callable[[str], None] = print,
    **ids: int,
) -> Path:
    """Turn the Hugging Face directory `source` into the run directory `path`, and return it.

    A source of `hf://owner/name` is downloaded first; nothing else uses the network. `TensorFiles`
    states the formats; other float dtypes become float32. A head that `export_hf` wrote and
    generation_config.json are kept. `notify` gets a line about the licence of the weights, and one
    about anything converted or left out. The tokenizer's files stay as they are. `ids` are
    `eos_token_id` and `bos_token_id` in place of those of config.json; without them, those of the
    tokenizer are, in families where they contradict it at times. `resize_embeddings` adds rows for
    ids of the tokenizer after the vocabulary, the mean of the others. A `source` of LoRA factors in
    PEFT's format is merged into the run or Hugging Face directory `base`. Raises InputError if
    `path` may not be overwritten, or `source` does not hold exactly a model of its config; `path`
    is unchanged then.
    """
    source = hub.download(source)
    with local_copy(source) as local:
        given: dict[str, Any] = {"overwrite": overwrite, "notify": notify, **ids}
        if is_adapter(local) and not resize_embeddings:
            return import_adapter(local, base, path, **given)
        if base is not None or is_adapter(local):
            got = "--base" if base is not None else "--resize_embeddings"
            other = "an adapter" if base is not None else "a model"
            raise InputError(f"got {got}, which is for {other} only; leave it out")
        given["resize_embeddings"] = resize_embeddings
        return _import_hf(local, path, place=str(source.absolute()), **given)


def _import_hf(
    source: Path,
    path: str | Path,
    *,
    place: str,
    overwrite: bool,
    resize_embeddings: bool,
    notify: Callable[[str], None],
    **ids: int,
) -> Path:
    if directories.kind_of(source) != directories.HUGGING_FACE:
        raise InputError(f"{source} is a run directory already; expected a Hugging Face directory")
    check_output(path, replaceable=is_run, overwrite=overwrite)
    head = finetuned.read_head(source)
    if head is None:
        directories.refuse_heads(source)
    all_ids, lines, more = directories.tokenizer_ids(source, ids)
    size: Any = directories.read_config(source).get("vocab_size")
    sized = {"vocab_size": size + more} if more and resize_embeddings else {}
    # An id after the vocabulary is that of a tokenizer that does not fit: see read_tokenizer.
    inside = {name: i for name, i in all_ids.items() if name in ids or not more or i < size}
    config = directories.model_config(source, **(all_ids if sized else inside), **sized)
    tokenizer = directories.read_tokenizer(source, config, required=head is not None)
    # The shapes alone; the ids must fit as well.
    without = {"eos_token_id": 0, "bos_token_id": 0, "more_eos_token_ids": (), "pad_token_id": None}
    stored = dataclasses.replace(config, vocab_size=size, **without) if sized else config
    files, in_files = TensorFiles(source, config), finetuned.abstract_on(stored, head, None)
    weights.check_tensors(files.shapes, in_files, where=str(source))
    abstract, read = finetuned.abstract_on(config, head, None), files.read
    for line in lines:
        notify(line)
    if sized:
        read = weights.with_more_rows(in_files, more, read)
        notify(f"added {more} vocabulary rows for the tokenizer's ids, each the mean of the others")
    facts = {"source": {**source_facts(files, config, notify), "path": place}}
    record = directories.training_record(source)
    facts |= record.get("facts", {})
    generation = source / directories.GENERATION_CONFIG
    endless = directories.read_config(source).get("eos_token_id", 0) is None
    if endless and "eos_token_id" not in ids and head is None and not generation.is_file():
        null = f"{source / directories.CONFIG} has eos_token_id null"
        notify(f"{null}: transformers ends no answer; to set one, pass --eos_token_id=ID")
    if tokenizer is None:
        notify(f"no tokenizer in {source}: the run directory has none either")
    return finetuned.save_finetuned(
        path,
        weights.read_model(abstract, read),
        tokenizer,
        head,
        facts=facts,
        files={
            **({directories.TRAINING_FILE: record} if record else {}),
            **({generation.name: read_json(generation)} if generation.is_file() else {}),
        },
        replaceable=is_run,
        overwrite=overwrite,
    )


def export_directory(
    source: str | Path,
    path: str | Path,
    *,
    step: int | None = None,
    mesh: Mesh | None = None,
    notify: Callable[[str], None] = print,
    **options: Any,
) -> Path:
    """Write the run or Hugging Face directory `source` as the Hugging Face directory `path`.

    `step` is a run's checkpoint, the newest by default; the model is loaded onto `mesh`, by default
    one device. A fine-tuned model keeps its head, any other its generation settings. `options` are
    `export_hf`'s, with its errors, raised before the model is read where they can be; a dtype of
    "source" is that of each tensor in the files that `source` has or was imported from. `notify`
    gets a warning if other engines compute another function from the export.
    """
    overwrite = options.get("overwrite", False)
    check_output(path, replaceable=is_hugging_face, overwrite=overwrite)
    parse_size(options.get("max_shard_size", "5GB"))
    directories.read_config(source)  # that it is a directory of a model
    source = directories.model_directory(source)
    head = finetuned.read_head(source)
    if options.get("dtype") == SOURCE:
        config = directories.model_config(source)
        options["dtype"] = source_dtypes(source, finetuned.abstract_on(config, head, None))
    if head is None:
        generation = source / directories.GENERATION_CONFIG
        options["generation"] = read_json(generation) if generation.exists() else None
        model, tokenizer = load(source, step=step, mesh=mesh)
    elif step is not None:
        raise InputError(f"got step={step}; {source} has one checkpoint, leave out --step")
    else:
        model, tokenizer, options["head"] = finetuned.load_finetuned(source, mesh=mesh)
    if is_run(source):
        step = latest_step(source) if step is None else step
        options["training_facts"] = modelcard.training_facts(source, step=step)
    options["training_record"] = directories.training_record(source)
    export_hf(model, tokenizer, path, **options)
    warning = family(model.config.model_type).export_warning(model.config, folded=False)
    if warning and not options.get("fold_attention_scale"):
        notify(warning)
    return as_path(path)


def export_hf(
    model: LanguageModel | Scorer,
    tokenizer: Tokenizer | None,
    path: str | Path,
    *,
    head: Head | None = None,
    overwrite: bool = False,
    fold_attention_scale: bool = False,
    dtype: str | Mapping[str, str] = "float32",
    max_shard_size: int | str = "5GB",
    training_facts: Facts | None = None,
    training_record: Mapping[str, object] | None = None,
    generation: Mapping[str, object] | None = None,
) -> Path:
    """Write `model` as the Hugging Face directory `path`, read it back, and return it.

    A head becomes transformers' class of sequence classification, with one label for a choice: it
    scores one option at a time, without the bias, which is equal for all. `fold_attention_scale`
    folds the inverse-layer attention scale into the weights, for engines without that setting.
    `dtype` is float32, bfloat16 or float16, or that of each tensor by its name; a warning states
    what it rounds. Weights larger than `max_shard_size`, bytes or "5GB", are written in shards.
    `training_facts` are sections of the model card, `training_record` is written as training.json,
    `generation` has the entries of generation_config.json; `export_directory` reads all three from
    a directory.

    Raises InputError if `path` may not be overwritten, tokenizer or head do not fit the model, or a
    parameter is not finite, and OSError if the directory does not read back as it was written;
    `path` is unchanged then.
    """
    parse_size(max_shard_size)
    _check_head(model, head)
    config, fold = model.config, None
    if tokenizer is not None:
        check_tokenizer(tokenizer, config)
    if fold_attention_scale:
        config, fold = family(config.model_type).fold_attention_scale(config)
    fields = config_to_hf(config) | (_head_fields(head, tokenizer, config) if head else {})
    shapes = weights.tensor_shapes(model)
    read = weights.folded(model, weights.tensor_reader(model), fold)
    dtypes = dict.fromkeys(shapes, dtype) if isinstance(dtype, str) else dict(dtype)
    if unknown := sorted({*dtypes.values()} - {*WRITTEN}):
        raise InputError(f"got dtype={unknown[0]!r}; expected one of {', '.join(WRITTEN)}")
    cast = Rounding(read, dtypes)
    in_config = most_frequent(dtypes, shapes)
    fields["torch_dtype"] = in_config
    names = {weights.file_name(name, config): name for name in shapes}
    kind = {"replaceable": is_hugging_face, "overwrite": overwrite}
    with atomic_directory(path, **kind) as written, written_locally(written) as new:
        write_json(new / directories.CONFIG, fields)
        if tokenizer is not None:
            save_tokenizer(tokenizer, new, model_max_length=config.context_length)
        if head is None:
            ends = {name: fields[name] for name in ("bos_token_id", "pad_token_id")}
            ends = {name: value for name, value in ends.items() if value is not None}
            ends["eos_token_id"] = fields["eos_token_id"]  # null: no end, as in transformers
            entries = ends if generation is None else dict(generation)
            write_json(new / directories.GENERATION_CONFIG, entries)
        else:
            for file in (new / "tokenizer_config.json", new / "special_tokens_map.json"):
                entries = read_json(file) if file.exists() else {}
                write_json(file, {**entries, "pad_token": PAD})
        if training_record:
            write_json(new / directories.TRAINING_FILE, dict(training_record))
        states = {"folded": fold is not None, "has_tokenizer": tokenizer is not None}
        card = model_card(
            config,
            name=as_path(path).name,
            facts=training_facts,
            head=head,
            dtypes=sorted({*dtypes.values()}),
            **states,
        )
        write_text(new / "README.md", card)
        in_file = {full: shapes[name] for full, name in names.items()}
        write_tensors(
            new,
            in_file,
            lambda full: cast(names[full]),
            max_shard_size=max_shard_size,
            dtypes={full: dtypes[name] for full, name in names.items()},
        )
        line = cast.line()
        _check_written(new, config, fields, shapes, cast)
    if line:
        warnings.warn(line, RuntimeWarning, stacklevel=2)
    return as_path(path)


def _check_head(model: LanguageModel | Scorer, head: Head | None) -> None:
    got = (model.kind, model.score.out_features) if isinstance(model, Scorer) else (None, 0)
    wanted = (head.kind, head.outputs) if head else (None, 0)
    if got != wanted:
        pair = f"a {type(model).__name__} with {got[1]} scores, and a head of kind {wanted[0]}"
        fix = "pass the head that the model was fine-tuned with"
        raise InputError(f"got {pair} with {wanted[1]}; {fix}")


def _head_fields(head: Head, tokenizer: Tokenizer | None, config: ModelConfig) -> dict:
    """What a head adds to config.json."""
    padding = None if tokenizer is None else tokenizer.token_to_id(PAD)
    if padding is None:
        raise InputError(f"the tokenizer lacks {PAD}; pass the one in the fine-tuned directory")
    fields: dict = {"pad_token_id": padding, directories.HEAD_ENTRY: head.to_json()}
    names = ["score"] if head.kind == CHOICE else head.classes
    labels = {str(i): name for i, name in enumerate(names)}
    fields |= {"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}}
    architecture = family(config.model_type).architectures["classification"]
    return {**fields, "architectures": [architecture], "num_labels": len(labels)}


def _check_written(directory: Path, config: ModelConfig, fields: dict, shapes: dict, cast) -> None:
    problem = "does not read back as it was written; check the disk"
    files = TensorFiles(directory, config)
    same = directories.model_config(directory).architecture() == config.architecture()
    if not same or directories.read_config(directory) != fields or files.shapes != shapes:
        raise OSError(f"{directory} {problem}")
    for name, entry in files.entries.items():
        tensor = cast(name)
        same = entry.dtype == tensor.dtype.name
        if not same or files.read(name).tobytes() != tensor.astype(np.float32).tobytes():
            raise OSError(f"{directory}: tensor {name} {problem}")
