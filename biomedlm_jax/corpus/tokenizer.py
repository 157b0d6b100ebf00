"""The tokenizer: a byte-level BPE as BioMedLM's, trained, stored, identified and compared.

The recipe is that of the published script (stanford-crfm/BioMedLM, `tokenize/train_bpe.py`): all
256 bytes as the alphabet, no prefix space, pairs that occur at least twice. Where that script left
`<|endoftext|>` to be added afterwards, one entry past the model's embedding, here it is the last
of exactly `vocab_size` entries, as in the tokenizer that was released.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB_SIZE = 256 + 1  # every byte, and END_OF_TEXT
# Each is one entry of BioMedLM's vocabulary and several of GPT-2's (arXiv 2403.18421, table 2).
TERMS = (
    "chromatography",
    "cytotoxicity",
    "Immunohistochemistry",
    "myocardium",
    "nanoparticles",
    "photosynthesis",
    "probiotic",
    "thrombin",
    "ECG",
    "GATA",
)
_TABLES = ("vocab.json", "merges.txt")
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
FILES = ("tokenizer.json", *_TABLES, *_SETTINGS)  # what `save_tokenizer` writes
# A vocabulary and its merges, by Hugging Face's names and by those of GPT-2's release.
_PAIRS = (_TABLES, ("encoder.json", "vocab.bpe"))


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, show_progress: bool = False
) -> Tokenizer:
    """Train a byte-level BPE of exactly `vocab_size` entries, the last of them `<|endoftext|>`.

    Args:
      texts: the corpus, read once; memory grows with its distinct words, not with its length.
      vocab_size: entries in all: 256 bytes, the merges, and `<|endoftext|>`.

    Raises:
      ValueError: `vocab_size` is below 257, or the corpus has too few pairs to reach it.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        least = f"it is at least {MIN_VOCAB_SIZE}: 256 bytes and {END_OF_TEXT}"
        raise ValueError(f"got vocab_size={vocab_size}; {least}")
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
    GPT-2: vocab.json and merges.txt, or encoder.json and vocab.bpe. Truncation and padding that a
    tokenizer.json may ask for are off: a corpus is tokenised whole.

    Raises:
      FileNotFoundError: there is no such path.
      ValueError: the directory holds none of these, or a file is not what its name says.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no tokenizer at {path}: no such file or directory")
    whole = path / "tokenizer.json" if path.is_dir() else path
    pairs = [[path / name for name in names] for names in _PAIRS]
    pair = next((files for files in pairs if all(map(Path.exists, files))), None)
    if pair is None and not whole.exists():
        known = ", ".join(["tokenizer.json", *(f"{v} with {m}" for v, m in _PAIRS)])
        raise ValueError(f"no tokenizer in {path}; a tokenizer is one of {known}")
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
    tokenizer: Tokenizer,
    directory: str | Path,
    *,
    model_max_length: int | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write the files that transformers reads as a GPT-2 tokenizer, and return their paths.

    `<|endoftext|>` is beginning, end and unknown; there is no padding token, as BioMedLM has none.
    The directory is made if need be, and its other files are left alone.

    Raises:
      FileExistsError: one of `FILES` exists and `overwrite` is false.
      ValueError: the tokenizer is no byte-level BPE, or lacks `<|endoftext|>`.
    """
    directory, vocabulary = Path(directory), tokenizer.get_vocab()
    check_output(directory, overwrite=overwrite)
    byte_level = isinstance(tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)
    if not (isinstance(tokenizer.model, models.BPE) and byte_level and END_OF_TEXT in vocabulary):
        kind = f"{type(tokenizer.model).__name__} with {type(tokenizer.pre_tokenizer).__name__}"
        raise ValueError(f"got {kind}; only a byte-level BPE with {END_OF_TEXT} fits a GPT-2")
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
    contents = (
        tokenizer.to_str(pretty=True),
        json.dumps(ordered, ensure_ascii=False),
        "".join(["#version: 0.2\n", *merges]),
        json.dumps(config, indent=2),
        json.dumps(special, indent=2),
    )
    directory.mkdir(parents=True, exist_ok=True)
    beside = [directory / f".{name}.{os.getpid()}" for name in FILES]
    try:
        for path, content in zip(beside, contents, strict=True):
            path.write_text(content, encoding="utf-8", newline="\n")
        return [path.replace(directory / name) for path, name in zip(beside, FILES, strict=True)]
    finally:
        for path in beside:
            path.unlink(missing_ok=True)


def check_output(directory: str | Path, *, overwrite: bool) -> None:
    """Raise at once, before any work, if `save_tokenizer` would refuse this directory."""
    directory = Path(directory)
    existing = [path for name in FILES if (path := directory / name).exists()]
    others = sorted({path.name for path in directory.glob("[!.]*")} - set(FILES))
    if existing and others:  # a model or token rows, which would lose the tokenizer they need
        raise FileExistsError(
            f"{directory} holds a tokenizer beside {', '.join(others[:3])}, which were made with "
            "it; name another directory"
        )
    if existing and not overwrite:
        raise FileExistsError(f"{existing[0]} exists; name another directory, or pass --overwrite")
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"{directory} is a file; name a directory")


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Identify a tokenizer: the SHA-256 (hexadecimal) of its entries, merges and added tokens.

    It is the same for the same tokenizer however its files are laid out, and for a GPT-2 whether
    it was read from tokenizer.json or from vocabulary and merges.
    """
    added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
    parts = [sorted(tokenizer.get_vocab().items()), _merges(tokenizer), sorted(added.items())]
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()


def pieces(tokenizer: Tokenizer, term: str) -> list[str]:
    """The tokens that a term becomes after a space, as text."""
    ids = tokenizer.encode(f" {term}", add_special_tokens=False).ids
    return [tokenizer.decode([i]).strip() for i in ids]


@dataclass(frozen=True)
class TokenizerReport:
    """How one tokenizer does on a text."""

    name: str
    hash: str
    vocab_size: int
    tokens: int
    bytes: int  # of the text in UTF-8
    bytes_per_token: float  # more is better
    terms: dict[str, list[str]]  # each term's pieces after a space
    whole_terms: list[str]  # those of one piece


def compare_tokenizers(
    tokenizers: Mapping[str, Tokenizer], texts: Iterable[str], terms: Sequence[str] = TERMS
) -> list[TokenizerReport]:
    """Count the tokens that each tokenizer makes of the same texts, and see what becomes of terms.

    The texts are read once, in batches, and special tokens are not added.

    Raises:
      ValueError: there is no tokenizer or no text.
    """
    tokens, size = dict.fromkeys(tokenizers, 0), 0
    for batch in _batches(texts, 256):
        size += sum(len(text.encode("utf-8")) for text in batch)
        for name, tokenizer in tokenizers.items():
            encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            tokens[name] += sum(map(len, encodings))
    if not tokens or not size:
        raise ValueError(f"got {len(tokens)} tokenizers and {size} bytes; give some of both")
    reports = []
    for name, tokenizer in tokenizers.items():
        split = {term: pieces(tokenizer, term) for term in terms}
        reports.append(
            TokenizerReport(
                name=name,
                hash=tokenizer_hash(tokenizer),
                vocab_size=tokenizer.get_vocab_size(),
                tokens=tokens[name],
                bytes=size,
                bytes_per_token=size / tokens[name],
                terms=split,
                whole_terms=[term for term in terms if len(split[term]) == 1],
            )
        )
    return reports


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The merges in order; their only way out of a Tokenizer is its JSON."""
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"].get("merges", ())]


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    texts = iter(texts)
    return iter(lambda: list(islice(texts, size)), [])
