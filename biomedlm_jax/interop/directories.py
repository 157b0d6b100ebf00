"""Directories of models: what kind one is, its config and its tokenizer.

A run's config.json has a `model` group, a Hugging Face directory's has a `model_type`. For a
fine-tuning run every function here reads `RUN/model/`, a run directory of its own.
"""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from biomedlm_jax.buckets import as_path
from biomedlm_jax.corpus.tokenizer import load_tokenizer, special_id
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import FAMILIES, config_from_hf, family, make_config
from biomedlm_jax.settings import check_object
from biomedlm_jax.training.provenance import RUN_FILE

RUN, HUGGING_FACE = "run", "Hugging Face"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"  # how a model decodes, by transformers' names
TRAINING_FILE = "training.json"  # of an export: how its source states that it was trained
# Entries of a training record that name places on the machine, by group.
PLACES = {
    "started_from": ("path",),
    "data": ("path", "train", "dev"),
    "task": ("path", "train_path"),
    "facts": ("source",),
}
HEAD_ENTRY = "biomedlm_jax_head"  # of an exported head's config.json; a run's is `head`
MODEL_FOLDER = "model"  # of a fine-tuning run
IDS = ("bos_token_id", "eos_token_id")
ADAPTER = "adapter_config.json"  # of peft
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
OTHER_TOKENIZERS = (
    "tekken.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
)


def model_directory(path: str | Path) -> Path:
    """Return RUN/model for a fine-tuning run, `path` itself for any other directory.

    Raises InputError for a fine-tuning run that has not finished an epoch.
    """
    path = as_path(path)
    if (path / RUN_FILE).exists() and not (path / CONFIG).exists():
        if read_json(path / RUN_FILE).get("recipe") == "pretrain":
            raise InputError(f"{path / CONFIG} is missing; run the run's command again to write it")
        if not (path / MODEL_FOLDER / CONFIG).exists():
            when = f"fine-tuning writes {path / MODEL_FOLDER} after an epoch"
            raise InputError(f"{path} has no model yet; {when}")
        return path / MODEL_FOLDER
    return path


def read_config(path: str | Path) -> dict:
    """Return the config.json of a directory; raises InputError."""
    if not as_path(path).is_dir():
        hub = str(path).count("/") == 1 and not str(path).startswith((".", "/"))
        advice = f"; download it first: hf download {path} --local-dir DIR" if hub else ""
        raise InputError(f"no such directory: {path}{advice}")
    file = model_directory(path) / CONFIG
    if not file.exists():
        if (as_path(path) / ADAPTER).exists():
            fix = f"biomedlm import-hf --source={path} --base={_base_of(path)} --out=RUN"
            got = f"{path} is a PEFT adapter, without the model that it changes"
            raise InputError(f"{got}; merge it first: {fix}, then use RUN")
        raise InputError(f"{path} has no {CONFIG}; expected a run or Hugging Face directory")
    return read_json(file)


def _base_of(adapter: str | Path) -> str:
    """Return what --base of import-hf must be for an adapter; DIR if it names none."""
    named = read_json(as_path(adapter) / ADAPTER).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return "DIR"
    on_hub = named.count("/") == 1 and not named.startswith((".", "/"))
    if as_path(named).is_dir():
        return named
    return f"hf://{named}" if on_hub else "DIR"


def kind_of(path: str | Path) -> str:
    """Return RUN or HUGGING_FACE, by config.json; raises InputError."""
    config = read_config(path)
    if isinstance(config.get("model"), dict):
        return RUN
    if "model_type" in config:
        return HUGGING_FACE
    neither = "neither a model group (a run) nor a model_type (Hugging Face)"
    raise InputError(f"{as_path(path) / CONFIG} has {neither}")


def _is_kind(path: str | Path, *, kind: str) -> bool:
    with contextlib.suppress(ValueError, FileNotFoundError):
        return kind_of(path) == kind
    return False


is_run = functools.partial(_is_kind, kind=RUN)
is_hugging_face = functools.partial(_is_kind, kind=HUGGING_FACE)


