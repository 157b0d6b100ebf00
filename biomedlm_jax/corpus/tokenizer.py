"""The tokenizer: train, load, save and identify a byte-level BPE like BioMedLM's.

The recipe is that of the published script (stanford-crfm/BioMedLM, `tokenize/train_bpe.py`): all
256 bytes as the alphabet, no prefix space, pairs that occur at least twice. That script adds
`<|endoftext|>` afterwards, one entry past the model's embedding; here it is the last of exactly
`vocab_size` entries, as in the released tokenizer.
"""

import contextlib
import dataclasses
import gc
import hashlib
import json
import warnings
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from biomedlm_jax.buckets import as_path
from biomedlm_jax.corpus.huggingface_tokenizer import (
    GPT2,
    MODEL_FLAGS,
    REBUILT,
    build_tokenizer,
    byte_level,
)
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_json
from biomedlm_jax.integrity import SUMS
from biomedlm_jax.outputs import local_copy

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB_SIZE = 256 + 1  # every byte, and END_OF_TEXT
LARGEST_ID = 2**24
_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # Hugging Face's, GPT-2's
# What `save_tokenizer` writes of a tokenizer that was not read from a directory.
FILES = ("tokenizer.json", *_PAIRS[0], "tokenizer_config.json", "special_tokens_map.json")
# What transformers reads; `Source` keeps all of them.
SOURCE_FILES = (*FILES, "added_tokens.json", "chat_template.jinja", "chat_template.json")
# SentencePiece's, which llama.cpp converts; kept beside tokenizer.json until tokens are added.
PIECES = "tokenizer.model"
TEMPLATES = "additional_chat_templates"  # a folder of *.jinja


@dataclasses.dataclass(frozen=True)
class Source:
    """What a tokenizer that was read from a directory remembers of it."""

    files: Mapping[str, bytes]
    special: Mapping[str, str]  # tokens by name, such as eos_token
    state: str  # the tokenizer's JSON when it was read


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, show_progress: bool = False
) -> Tokenizer:
    """Train a byte-level BPE of exactly `vocab_size` entries, the last of them `<|endoftext|>`.

    Args:
      texts: the corpus, read once; memory grows with the number of distinct words.
      vocab_size: entries in total: 256 bytes, the merges, and `<|endoftext|>`.
      show_progress: show the progress bars of `tokenizers` on standard error.

    Raises:
      InputError: `vocab_size` is below 257, or the corpus has too few pairs to reach it.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        least = f"{MIN_VOCAB_SIZE}: 256 bytes and {END_OF_TEXT}"
        raise InputError(f"got vocab_size={vocab_size}; expected at least {least}")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )
    trained = _byte_level(models.BPE())
    trained.train_from_iterator(iter(texts), trainer)
    vocabulary = trained.get_vocab()
    if len(vocabulary) < vocab_size - 1:
        raise InputError(
            f"the corpus is too small for vocab_size={vocab_size}: its repeated pairs "
            f"make {len(vocabulary) + 1} entries; give more text, or at most that vocab_size"
        )
    vocabulary[END_OF_TEXT] = len(vocabulary)
    return _byte_level(models.BPE(vocab=vocabulary, merges=_merges(trained)))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer from a directory or from a tokenizer.json.

    A directory holds tokenizer.json (any kind of tokenizer), or the vocabulary and merges of a
    GPT-2: vocab.json and merges.txt, or encoder.json and vocab.bpe. It gives the ids of
    transformers' AutoTokenizer, added tokens included. A file is read as it is. Truncation and
    padding of a tokenizer.json are disabled. `save_tokenizer` writes the files of a directory as
    they are, `special_id` returns the ids of its bos, eos and pad tokens.

    Raises:
      InputError: there is no such path.
      InputError: the directory has no tokenizer, a file cannot be read, or transformers would build
        a tokenizer that cannot be built here.
    """
    with local_copy(path, _is_read) as local:
        return _load_tokenizer(local)


