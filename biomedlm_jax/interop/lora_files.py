"""Directories of LoRA factors in the format of PEFT: written from a run, merged into a base.

A linear kernel of ours is one matrix of Hugging Face's or, as GPT-2's query, key and value, a part
of one. Of a joined matrix the adapter is joined: factors A stacked, B block-diagonal, with the rank
and the alpha of all parts, so that alpha / rank is unchanged. Zeros add nothing: it is exact.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from scipy.linalg import block_diag

from biomedlm_jax.buckets import as_path
from biomedlm_jax.corpus.tokenizer import save_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json, write_json, write_text
from biomedlm_jax.interop import directories, finetuned, hub, weights
from biomedlm_jax.interop.directories import ADAPTER, is_hugging_face, is_run
from biomedlm_jax.interop.modelcard import source_facts
from biomedlm_jax.interop.shards import write_safetensors
from biomedlm_jax.interop.tensorfiles import TensorFiles, check_sums
from biomedlm_jax.mesh import abstract_sharded, one_device
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import abstract_model, family
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.model.lora import Adapter
from biomedlm_jax.model.vocabulary import with_added_tokens
from biomedlm_jax.outputs import atomic_directory, check_output, written_locally
from biomedlm_jax.settings import check_object
from biomedlm_jax.training.checkpoint import MODEL, TRAINED, load_tree, saved_shapes
from biomedlm_jax.training.provenance import RUN_FILE
from biomedlm_jax.training.saved_steps import FOLDER, latest_step, steps

TENSORS = "adapter_model.safetensors"
PREFIX = "base_model.model."
ROWS = ".token_adapter.trainable_tokens_delta"
# Entries of adapter_config.json that change nothing in what is computed, or are read here.
READ = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "trainable_token_indices"}
INERT = {"auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "task_type"}
INERT |= {"peft_type", "peft_version", "lora_dropout", "target_modules", "exclude_modules"}
INERT |= {"layers_pattern", "layers_to_transform", "fan_in_fan_out", "modules_to_save", "bias"}
INERT |= {"init_lora_weights", "megatron_core", "qalora_group_size", "ensure_weight_tying"}
# Initialisations that leave the base's weights as they are.
INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")
CARD = """---
library_name: peft{front}
---

# {name}

