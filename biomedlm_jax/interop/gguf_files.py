"""Write a model as a GGUF file, for llama.cpp, Ollama and LM Studio.

Names of tensors, formats of numbers and the layout of the file are those of the package `gguf`.
"""

import contextlib
import dataclasses
import types
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from biomedlm_jax.buckets import as_path
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json
from biomedlm_jax.interop import directories, finetuned, weights
from biomedlm_jax.interop.gguf_vocabulary import gguf_vocabulary
from biomedlm_jax.interop.modelcard import stated_licence, training_facts
from biomedlm_jax.interop.tensorfiles import TensorFiles
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import family
from biomedlm_jax.model.language_model import axis_names, named_parameters
from biomedlm_jax.outputs import atomic_file, check_file, local_copy

# Formats of matrices; the q formats have a scale, and some an offset, for each 32 numbers of a row.
DTYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
WHOLE = ("f32", "f16", "bf16", "q8_0")  # that are good enough for the embedding and the head
MOST = float(np.finfo(np.float16).max)
VERSION = 2  # of the q formats


class _Written(NamedTuple):
    """A tensor of the file: its shape, its format, and how to get its numbers."""

    shape: tuple[int, ...]
    dtype: str
    get: Callable[[], np.ndarray]


def export_gguf(
    source: str | Path,
    path: str | Path,
    *,
    dtype: str = "f16",
    step: int | None = None,
    overwrite: bool = False,
    notify: Callable[[str], None] = print,
) -> Path:
    """Write the run or Hugging Face directory `source` as the GGUF file `path`, and return it.

    `dtype` is one of `DTYPES`, the format of the matrices; vectors and the embedding of positions
    are float32, and token embedding and head have at least 8 bits. An inverse-layer attention scale
    is folded into the weights. Of a Hugging Face directory one tensor is in memory at a time; a
    run's checkpoint, of `step` or the newest, is loaded as a whole. `notify` gets a line about each
    thing that llama.cpp does otherwise.

    Raises InputError for a model or tokenizer that llama.cpp does not compute alike, a model with a
    head or without a tokenizer, a number too large for its format, or a `path` that may not be
    overwritten, and OSError if the file does not read back; `path` is unchanged then.
    """
    gguf = _package()
    if dtype not in DTYPES:
        raise InputError(f"got dtype={dtype!r}; expected one of {', '.join(DTYPES)}")
    check_file(path, overwrite=overwrite)
    directories.refuse_heads(source)
    config = directories.model_config(source)
    of_type = family(config.model_type)
    reason = of_type.gguf.unsupported(config)
    if reason is not None:
        got = f"{source} is a {config.model_type} model with {reason}"
        raise InputError(f"{got}, which llama.cpp does not compute; use biomedlm export-hf")
    tokenizer = directories.read_tokenizer(source, config, required=True)
    assert tokenizer is not None
    ended = _with_all_ends(source, config)
    vocabulary = gguf_vocabulary(tokenizer, ended, where=str(source))
    window, positions = config.sliding_window, config.context_length
    if window is not None and window < positions:
        positions = window
        notify(f"llama.cpp has no sliding window: the file states {window} positions, its length")
    for line in vocabulary.lines:
        notify(line)
    with _tensors(source, config, step) as read, atomic_file(path, overwrite=overwrite) as new:
        written = _plan(gguf, config, dtype, read)
        short = sum(tensor.dtype == "f16" for tensor in written.values()) if dtype[0] == "q" else 0
        if short:
            notify(f"{short} matrices have rows that are no multiple of 32, and are f16")
        writer = gguf.GGUFWriter(new, of_type.gguf.architecture)
        try:
            _add_metadata(gguf, writer, source, config, positions, dtype)
            for name, value in vocabulary.fields.items():
                _add(writer, f"tokenizer.ggml.{name}", value)
            if vocabulary.template:
                writer.add_chat_template(vocabulary.template)
            sums = _write(gguf, writer, written)
        finally:
            writer.close()
        _check_written(gguf, new, sums)
    return as_path(path)


def _package() -> types.ModuleType:
    try:
        import gguf
    except ModuleNotFoundError as error:
        fix = "pip install 'biomedlm-jax[gguf]'"
        raise InputError(f"export-gguf needs {error.name}, which is not installed; {fix}") from None
    return gguf


def _with_all_ends(source: str | Path, config: ModelConfig) -> ModelConfig:
    """Return the config with the end ids of generation_config.json beside its own."""
    file = directories.model_directory(source) / directories.GENERATION_CONFIG
    ends = read_json(file).get("eos_token_id") if file.exists() else None
    ends = ends if isinstance(ends, list) else [ends]
    more = [i for i in ends if type(i) is int and i not in config.end_ids]
    more = [i for i in more if 0 <= i < config.vocab_size]
    return dataclasses.replace(config, more_eos_token_ids=(*config.more_eos_token_ids, *more))