def model_config(path: str | Path, **execution) -> ModelConfig:
    """Return the model config of a run or Hugging Face directory.

    `execution` sets kernel, dtype and dropout rates: those of the run suit its own machine. It may
    also set `eos_token_id`, `bos_token_id` and `vocab_size` in place of a Hugging Face directory's.
    Raises InputError for any other name.
    """
    config, run = read_config(path), kind_of(path) == RUN
    fields = config["model"] if run else config
    try:
        cls = family(fields.get("model_type")).config
    except InputError as error:
        raise InputError(f"{Path(path) / CONFIG}: {error}") from None
    names = [field.name for field in dataclasses.fields(cls)]
    allowed = [name for name in names if name in cls.free_names() or "dropout" in name]
    allowed += [] if run else [*IDS, "vocab_size"]
    if "vocab_size" in execution:
        fields = config = {**config, "vocab_size": execution["vocab_size"]}
    if not run and (as_path(path) / ADAPTER).exists():
        fix = "merge the adapter with peft's merge_and_unload, or remove the file"
        raise InputError(f"{path} has {ADAPTER}, which transformers applies to the weights; {fix}")
    unknown = sorted(set(execution) - set(allowed))
    if unknown:
        raise InputError(f"got {unknown}; expected settings of execution: {', '.join(allowed)}")
    try:
        if not run:
            given = {name: execution[name] for name in IDS if name in execution}
            if family(fields["model_type"]).ids_of_tokenizer and not _has_pad(config):
                config = {**config, "pad_token_id": None}
            return config_from_hf(config | given, **{**_ids(path, config, given), **execution})
        kept = {name: v for name, v in fields.items() if name not in cls.free_names()}
        return make_config(kept, **execution)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _ids(path: str | Path, config: dict, given: dict) -> dict[str, Any]:
    """Return bos and eos where config.json has none or they are given; InputError if out of range.

    Without eos_token_id in config.json it is that of the tokenizer, if there is one.
    """
    size, result = config.get("vocab_size"), {}
    if type(size) is not int:
        return {}
    bad = {name: config[name] for name in IDS if not _in_range(config.get(name), size)}
    if "eos_token_id" in given:
        result["more_eos_token_ids"] = ()
        result |= {"bos_token_id": given["eos_token_id"]} if "bos_token_id" in bad else {}
    end = family(config["model_type"]).absent_ids.get("eos_token_id", size)
    absent = "eos_token_id" not in config and end < size
    missing = config.get("eos_token_id") in (None, []) and not absent
    wrong = [name for name in bad if name not in {**result, **given}]
    if not (missing or wrong):
        return result
    tokenizer = _tokenizer(path)
    end = None if tokenizer is None else special_id(tokenizer, "eos_token")
    if wrong:
        name = wrong[-1]
        advice = "" if end is None else f", such as that of the tokenizer, {end}"
        fix = f"import it with biomedlm import-hf --{name}=ID{advice}"
        got = f"{as_path(path) / CONFIG} has {name}={bad[name]!r} and vocab_size={size}"
        raise InputError(f"{got}; {fix}")
    return result | ({"eos_token_id": end} if end is not None and end < size else {})


def tokenizer_ids(
    path: str | Path, given: Mapping[str, int]
) -> tuple[dict[str, int], list[str], int]:
    """Return what the tokenizer of a Hugging Face directory states where config.json contradicts.

    That is: bos and eos by their names in config.json, without those `given`; one line about each,
    and about a pad id that is none; and how many ids of the tokenizer are after the vocabulary.
    Only a family whose ids are those of the tokenizer has the first two.
    """
    config, ids, lines = read_config(path), dict(given), []
    of_type, tokenizer, size = family(config["model_type"]), _tokenizer(path), config["vocab_size"]
    if tokenizer is None or type(size) is not int:
        return ids, lines, 0
    entries = 1 + max(tokenizer.get_vocab().values(), default=-1)
    names = IDS if of_type.ids_of_tokenizer else ()
    for name in names:
        theirs = config.get(name, of_type.absent_ids.get(name))
        here = special_id(tokenizer, name.removesuffix("_id"))
        stated = theirs if isinstance(theirs, list) else [theirs]
        if here is None or theirs is None or name in given:
            continue
        if here not in stated:
            token = tokenizer.id_to_token(here)
            lines.append(f"{name} is {here}, the tokenizer's {token}; {CONFIG} has {theirs}")
            ids[name] = here
    more = max(0, entries - size)
    if names and not _has_pad({**config, "vocab_size": size + more}):
        lines.append(f"pad_token_id is none; {CONFIG} has {config['pad_token_id']!r}")
    return ids, lines, more


def _has_pad(config: dict) -> bool:
    """Return whether the pad id of config.json is one, or absent; some have -1."""
    size = config.get("vocab_size")
    return type(size) is not int or _in_range(config.get("pad_token_id"), size)


def _in_range(ids: Any, size: int) -> bool:
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    return all(type(i) is int and 0 <= i < size for i in ids)


def training_record(path: str | Path) -> dict[str, Any]:
    """Return run.json, or an export's training.json, and the facts, without places; {} if none.

    Raises InputError if a file cannot be read, or facts are no object.
    """
    path = model_directory(path)
    record: dict[str, Any] = {"facts": read_config(path).get("facts") or {}}
    _check_facts(record, path / CONFIG)
    files = [path / TRAINING_FILE]
    if kind_of(path) == RUN:
        of_run = path.resolve().parent if path.resolve().name == MODEL_FOLDER else path
        files += [of_run / RUN_FILE, path / RUN_FILE]
    for file in files:
        record |= read_json(file) if file.exists() else {}
        _check_facts(record, file)
    record = _without_places(record)
    record["facts"] = _without_places(record["facts"] or {})
    stated = record != {"facts": {}}
    return {"started_from": record["facts"].get("started_from"), **record} if stated else {}


