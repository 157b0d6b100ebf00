"""Pairs of a source and a target text: read, split, and turned into prompts of token ids.

As published (stanford-crfm/BioMedLM, `finetune/textgen`), a row is the first tokens of the source,
`<|startoftext|>`, the first tokens of the target, `<|endoftext|>`.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from biomedlm_jax.corpus.tokenizer import prefix_ids
from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.config import PairSettings
from biomedlm_jax.qa.packing import Prompt
from biomedlm_jax.qa.prompts import encode_plain, special_texts
from biomedlm_jax.qa.question_rows import Row, read_rows
from biomedlm_jax.streams import read_lines

PAD, SEPARATOR = "[PAD]", "<|startoftext|>"
ADDED_TOKENS = (PAD, SEPARATOR)  # in the order of their ids, 28896 and 28897 for BioMedLM


@dataclass(frozen=True)
class Pair:
    """A question and its answer, or a text and its summary."""

    source: str
    target: str
    group: str  # pairs of one group stay on one side of a split


def train_and_dev(
    settings: PairSettings, left_out: Counter[str] | None = None
) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs to learn from and those to evaluate on, as a config's `data` says.

    `left_out` counts what `read_pairs` leaves out, by "file: reason".
    """
    fields = settings.source_field, settings.target_field, settings.group_field
    train = read_pairs(settings.train, *fields, left_out=left_out)
    if settings.dev:
        if Path(settings.dev).resolve() == Path(settings.train).resolve():
            fix = "give another file, or leave data.dev empty: a part of train is dev then"
            raise InputError(f"got {settings.train} as both data.train and data.dev; {fix}")
        return train, read_pairs(settings.dev, *fields, left_out=left_out)
    return split(train, dev_fraction=settings.dev_fraction)


def read_pairs(
    path: str | Path,
    source: str = "source",
    target: str = "target",
    group: str = "",
    *,
    left_out: Counter[str] | None = None,
) -> list[Pair]:
    """Return the pairs at `path`: rows of JSON lines, a JSON array (.json) or parquet.

    `source`, `target` and `group` are fields of a row. "instruction,input" joins fields by a blank
    line and omits empty ones; the group is by default the source itself. `path` may also be the
    stem of two files with a text a line, `path.source` and `path.target`. Pairs with an empty text
    are left out, and counted in `left_out` by "file: reason".
    Raises InputError for a missing file, a bad line, different lengths or no pair at all.
    """
    path = Path(path)
    files = [path.with_name(f"{path.name}.{side}") for side in ("source", "target")]
    if all(file.exists() for file in files):
        sides = [[line.strip("\r\n") for line in _lines(f)] for f in files]
        if len(sides[0]) != len(sides[1]):
            counts = f"{files[0]} has {len(sides[0])} lines and {files[1]} {len(sides[1])}"
            raise InputError(f"{counts}; expected one target for each source")
        pairs = [Pair(s, t, s) for s, t in zip(*sides, strict=True)]
    elif path.is_file():
        pairs = [_pair(row, source, target, group) for row in read_rows(path, _refuse)]
    else:
        raise InputError(f"no such file: {path}, nor {files[0]} with {files[1]}")
    kept = []
    for number, pair in enumerate(pairs, 1):
        if "\0" in pair.source + pair.target:
            raise InputError(f"{path}: NUL character in pair {number}; expected UTF-8 text")
        try:
            (pair.source + pair.target + pair.group).encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can escape
            raise InputError(f"{path}: pair {number} is no UTF-8 text ({error.reason})") from None
        if pair.source.strip() and pair.target.strip():
            kept.append(pair)
        elif left_out is not None:
            empty = "target" if pair.source.strip() else "source"
            left_out[f"{path}: empty {empty}"] += 1
    if not kept:
        raise InputError(f"{path} has no pair with both a source and a target")
    return kept


def _lines(file: Path) -> Iterator[str]:
    for number, line in read_lines(file):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{file}:{number}: expected UTF-8 ({error.reason})") from None


def split(pairs: Sequence[Pair], *, dev_fraction: float) -> tuple[list[Pair], list[Pair]]:
    """Return train and dev pairs, chosen by their groups' hashes; InputError if one is empty."""
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        number = hashlib.blake2b(pair.group.encode(), digest_size=8).digest()
        sides[int.from_bytes(number, "big") < dev_fraction * 2**64].append(pair)
    if not all(sides):
        counts = f"{len(sides[0])} pairs to train on and {len(sides[1])} to evaluate"
        raise InputError(f"got data.dev_fraction={dev_fraction}: {counts}; both need at least one")
    return sides


def text_prompts(
    tokenizer: Tokenizer, pairs: Sequence[Pair], settings: PairSettings, *, end_id: int
) -> tuple[list[Prompt], int]:
    """Return a prompt for each pair, its target the only branch, and how many pairs were cut.

    What the tokenizer puts before a text, as `generate` does, is a part of the source.
    """
    before = prefix_ids(tokenizer)
    prompts, cut, separator = [], 0, tokenizer.token_to_id(SEPARATOR)
    assert separator is not None, "the tokenizer has ADDED_TOKENS"
    for number, pair in enumerate(pairs):
        source = before + encode_plain(tokenizer, pair.source)
        target = encode_plain(tokenizer, pair.target)
        cut += len(source) > settings.source_tokens or len(target) > settings.target_tokens
        prefix = [*source[: settings.source_tokens], separator]
        prompts.append(Prompt(prefix, [[*target[: settings.target_tokens], end_id]], number))
    return prompts, cut


def remarks(tokenizer: Tokenizer, train: Sequence[Pair], dev: Sequence[Pair]) -> str:
    """Return what a reader should know of the pairs, as the end of a sentence; "" if nothing."""
    specials, known = special_texts(tokenizer), {_key(pair) for pair in train}
    spelled = [
        pair
        for pair in [*train, *dev]
        if any(name in text for text in (pair.source, pair.target) for name in specials)
    ]
    again = sum(_key(pair) in known for pair in dev)
    counts = {"of dev that are also in train": again}
    counts["spelling a special token, encoded as text"] = len(spelled)
    return "".join(f"; {n:,} {remark}" for remark, n in counts.items() if n)


def _key(pair: Pair) -> tuple[str, ...]:
    return " ".join(pair.source.split()), " ".join(pair.target.split())


def _refuse(message: str) -> None:
    raise InputError(message)


def _pair(row: Row, source: str, target: str, group: str) -> Pair:
    texts = [_joined(row, names) for names in (source, target)]
    if None in texts or (group and group not in row.fields):
        names = f"the texts {', '.join(filter(None, (source, target, group)))}"
        fix = "set --config.data.source_field, target_field and group_field"
        raise InputError(f"{row}: expected {names}, got the fields {', '.join(row.fields)}; {fix}")
    first, second = map(str, texts)
    return Pair(first, second, str(row.fields[group] if group else first))


def _joined(row: Row, names: str) -> str | None:
    """Return the texts of the fields, without empty ones; None if one is no text."""
    parts = [row.fields.get(name.strip()) for name in names.split(",")]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        return None
    return texts[0] if len(texts) == 1 else "\n\n".join(filter(str.strip, texts))