@contextlib.contextmanager
def _tensors(
    source: str | Path, config: ModelConfig, step: int | None
) -> Generator[Callable[[str], np.ndarray]]:
    """Yield a function from a Hugging Face name to a tensor with the attention scale folded in."""
    abstract = finetuned.abstract_on(config, None, None)
    fold = family(config.model_type).fold_attention_scale(config)[1]
    if directories.kind_of(source) == directories.RUN:
        model = finetuned.read_weights(source, abstract, step=step)
        yield weights.folded(abstract, weights.tensor_reader(model), fold)
        return
    if step is not None:
        raise InputError(f"got step={step}; {source} is a Hugging Face directory, without steps")
    with local_copy(source) as local:
        files = TensorFiles(local, config)
        weights.check_tensors(files.shapes, abstract, where=str(source))
        yield weights.folded(abstract, files.read, fold)


def _plan(
    gguf: Any, config: ModelConfig, dtype: str, read: Callable[[str], np.ndarray]
) -> dict[str, _Written]:
    """Return the tensors of the file by llama.cpp's names, in order."""
    abstract = finetuned.abstract_on(config, None, None)
    where, parameters = weights.hf_tensor_map(abstract), named_parameters(abstract)
    of_family = family(config.model_type).gguf
    heads_of = of_family.neighbours(config)
    architecture = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(architecture[of_family.architecture], config.layers)
    plan = {}
    for name, tensor in of_family.constants(config).items():
        plan[name] = _Written(tensor.shape, "f32", lambda tensor=tensor: tensor)
    for name, shape in weights.tensor_shapes(abstract).items():
        leaf = where[name].leaves[0]
        axes = axis_names(parameters[leaf])
        turned = leaf.endswith(".kernel") and not where[name].transposed  # to [out, in]
        heads = next((count for part, count in heads_of.items() if part in leaf), 0)
        shape = shape[::-1] if turned else shape
        row, kind = shape[-1], dtype
        if len(shape) < 2 or "length" in axes:
            kind = "f32"
        elif "vocab" in axes and dtype not in WHOLE:
            kind = "q8_0"
        if kind[0] == "q" and row % 32:
            kind = "f16"
        suffixes = (".weight", ".bias")
        full = names.get_name(weights.file_name(name, config), try_suffixes=suffixes)
        assert full is not None, name

        def get(name: str = name, turned: bool = turned, heads: int = heads) -> np.ndarray:
            tensor = read(name).T if turned else read(name)
            return _neighbours(tensor, heads) if heads else tensor

        plan[full] = _Written(shape, kind, get)
    return plan


def _neighbours(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of each head with the second half's between those of the first."""
    by_half = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return by_half.swapaxes(1, 2).reshape(tensor.shape)


def _add_metadata(
    gguf: Any, writer: Any, source: str | Path, config: ModelConfig, positions: int, dtype: str
) -> None:
    of_family = family(config.model_type).gguf
    writer.add_type("model")
    writer.add_name(as_path(source).resolve().name)
    licence = stated_licence(source)
    if licence is None and directories.is_run(source):
        licence = training_facts(source).get("Source", {}).get("licence")
    if licence:
        writer.add_license(str(licence))
    mostly = "ALL_F32" if dtype == "f32" else f"MOSTLY_{dtype.upper()}"
    writer.add_file_type(gguf.LlamaFileType[mostly])
    if dtype[0] == "q":
        writer.add_quantization_version(VERSION)
    fields = {
        "context_length": positions,
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.mlp_width,
        "attention.head_count": config.heads,
        **of_family.fields(config),
    }
    for name, value in fields.items():
        _add(writer, f"{of_family.architecture}.{name}", value)


def _add(writer: Any, name: str, value: Any) -> None:
    adders = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{adders[type(value)]}")(name, value)


def _write(gguf: Any, writer: Any, plan: dict[str, _Written]) -> dict[str, tuple]:
    """Write the file; return shape, format and checksum of each tensor."""
    kinds = {name: gguf.GGMLQuantizationType[tensor.dtype.upper()] for name, tensor in plan.items()}
    for name, tensor in plan.items():
        in_bytes = gguf.quant_shape_to_byte_shape(tensor.shape, kinds[name])
        size = int(np.prod(in_bytes))
        writer.add_tensor_info(name, in_bytes, np.dtype(np.uint8), size, kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    sums = {}
    for name, (shape, dtype, get) in plan.items():
        tensor = np.ascontiguousarray(get(), np.float32)
        largest = float(np.abs(tensor).max())
        if dtype not in ("f32", "bf16") and largest > MOST:
            got = f"tensor {name} has {largest:.6g}, more than {dtype} can hold"
            raise InputError(f"{got}; choose bf16 or f32")
        numbers = np.ascontiguousarray(gguf.quantize(tensor, kinds[name]))
        writer.write_tensor_data(numbers)
        sums[name] = shape[::-1], kinds[name], zlib.crc32(numbers.reshape(-1).view(np.uint8).data)
    return sums


def _check_written(gguf: Any, path: Path, sums: dict[str, tuple]) -> None:
    reader = gguf.GGUFReader(path)
    got = {
        tensor.name: (
            tuple(tensor.shape.tolist()),
            tensor.tensor_type,
            zlib.crc32(np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8).data),
        )
        for tensor in reader.tensors
    }
    if got != sums:
        raise OSError(f"{path} does not read back as it was written; check the disk")