def _check_facts(record: dict[str, Any], file: Path) -> None:
    """Raise InputError unless the groups that are read by name are objects."""
    for group in ("facts", "started_from", "task"):
        check_object(record.get(group), f"{file} has {group}")
    facts = record["facts"] or {}
    check_object(facts.get("started_from"), f"{file} has facts.started_from")
    earlier = facts.get("earlier") or []
    for one in earlier if isinstance(earlier, list) else [0]:
        check_object(one or 0, f"{file} has an entry of facts.earlier")


def _without_places(groups: dict[str, Any]) -> dict[str, Any]:
    result = dict(groups)
    for group, names in PLACES.items():
        if isinstance(groups.get(group), dict):
            result[group] = {k: v for k, v in groups[group].items() if k not in names}
    return result


def head_entry(path: str | Path) -> object | None:
    """Return what config.json states about the head; None for a language model."""
    config = read_config(path)
    return config.get("head" if isinstance(config.get("model"), dict) else HEAD_ENTRY)


def refuse_heads(path: str | Path) -> None:
    """Raise InputError if the directory holds a model with a head: a language model is needed."""
    head = head_entry(path)
    if head is not None:
        kind = head.get("kind", "unknown") if isinstance(head, dict) else "unknown"
        fix = f"use biomedlm evaluate --model={path}, or biomedlm export-hf --model={path}"
        got = f"a fine-tuned model with a {kind} head, not a language model"
        raise InputError(f"{path} is {got}; {fix}")
    classifiers = {one.architectures["classification"] for one in FAMILIES.values()}
    names = read_config(path).get("architectures") or []
    if not isinstance(names, list):
        raise InputError(f"{path} has architectures={names!r}; expected a list of names")
    for name in names:
        if name in [*classifiers]:
            got = f"a {name} from another library, without a description of its rows"
            fix = f"add {HEAD_ENTRY} to its {CONFIG} as export-hf writes it, then evaluate it"
            raise InputError(f"{path} is {got}; {fix}")


def read_tokenizer(
    path: str | Path, config: ModelConfig, *, required: bool = False
) -> Tokenizer | None:
    """Return the tokenizer of a directory, or None if it has none.

    Raises InputError if it does not fit the model, or is `required` and absent.
    """
    tokenizer = _tokenizer(path)
    if tokenizer is None:
        if required:
            raise InputError(f"{path} has no tokenizer; add the one that it was fine-tuned with")
        return None
    check_tokenizer(tokenizer, config)
    return tokenizer


def _tokenizer(path: str | Path) -> Tokenizer | None:
    path = model_directory(path)
    there = any((path / name).exists() for name in TOKENIZER_FILES)
    other = [name for name in OTHER_TOKENIZERS if (path / name).exists()]
    if other and not there:  # not "no tokenizer": an export would lose it
        fix = "convert it: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        got = f"{path} has a tokenizer in {other[0]}, which cannot be read here"
        raise InputError(f"{got}; expected tokenizer.json or vocab.json, {fix}")
    return load_tokenizer(path) if there else None


def check_tokenizer(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Raise InputError unless the tokenizer's ids are the model's.

    Two differences are as in transformers, for a tokenizer that was read from a directory. Special
    tokens but the end of text may have ids after the vocabulary: texts that spell them are refused
    later; not in a family whose ids are the tokenizer's. The end of text may be another than the
    model's, which ends answers: a warning.
    """
    source, end = vars(tokenizer).get("source"), special_id(tokenizer, "eos_token")
    of_type = family(config.model_type)
    exempt = source.special.values() if source and not of_type.ids_of_tokenizer else ()
    special = {tokenizer.token_to_id(token) for token in exempt}
    largest = max(
        (i for i in tokenizer.get_vocab().values() if i == end or i not in special), default=0
    )
    fix = "use the tokenizer that the model was trained with"
    if largest >= config.vocab_size:
        limit = f"the model's vocabulary ends at {config.vocab_size - 1}"
        more = ", or import it with --resize_embeddings" if source else ""
        raise InputError(f"the tokenizer has id {largest}, and {limit}; {fix}{more}")
    begin = special_id(tokenizer, "bos_token")
    if source and of_type.ids_of_tokenizer and begin not in (None, config.bos_token_id):
        name = f"the tokenizer has {tokenizer.id_to_token(begin)} as id {begin}"
        got = f"{name}, and the model's bos_token_id is {config.bos_token_id}"
        warnings.warn(f"{got}: import it to have the tokenizer's", RuntimeWarning, stacklevel=1)
    if end is None or end in config.end_ids:
        return
    name = tokenizer.id_to_token(end)
    got = f"the tokenizer has {name} as id {end}, and the model's eos_token_id is"
    if source is None:
        raise InputError(f"{got} {config.eos_token_id}; {fix}")
    ids = " or ".join(map(str, config.end_ids))
    stop = f"answers end at id {ids}, not at {name}" if ids else "no id ends an answer"
    # Of this line, not of the caller's: a command checks twice, and Python prints a line's once.
    warnings.warn(f"{got} {config.eos_token_id}: {stop}", RuntimeWarning, stacklevel=1)
