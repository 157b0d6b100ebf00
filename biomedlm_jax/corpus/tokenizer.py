"""The tokenizer: train, load, save and identify a byte-level BPE like BioMedLM's.

The recipe is that of the published script (stanford-crfm/BioMedLM, `tokenize/train_bpe.py`): all
256 bytes as the alphabet, no prefix space, pairs that occur at least twice. That script adds
`<|endoftext|>` afterwards, one entry past the model's embedding; here it is the last of exactly
`vocab_size` entries, as in the released tokenizer.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from biomedlm_jax.files import write_json, write_text

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB_SIZE = 256 + 1  # every byte, and END_OF_TEXT
_PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # Hugging Face's, GPT-2's
# What `save_tokenizer` writes.
FILES = ("tokenizer.json", *_PAIRS[0], "tokenizer_config.json", "special_tokens_map.json")


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, show_progress: bool = False
) -> Tokenizer:
    """Train a byte-level BPE of exactly `vocab_size` entries, the last of them `<|endoftext|>`.

    Args:
      texts: the corpus, read once; memory grows with the number of distinct words.
      vocab_size: entries in total: 256 bytes, the merges, and `<|endoftext|>`.
      show_progress: show the progress bars of `tokenizers` on standard error.

    Raises:
      ValueError: `vocab_size` is below 257, or the corpus has too few pairs to reach it.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        least = f"{MIN_VOCAB_SIZE}: 256 bytes and {END_OF_TEXT}"
        raise ValueError(f"got vocab_size={vocab_size}; expected at least {least}")
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
        raise ValueError(
            f"the corpus is too small for vocab_size={vocab_size}: its repeated pairs "
            f"make {len(vocabulary) + 1} entries; give more text, or at most that vocab_size"
        )
    vocabulary[END_OF_TEXT] = len(vocabulary)
    return _byte_level(models.BPE(vocab=vocabulary, merges=_merges(trained)))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer from a directory or from a tokenizer.json.

    A directory holds tokenizer.json (any kind of tokenizer), or the vocabulary and merges of a
    GPT-2: vocab.json and merges.txt, or encoder.json and vocab.bpe. Truncation and padding of a
    tokenizer.json are disabled.

    Raises:
      FileNotFoundError: there is no such path.
      ValueError: the directory has no tokenizer, or a file cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no tokenizer at {path}: no such file or directory")
    whole = path / "tokenizer.json" if path.is_dir() else path
    pairs = [(path / entries, path / merges) for entries, merges in _PAIRS]
    pair = next((pair for pair in pairs if all(map(Path.exists, pair))), ())
    if not (whole.exists() or pair):
        known = ", ".join(["tokenizer.json", *(f"{v} with {m}" for v, m in _PAIRS)])
        raise ValueError(f"no tokenizer in {path}; expected one of {known}")
    try:
        if whole.exists():
            tokenizer = Tokenizer.from_file(str(whole))
        else:
            tokenizer = _byte_level(models.BPE.from_file(*map(str, pair)))
    except Exception as error:  # tokenizers raises nothing more specific
        raise ValueError(f"cannot read the tokenizer in {path}: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def save_tokenizer(
    tokenizer: Tokenizer, directory: str | Path, *, model_max_length: int | None = None
) -> list[Path]:
    """Write the files that transformers reads as a GPT-2 tokenizer, and return their paths.

    `<|endoftext|>` is the beginning, end and unknown token; there is no padding token, as in
    BioMedLM. The directory is created if need be, and its other files are unchanged.

    Raises:
      FileExistsError, NotADirectoryError: one of `FILES` exists, or `directory` is a file.
      ValueError: the tokenizer is not a byte-level BPE, or lacks `<|endoftext|>`.
    """
    paths, vocabulary = [Path(directory, name) for name in FILES], tokenizer.get_vocab()
    for path in paths:
        if path.parent.is_file():
            raise NotADirectoryError(f"{directory} is a file; name a directory")
        if path.exists():
            raise FileExistsError(f"{path} exists; name another directory")
    byte_level = isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
    if not (isinstance(tokenizer.model, models.BPE) and byte_level and END_OF_TEXT in vocabulary):
        kind = f"{type(tokenizer.model).__name__} with {type(tokenizer.pre_tokenizer).__name__}"
        raise ValueError(f"expected a byte-level BPE with {END_OF_TEXT}, got {kind}")
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    config = {
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,  # it would make decoding lossy
        **({"model_max_length": model_max_length} if model_max_length else {}),
        "tokenizer_class": "GPT2Tokenizer",
        **special,
    }
    ordered = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
    merges = (f"{left} {right}\n" for left, right in _merges(tokenizer))
    write_text(paths[0], tokenizer.to_str(pretty=True))
    write_text(paths[1], json.dumps(ordered, ensure_ascii=False))
    write_text(paths[2], "".join(["#version: 0.2\n", *merges]))
    write_json(paths[3], config)
    write_json(paths[4], special)
    return paths


def holds_tokenizer(directory: Path) -> bool:
    """Return whether a directory holds a tokenizer and nothing else, so that it can be replaced."""
    names = {path.name for path in directory.iterdir()}
    return bool(names) and names <= set(FILES)


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 (hexadecimal) of a tokenizer's entries, merges and added tokens.

    It does not depend on the layout of the files, nor, for a GPT-2, on whether the tokenizer was
    read from tokenizer.json or from vocabulary and merges.
    """
    added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
    parts = [sorted(tokenizer.get_vocab().items()), _merges(tokenizer), sorted(added.items())]
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return the merges in order; a Tokenizer gives them in its JSON only."""
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"].get("merges", ())]