LoRA factors of rank {rank} for the {model_type} model `{base}`, exported by biomedlm_jax.

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("DIR", attn_implementation="eager")
```

{rows}`biomedlm import-hf --source=DIR --base=BASE --out=RUN` merges them into the base.
"""
RESIZED = """The tokenizer here may have tokens that the base lacks; this class adds rows for them.
Before `PeftModel.from_pretrained`, call `resize_token_embeddings(len(tokenizer))` on the base.

"""


def is_adapter(path: str | Path) -> bool:
    """Return whether a directory has LoRA factors, and not a model."""
    path = as_path(path)
    return (path / ADAPTER).exists() and not (path / directories.CONFIG).exists()


class Factors(NamedTuple):
    """The update of a matrix: scale * B A, [out, in]."""

    a: np.ndarray
    b: np.ndarray
    scale: float


class LoRAFiles:
    """What a directory in PEFT's format changes in a model of `config`, tensor by tensor.

    Raises InputError for another method, a variant of LoRA, or tensors that do not fit the model.
    """

    def __init__(self, directory: Path, config: ModelConfig):
        self.directory, self._of_type = directory, family(config.model_type)
        self._shapes = weights.tensor_shapes(abstract_model(config))
        self._where = weights.hf_tensor_map(abstract_model(config))
        self._vocabulary = weights.vocabulary_tensors(abstract_model(config))
        self._old_size = config.vocab_size
        self.settings = read_settings(directory)
        self.factors: dict[str, Factors] = {}
        self.whole: dict[str, np.ndarray] = {}
        self.rows: dict[str, tuple[list[int], np.ndarray]] = {}
        halves: dict[str, dict[str, np.ndarray]] = {}
        tied: dict[str, np.ndarray] = {}
        for key, tensor in _read(directory).items():
            self._sort(key, tensor, halves, tied)
        for name, tensor in tied.items():
            if name not in self.whole or not np.array_equal(self.whole[name], tensor):
                self._refuse("has an output head that is not the embedding", "the base ties them")
        for module, pair in halves.items():
            self._add(module, pair)
        if not (self.factors or self.whole or self.rows):
            raise InputError(f"{directory / TENSORS} has no factors; save the adapter again")
        self.vocab_size = self._size()

    def applied(self, read: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
        """Return a `read` of the base's tensors with the changes: merged."""

        def merged(name: str) -> np.ndarray:
            tensor = self.whole[name] if name in self.whole else read(name)
            if name in self.factors:
                a, b, scale = self.factors[name]
                update = scale * (b @ a)
                tensor = tensor + (update if self._where[name].transposed else update.T)
            if name in self._vocabulary and len(tensor) < self.vocab_size:
                tensor = np.pad(tensor, ((0, self.vocab_size - len(tensor)), (0, 0)))
            if name in self.rows:
                tensor = np.array(tensor)
                indices, values = self.rows[name]
                tensor[indices] = values
            return tensor

        return merged

    def _sort(self, key: str, tensor: np.ndarray, halves: dict, tied: dict) -> None:
        name = key.removeprefix(PREFIX)
        if match := re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", name):
            halves.setdefault(match[1], {})[match[2]] = tensor
        elif name.endswith(ROWS):
            module = name.removesuffix(ROWS)
            self.rows[self._tensor(module, key)] = (self._indices(module), tensor)
        elif name.endswith(".weight") and ".lora_" not in name:
            module = name.removesuffix(".weight").removesuffix(".base_layer")
            full = f"{module}.weight".removeprefix(self._of_type.prefix)
            if full in self._of_type.tied and full not in self._shapes:
                tied[self._of_type.tied[full]] = tensor  # written beside the embedding that it is
                return
            self.whole[self._tensor(module, key)] = tensor
        else:
            self._refuse(f"has {key}", "a tensor of another kind than LoRA's factors")

    def _tensor(self, module: str, key: str) -> str:
        name = f"{module}.weight".removeprefix(self._of_type.prefix)
        if name not in self._shapes:
            self._refuse(f"has {key}", "and the base model has no such tensor")
        return name

    def _add(self, module: str, pair: Mapping[str, np.ndarray]) -> None:
        name = self._tensor(module, f"{module}.lora_A.weight")
        shape = self._shapes[name]
        shape = shape if self._where[name].transposed else shape[::-1]
        rank = self._pattern("rank_pattern", module, "r")
        alpha = self._pattern("alpha_pattern", module, "lora_alpha")
        got = {half: tensor.shape for half, tensor in pair.items()}
        if got != (wanted := {"A": (rank, shape[1]), "B": (shape[0], rank)}):
            self._refuse(f"has factors {got} of {module}", f"expected {wanted}")
        self.factors[name] = Factors(pair["A"], pair["B"], alpha / rank)

    def _pattern(self, patterns: str, module: str, default: str) -> Any:
        """Return a module's number: its own, or that of all."""
        value = self.settings[default]
        for pattern, number in (self.settings.get(patterns) or {}).items():
            try:
                matches = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error:
                self._refuse(f"has {patterns} {pattern!r}", "which is no regular expression")
            if matches:
                value = number
                break
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            self._refuse(f"has {default}={value!r} for {module}", "expected a number above 0")
        return value

    def _indices(self, module: str) -> list[int]:
        stated = self.settings.get("trainable_token_indices")
        named = stated if isinstance(stated, dict) else {module: stated}
        last = module.rpartition(".")[2]
        indices = next((v for k, v in named.items() if k in (module, last)), None)
        if not isinstance(indices, list) or not all(type(i) is int and i >= 0 for i in indices):
            self._refuse(f"has trainable_token_indices={stated!r}", f"expected ids for {module}")
        return indices

    def _size(self) -> int:
        """Return the vocabulary after the change; every new row must have its values."""
        size = max([self._old_size, *(1 + max(i, default=-1) for i, _ in self.rows.values())])
        for name, tensor in self.whole.items():
            more = name in self._vocabulary and tensor.shape[1:] == self._shapes[name][1:]
            if not more and tensor.shape != self._shapes[name]:
                got = f"{list(tensor.shape)}, and the base {list(self._shapes[name])}"
                self._refuse(f"has {name} of shape {got}", "it is of another base")
            size = max(size, len(tensor) if more else 0)
        for name in self._vocabulary:
            indices, values = self.rows.get(name, ([], np.zeros((0, self._shapes[name][1]))))
            if values.shape != (len(indices), self._shapes[name][1]):
                self._refuse(f"has rows {list(values.shape)} of {name}", f"for {len(indices)} ids")
            covered = {*indices} | {*range(len(self.whole.get(name, ())) or self._old_size)}
            if missing := sorted({*range(size)} - covered):
                self._refuse(f"has no row {missing[0]} of {name}", f"and {size} ids in all")
        return size

    def _refuse(self, got: str, reason: str) -> NoReturn:
        raise InputError(f"{self.directory} {got}: {reason}")


def read_settings(directory: Path) -> dict[str, Any]:
    """Return adapter_config.json; InputError by name for what is not plain LoRA."""
    settings = read_json(directory / ADAPTER)
    problem, fix = "", "merge it with peft's merge_and_unload, and import that"
    kind, task = settings.get("peft_type"), settings.get("task_type")
    for name in ("use_dora", "use_rslora"):
        if settings.get(name):
            problem = f"{name}, a variant of LoRA"
    if kind != "LORA":
        problem = f"peft_type={kind!r}"
    elif task not in (None, "CAUSAL_LM"):
        problem = f"task_type={task!r}, a model with a head"
    elif settings.get("bias", "none") != "none" or settings.get("lora_bias"):
        problem = "trained biases"
    elif settings.get("init_lora_weights") not in INITIALISATIONS:
        problem = f"init_lora_weights={settings['init_lora_weights']!r}, which changes the base"
    other = [name for name, value in settings.items() if value and name not in READ | INERT]
    problem = problem or (f"{other[0]}={settings[other[0]]!r}" if other else "")
    if problem:
        raise InputError(f"{directory / ADAPTER} has {problem}; expected plain LoRA: {fix}")
    for name in ("rank_pattern", "alpha_pattern"):
        check_object(settings.get(name), f"{directory / ADAPTER} has {name}")
    return {"r": 8, "lora_alpha": 8, **settings}  # peft's defaults


def _read(directory: Path) -> dict[str, np.ndarray]:
    file = directory / TENSORS
    if not file.exists():
        fix = "save the adapter with peft, which writes safetensors"
        raise InputError(f"{directory} has {ADAPTER} and no {TENSORS}; {fix}")
    check_sums(directory, {TENSORS, ADAPTER})
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise InputError(f"{file} is not a complete safetensors file: {error}") from None
    result = {}
    for name, tensor in tensors.items():
        if tensor.dtype.kind != "f" and tensor.dtype.name != "bfloat16":
            raise InputError(f"{file} has {name} of dtype {tensor.dtype}; expected floats")
        result[name] = tensor.astype(np.float32)
        if not np.isfinite(result[name]).all():
            raise InputError(f"{file} has numbers in {name} that are not finite")
    return result


def import_adapter(
    source: Path,
    base: str | Path | None,
    path: str | Path,
    *,
    overwrite: bool = False,
    notify: Callable[[str], None] = print,
    **ids: int,
) -> Path:
    """Merge the LoRA factors at `source` into `base`, as the run directory `path`.

    `base` is a run or a Hugging Face directory, by default that which the adapter names. The
    tokenizer is that of `source` if it has one. Raises InputError if they do not fit together.
    """
    check_output(path, replaceable=is_run, overwrite=overwrite)
    named = read_settings(source).get("base_model_name_or_path")
    base = named if base is None else hub.download(base)
    if base is None or not as_path(base).is_dir():
        got = f"{source} is a PEFT adapter of {named!r}"
        raise InputError(f"{got}, which is no directory here; pass --base=DIR")
    directories.refuse_heads(base)
    given, lines = dict(ids), []
    if is_hugging_face(base):
        given, lines, _ = directories.tokenizer_ids(base, ids)
    config = directories.model_config(base, **given)
    changes, abstract = LoRAFiles(source, config), finetuned.abstract_on(config, None, None)
    grown = with_added_tokens(config, changes.vocab_size - config.vocab_size)
    own = any((source / name).exists() for name in directories.TOKENIZER_FILES)
    tokenizer = directories.read_tokenizer(source if own else base, grown)
    for line in lines:
        notify(line)
    if is_hugging_face(base):
        files = TensorFiles(base, config)
        weights.check_tensors(files.shapes, abstract, where=str(base))
        facts, read = source_facts(files, config, notify), files.read
    else:
        model = finetuned.read_weights(base, abstract)
        facts, read = {"path": str(as_path(base).absolute())}, weights.tensor_reader(model)
    facts |= {"adapter": str(source.absolute())}
    generation = directories.model_directory(base) / directories.GENERATION_CONFIG
    kept = {generation.name: read_json(generation)} if generation.is_file() else {}
    merged = weights.read_model(finetuned.abstract_on(grown, None, None), changes.applied(read))
    notify(f"merged {len(changes.factors)} LoRA updates of the PEFT adapter {source} into {base}")
    options: dict[str, Any] = {"replaceable": is_run, "overwrite": overwrite, "files": kept}
    return finetuned.save_finetuned(path, merged, tokenizer, facts={"source": facts}, **options)


def export_adapter(
    run: str | Path,
    path: str | Path,
    *,
    base: str | None = None,
    step: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the LoRA factors of a run as the directory `path` for PEFT, and return it.

    Rows of added tokens become `trainable_token_indices`. `base` is what the adapter names as its
    base, by default the directory that the run started from. `step` is a checkpoint: by default
    that of the run's model. Raises InputError for a run without LoRA, with a head, or without the
    step, and OSError if the directory does not read back as it was written.
    """
    check_output(path, replaceable=is_adapter, overwrite=overwrite)
    run = as_path(run).absolute()
    config, lora, started = _record(run)
    base = str(started.get("path") or "") if base is None else base
    if not base:
        raise InputError(f"{run} does not state its base; pass --base=DIR")
    adapter = _load(run, config, step=step, **lora)
    tensors, settings = to_peft(adapter, config, **lora)
    settings = {"base_model_name_or_path": base, **settings}
    tokenizer = directories.read_tokenizer(run, config)
    with (
        atomic_directory(path, replaceable=is_adapter, overwrite=overwrite) as written,
        written_locally(written) as new,
    ):
        write_json(new / ADAPTER, settings)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        write_safetensors(new / TENSORS, shapes, tensors.__getitem__)
        if tokenizer is not None:
            save_tokenizer(tokenizer, new, model_max_length=config.context_length)
        rows = RESIZED if settings["trainable_token_indices"] else ""
        here = as_path(base).is_dir()
        about = {
            "front": "" if here else f"\nbase_model: {base}",
            "base": as_path(base).name if here else base,
            "name": as_path(path).name,
            "model_type": config.model_type,
        }
        write_text(new / "README.md", CARD.format(rank=lora["rank"], rows=rows, **about))
        _check_written(new, tensors, settings)
    if is_run(base):
        fix = "export it, and name that directory with --base"
        warnings.warn(
            f"the adapter names {base}, a run directory, which peft cannot read; {fix}",
            RuntimeWarning,
            stacklevel=2,
        )
    return as_path(path)


def to_peft(
    adapter: Adapter, config: ModelConfig, *, rank: int, alpha: float
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return PEFT's tensors and settings of an adapter of a language model of `config`."""
    of_type, blocks = family(config.model_type), type(abstract_model(config)).BLOCKS
    factors: dict[str, Any] = dict(adapter.lora.factors)
    tensors, targets, transposed = {}, [], []
    ranks, alphas = {}, {}
    for name, tensor in of_type.tensors.items():
        parts = [leaf.removeprefix(f"{blocks}.").removesuffix(".kernel") for leaf in tensor.leaves]
        if not {*parts} <= {*factors}:
            continue
        arrays = [jax.device_get((factors[p]["a"][...], factors[p]["b"][...])) for p in parts]
        module = name.removesuffix(".weight")
        target = module.partition("*.")[2]
        targets.append(target)
        transposed.append(tensor.transposed)
        if len(parts) > 1:
            ranks[target], alphas[target] = len(parts) * rank, len(parts) * alpha
        for layer in range(config.layers):
            full = PREFIX + weights.file_name(module.replace("*", str(layer)), config)
            a = np.concatenate([a[layer].T for a, _ in arrays])
            tensors[f"{full}.lora_A.weight"] = np.ascontiguousarray(a)
            b = block_diag(*[b[layer].T for _, b in arrays])
            tensors[f"{full}.lora_B.weight"] = np.asarray(b, np.float32)
    indices = {}
    for leaf, variable in adapter.rows.items():
        (name,) = [name for name, tensor in of_type.tensors.items() if tensor.leaves == (leaf,)]
        module = weights.file_name(name, config).removesuffix(".weight")
        rows = np.asarray(variable[...])
        tensors[f"{PREFIX}{module}{ROWS}"] = rows
        last = config.vocab_size
        indices[module.rpartition(".")[2]] = [*range(last - len(rows), last)]
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        # Of layers that store [in, out].
        "fan_in_fan_out": not all(transposed),
        "trainable_token_indices": indices or None,
        "modules_to_save": None,
        "bias": "none",
        "inference_mode": True,
    }
    return tensors, settings


def _record(run: Path) -> tuple[ModelConfig, dict[str, Any], dict[str, Any]]:
    """Return a run's config, the rank and alpha of its LoRA, and what it started from."""
    directories.read_config(run)
    record = read_json(run / RUN_FILE) if (run / RUN_FILE).exists() else {}
    lora = check_object(record.get("lora"), f"{run / RUN_FILE} has lora")
    rank, alpha = lora.get("rank", 0), lora.get("alpha", 1)
    if not rank:
        fix = "leave out --adapter to export the whole model"
        raise InputError(f"{run} is no run that was trained with LoRA; {fix}")
    head = finetuned.read_head(run)
    if head is not None:
        fix = "leave out --adapter, which merges the factors"
        raise InputError(f"{run} has a {head.kind} head, which an adapter here has not; {fix}")
    started = check_object(record.get("started_from"), f"{run / RUN_FILE} has started_from")
    return directories.model_config(run), {"rank": rank, "alpha": float(alpha)}, started


def _load(run: Path, config: ModelConfig, *, step: int | None, rank: int, alpha: float) -> Adapter:
    """Return the adapter of a run's checkpoint."""
    model = directories.model_directory(run)
    item = TRAINED if model == run else MODEL  # pre-training saves the merged model, too
    wanted, kept = latest_step(model) if step is None else step, steps(run)
    if wanted not in kept:
        got = f"{run} keeps no checkpoint of step {wanted}, but of {kept or 'none'}"
        raise InputError(f"{got}; choose --step, or leave out --adapter")
    sizes = saved_shapes(run / FOLDER / str(wanted) / item)
    rows = [text for name, text in sizes.items() if name.startswith("rows.")]
    added = int(rows[0].partition("[")[2].partition(",")[0]) if rows else 0

    def make(model: LanguageModel) -> Adapter:
        return Adapter(model, added=added, rank=rank, alpha=alpha, key=jax.random.key(0))

    abstract = abstract_sharded(make, one_device(), abstract_model(config))
    return load_tree(run, abstract, step=wanted, item=item)


def _check_written(directory: Path, tensors: Mapping[str, np.ndarray], settings: Mapping) -> None:
    back = load_file(directory / TENSORS)
    same = {*back} == {*tensors} and read_json(directory / ADAPTER) == settings
    if not same or any(
        back[name].tobytes() != tensor.tobytes() for name, tensor in tensors.items()
    ):
        raise OSError(f"{directory} does not read back as it was written; check the disk")
