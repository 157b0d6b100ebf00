"""Examples: pairs of a source and a target text, read and split.

Read from a JSONL file (gzip or not), or from `NAME.source` and `NAME.target` with a text a line,
as the original repository has them (stanford-crfm/BioMedLM, `finetune/textgen`).
"""

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Example:
    """A question and its answer, or a text and its summary."""

    source: str
    target: str
    group: str  # examples of one group stay on one side of a split


def read_examples(
    path: str | Path, *, source: str = "source", target: str = "target", group: str = ""
) -> list[Example]:
    """Read the examples at `path`: a JSONL file, or the common stem of a .source and a .target.

    Args:
      source, target: the fields of the two texts in JSONL.
      group: the field whose value keeps examples together, MedQuAD's `focus`; the source text
        itself by default.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is not what it must be, or the two files have different lengths.
    """
    path = Path(path)
    pair = [path.with_name(f"{path.name}.{side}") for side in ("source", "target")]
    if all(map(Path.exists, pair)):
        # Not splitlines(), which would also cut at U+2028 and others, within a text.
        texts = [file.read_text(encoding="utf-8").removesuffix("\n").split("\n") for file in pair]
        if len(texts[0]) != len(texts[1]):
            raise ValueError(
                f"{pair[0]} has {len(texts[0])} lines and {pair[1]} {len(texts[1])}; they must "
                "have one for each other"
            )
        return _checked([Example(s, t, s) for s, t in zip(*texts, strict=True)], path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}, nor {pair[0]} with {pair[1]}")
    examples = []
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8") as lines
    ):
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                fields = [record[name] for name in (source, target, *([group] if group else []))]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: {error!r}; each line is an object with the texts "
                    f"{source!r} and {target!r}"
                ) from None
            if not all(isinstance(text, str) for text in fields[:2]):
                raise ValueError(f"{path}, line {number}: {source!r} and {target!r} must be texts")
            examples.append(Example(fields[0], fields[1], str(fields[-1] if group else fields[0])))
    return _checked(examples, path)


def _checked(examples: list[Example], path: Path) -> list[Example]:
    kept = [e for e in examples if e.source.strip() and e.target.strip()]
    if not kept:
        raise ValueError(f"{path} has no example with both a source and a target")
    return kept


def split(
    examples: Sequence[Example], *, dev_fraction: float
) -> tuple[list[Example], list[Example]]:
    """Train and dev examples, by the hash of their groups: always the same.

    Raises ValueError if one of them would be empty.
    """
    sides = ([], [])
    for example in examples:
        number = hashlib.blake2b(example.group.encode(), digest_size=8).digest()
        sides[int.from_bytes(number, "big") < dev_fraction * 2**64].append(example)
    if not all(sides):
        raise ValueError(
            f"got dev_fraction={dev_fraction}: {len(sides[0])} examples to train on and "
            f"{len(sides[1])} to evaluate; both need some"
        )
    return sides