def _is_read(name: str) -> bool:
    return name in (*SOURCE_FILES, *_PAIRS[1], "config.json", PIECES) or name.startswith(
        f"{TEMPLATES}/"
    )


def _load_tokenizer(path: Path) -> Tokenizer:
    if not path.exists():
        raise InputError(f"no tokenizer at {path}: no such file or directory")
    whole = path / "tokenizer.json" if path.is_dir() else path
    pairs = [(path / entries, path / merges) for entries, merges in _PAIRS]
    pair = next((pair for pair in pairs if all(map(Path.exists, pair))), ())
    if not (whole.exists() or pair):
        known = ", ".join(["tokenizer.json", *(f"{v} with {m}" for v, m in _PAIRS)])
        raise InputError(f"no tokenizer in {path}; expected one of {known}")
    special = None
    try:
        if path.is_dir() and (whole.exists() or pair == pairs[0]):  # transformers reads no other
            tokenizer, special = build_tokenizer(path)
        elif whole.exists():
            tokenizer = Tokenizer.from_file(str(whole))
        else:
            tokenizer = _byte_level(models.BPE.from_file(*map(str, pair)))
        entries = tokenizer.get_vocab()
    except (InputError, OSError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises Exception, and panics outside of it
        raise InputError(f"cannot read the tokenizer in {path}: {error}") from error
    _check_vocabulary(entries, path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if special is not None:
        vars(tokenizer)["source"] = Source(_source_files(path), special, tokenizer.to_str())
    return tokenizer


def _check_vocabulary(entries: Mapping[str, int], path: Path) -> None:
    # `tokenizers` counts up to the largest id to write its JSON, and takes either of two entries.
    if (largest := max(entries.values(), default=0)) > LARGEST_ID:
        got = f"the tokenizer in {path} has the id {largest}"
        raise InputError(f"{got}; expected ids up to {LARGEST_ID}, without large gaps")
    by_id = {index: entry for entry, index in entries.items()}
    for entry, index in entries.items() if len(by_id) < len(entries) else ():
        if by_id[index] != entry:
            got = f"the tokenizer in {path} has the id {index} twice: {entry!r}, {by_id[index]!r}"
            raise InputError(f"{got}; expected an id of its own for each entry")


def copy_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy that can get more tokens; it remembers the directory of the original."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    vars(copy).update(vars(tokenizer))
    return copy


def special_id(tokenizer: Tokenizer, name: str) -> int | None:
    """Return the id of the token `name`, such as "bos_token"; None if there is none.

    A tokenizer that was not read from a directory has `<|endoftext|>` as bos and eos.
    """
    source: Source | None = vars(tokenizer).get("source")
    default = END_OF_TEXT if name in ("bos_token", "eos_token") else None
    token = source.special.get(name) if source else default
    return None if token is None else tokenizer.token_to_id(token)


def prefix_token_id(tokenizer: Tokenizer, default: int) -> int:
    """Return the id that precedes a text: of the bos token, else eos token, else `default`."""
    ids = (special_id(tokenizer, name) for name in ("bos_token", "eos_token"))
    return next((i for i in ids if i is not None), default)


def prefix_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that the tokenizer's post-processor puts before a text; most put none."""
    encoded = tokenizer.encode("a")
    return encoded.ids[: encoded.sequence_ids.index(0)]


def save_tokenizer(
    tokenizer: Tokenizer,
    directory: str | Path,
    *,
    model_max_length: int | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the files that transformers reads, and return their paths.

    Files that the tokenizer was read from are written as they were, and tokenizer.json if there
    was none; tokens added since are added to the files that list them. For any other tokenizer
    `<|endoftext|>` is the beginning, end and unknown token; there is no padding token, as in
    BioMedLM. The directory is created if need be, and its other files are unchanged.

    Raises:
      InputError: one of the files exists and there is no `overwrite`, or `directory` is a file.
      InputError: the tokenizer is not a byte-level BPE, or lacks `<|endoftext|>`; or transformers
        would read another tokenizer from the files.
    """
    source: Source | None = vars(tokenizer).get("source")
    with _uncollected():
        if source:
            contents = _changed_files(source, tokenizer)
        else:
            contents = _new_files(tokenizer, model_max_length)
    directory = as_path(directory)
    paths = [directory / name for name in contents]
    for path in paths:
        if directory.is_file():
            raise InputError(f"{directory} is a file; name a directory")
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; name another directory")
    for path, content in zip(paths, contents.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    config = _json(contents.get("tokenizer_config.json"))
    if source is None and not (directory / "config.json").exists():
        return paths
    # The class may be that of the model's config.json, which may not be here, or another one.
    file = directory / "tokenizer_config.json"
    for name in (None, *REBUILT, "PreTrainedTokenizerFast"):
        if name:
            write_json(file, {**config, "tokenizer_class": name})
        if _reads_as(directory, tokenizer):
            return paths
    problem = f"transformers would read another tokenizer from {directory}"
    raise InputError(
        f"{problem}: its model_type has a class of its own; use that model's tokenizer"
    )


def _reads_as(directory: str | Path, tokenizer: Tokenizer) -> bool:
    with warnings.catch_warnings(), contextlib.suppress(ValueError):
        warnings.simplefilter("ignore")  # that of the source was enough
        states = (loaded := load_tokenizer(directory)).to_str(), tokenizer.to_str()
        return len({*states}) == 1 or _behaviour(loaded) == _behaviour(tokenizer)
    return False


def _behaviour(tokenizer: Tokenizer) -> tuple:
    """Return what decides ids and texts."""
    state = json.loads(tokenizer.to_str())
    words = state["post_processor"]
    # A template of the text alone is none.
    trivial = words is None or words["type"] == "ByteLevel" or not words.get("special_tokens", 1)
    around = None if trivial else words
    return _canonical_json(tokenizer, state), around, state["decoder"]


def _source_files(directory: Path) -> dict[str, bytes]:
    paths = [directory / name for name in SOURCE_FILES]
    paths += [directory / PIECES] if (directory / "tokenizer.json").exists() else []
    paths += sorted((directory / TEMPLATES).glob("*.jinja"))
    for path in paths:
        _check_link(path, directory)
    return {str(p.relative_to(directory)): p.read_bytes() for p in paths if p.is_file()}


def _check_link(path: Path, directory: Path) -> None:
    """Raise InputError for a link out of the directory: an export would publish its target.

    Snapshots of the Hub's cache are folders of links to models--*/blobs, which are allowed. So are
    links of the other files: they must be a tokenizer.
    """
    target, root = path.resolve(), directory.resolve()
    blobs = root.parents[1] / "blobs" if root.parent.name == "snapshots" else root
    unread = path.suffix == ".jinja" or path.name in ("chat_template.json", PIECES)
    if unread and not (target.is_relative_to(root) or target.is_relative_to(blobs)):
        got = f"{path} is a link to {target}, outside of {directory}"
        raise InputError(f"{got}; replace it with a copy")


def _json(content: bytes | None) -> dict:
    return json.loads(content) if content else {}


def _dump(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _changed_files(source: Source, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Return the files of the source, with the tokens that were added since."""
    files = dict(source.files)
    changed = tokenizer.to_str() != source.state
    if changed or "tokenizer.json" not in files:
        before = _json(files.get("tokenizer.json"))
        kept = {name: before[name] for name in ("truncation", "padding") if name in before}
        files["tokenizer.json"] = _dump({**json.loads(tokenizer.to_str()), **kept})
    if not changed:
        return files
    files.pop(PIECES, None)
    tokens = json.loads(tokenizer.to_str())["added_tokens"]
    config = _json(files.get("tokenizer_config.json"))
    if "added_tokens_decoder" in config:
        listed = {str(t.pop("id")): t for t in map(dict, tokens)}
        config["added_tokens_decoder"] = {**config["added_tokens_decoder"], **listed}
        files["tokenizer_config.json"] = _dump(config)
    if "added_tokens.json" in files:
        ids = {token["content"]: token["id"] for token in tokens}
        files["added_tokens.json"] = _dump({**_json(files["added_tokens.json"]), **ids})
    return files


def _new_files(tokenizer: Tokenizer, model_max_length: int | None) -> dict[str, bytes]:
    """Return the contents of `FILES`."""
    vocabulary, words = tokenizer.get_vocab(), tokenizer.pre_tokenizer
    byte_level = isinstance(words, pre_tokenizers.ByteLevel)
    if not (isinstance(tokenizer.model, models.BPE) and byte_level and END_OF_TEXT in vocabulary):
        kind = f"{type(tokenizer.model).__name__} with {type(words).__name__}"
        raise InputError(f"expected a byte-level BPE with {END_OF_TEXT}, got {kind}")
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    # transformers takes tokenizer.json as it is only for the second class.
    plain = tokenizer.normalizer is None and words.use_regex
    config = {
        "add_prefix_space": words.add_prefix_space,
        "clean_up_tokenization_spaces": False,  # it would make decoding lossy
        **({"model_max_length": model_max_length} if model_max_length else {}),
        "tokenizer_class": GPT2 if plain else "PreTrainedTokenizerFast",
        **special,
    }
    ordered = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
    merges = (f"{left} {right}\n" for left, right in _merges(tokenizer))
    contents = (
        tokenizer.to_str(pretty=True).encode("utf-8"),
        json.dumps(ordered, ensure_ascii=False).encode("utf-8"),
        "".join(["#version: 0.2\n", *merges]).encode("utf-8"),
        _dump(config),
        _dump(special),
    )
    return dict(zip(FILES, contents, strict=True))


def holds_tokenizer(directory: Path) -> bool:
    """Return whether a directory holds a tokenizer and nothing else, so that it can be replaced."""
    names = {path.name for path in directory.iterdir()}
    return bool(names) and names <= {*FILES, SUMS}


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 (hexadecimal) of a tokenizer's entries, merges and added tokens.

    So are a normalizer and a pre-tokenizer that are not GPT-2's. It does not depend on the layout
    of the files, nor, for a GPT-2, on whether the tokenizer was read from tokenizer.json or from
    vocabulary and merges.
    """
    with _uncollected():
        state = json.loads(tokenizer.to_str())
        return hashlib.sha256(_canonical_json(tokenizer, state)).hexdigest()


@contextlib.contextmanager
def _uncollected() -> Generator[None]:
    """Pause the garbage collector, which visits all objects often while many merges are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _canonical_json(tokenizer: Tokenizer, state: dict[str, Any]) -> bytes:
    # `state` is the tokenizer's JSON, which takes a tenth of a second to make and to parse.
    model, tokens = state["model"], sorted(tokenizer.get_added_tokens_decoder().items())
    added = [(i, token.content) for i, token in tokens]
    parts = [sorted(tokenizer.get_vocab().items()), model.get("merges", ()), added]
    words, standard = tokenizer.pre_tokenizer, tokenizer.normalizer is None
    standard = standard and isinstance(words, pre_tokenizers.ByteLevel)
    if not (standard and words.use_regex and not words.add_prefix_space):
        parts.append([state["normalizer"], state["pre_tokenizer"]])
    stripping = [(i, t.lstrip, t.rstrip, t.single_word) for i, t in tokens]
    parts += [stripping] if any(any(flags[1:]) for flags in stripping) else []
    flags = {name: model[name] for name in MODEL_FLAGS if model.get(name)}
    parts += [flags] if flags else []
    return json.dumps(parts).encode("ascii")


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = byte_level(model)
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return the merges in order; a Tokenizer gives them in its JSON only."""
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"].get("merges", ())]
