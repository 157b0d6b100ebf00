"""Mixtures: several directories of token rows, read in fixed proportions.

Which source row i of a mixture comes from is computed, not sampled. Weights become whole numbers,
99 and 1, and their sum, 100, is the period after which the choice of sources repeats. Within it,
Tijdeman's rule (Discrete Mathematics 32, 1980) assigns the rows: of the sources that have fallen
behind their share, next is the one that would soonest be too far behind. Among the first n rows, a
source of k then has its share of n with an error of at most 1 - 1 / (2k - 2): half a row of two
sources, less than one of any number; any window of rows, such as a batch, is off by at most twice
as much. Sampled proportions would be off by the square root of n, and a small source could be
absent from many batches. Source and row of a position need no state, so that any process reads any
part of a batch, and a run resumes at a step.

Each source has its own permutation in every pass over it, the same as if it were read alone with
that seed, and is repeated as often as its weight demands.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from biomedlm_jax.buckets import as_path
from biomedlm_jax.corpus.manifest import Manifest, read_manifest
from biomedlm_jax.corpus.rows import Rows
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import content_hash, read_json

SOURCES = "sources.json"  # of a run: the manifests of all sources
LONGEST_PERIOD = 100_000  # rows; weights of at most five digits
_ENTRY = re.compile(r"(?:(?P<name>[\w.-]+)=)?(?P<path>.+):(?P<weight>\d{1,12}(?:\.\d{1,12})?)")
_FORM = "DIR:WEIGHT,DIR:WEIGHT or NAME=DIR:WEIGHT,NAME=DIR:WEIGHT"
_EQUAL = ("tokenizer_hash", "vocab_size", "eos_id", "length")  # in the manifests of a mixture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A directory of token rows; `weight` is its share of the rows, in units of all weights."""

    name: str
    path: str
    weight: int

    def facts(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Return what identifies the source and its share, for JSON."""
        return {"rows": manifest["fingerprint"], "weight": self.weight}


def parse_mixture(text: str) -> tuple[Source, ...]:
    """Return the sources of a mixture, "pubmed/tokens:99,wiki/tokens:1", weights in lowest terms.

    A source without a name has the last part of its path in which all differ: pubmed and wiki.
    Raises InputError for another form, fewer than two sources, one twice, or weights whose period
    is longer than LONGEST_PERIOD.
    """
    matches = [_ENTRY.fullmatch(entry.strip()) for entry in text.split(",")]
    entries = [match for match in matches if match is not None]
    if len(entries) != len(matches) or len(entries) < 2:
        raise InputError(f"got data.mixture={text!r}; expected {_FORM}")
    paths = [entry["path"] for entry in entries]
    if len({str(as_path(path)) for path in paths}) < len(paths):
        raise InputError(f"got data.mixture={text!r} with a directory twice; name each one once")
    by_path = _names(paths)
    names = [entry["name"] or name for entry, name in zip(entries, by_path, strict=True)]
    if "" in names or len({*names}) < len(names):
        raise InputError(
            f"got data.mixture={text!r}, whose sources have no names of their own; expected "
            "NAME=DIR:WEIGHT,NAME=DIR:WEIGHT"
        )
    shares = [Fraction(entry["weight"]) for entry in entries]
    unit = math.lcm(*(share.denominator for share in shares))
    weights = [int(share * unit) for share in shares]
    divisor = math.gcd(*weights)
    if 0 in weights:
        raise InputError(f"got data.mixture={text!r} with a weight of 0; leave that source out")
    weights = [weight // divisor for weight in weights]
    if sum(weights) > LONGEST_PERIOD:
        raise InputError(
            f"got data.mixture={text!r}, whose proportions are exact after {sum(weights):,} rows; "
            f"expected at most {LONGEST_PERIOD:,}: round the weights"
        )
    return tuple(
        Source(name=name, path=path, weight=weight)
        for name, path, weight in zip(names, paths, weights, strict=True)
    )


def _names(paths: Sequence[str]) -> list[str]:
    """Return the last part of each path in which all differ, "" if there is none."""
    parts = [[part for part in path.split("/") if part not in ("", ".")] for path in paths]
    for place in range(1, max(map(len, parts)) + 1):
        names = [part[-place] if len(part) >= place else "" for part in parts]
        if len({*names}) == len(names):
            return names
    return [""] * len(paths)


def read_manifests(sources: Sequence[Source]) -> list[Manifest]:
    """Read the manifests of all sources.

    Raises InputError, as `read_manifest` or because two sources differ in tokenizer, vocabulary,
    end of text or row length, or hold the same rows.
    """
    manifests = [read_manifest(source.path) for source in sources]
    rows: list[Mapping[str, Any]] = [{**manifest} for manifest in manifests]
    for source, other in zip(sources, rows, strict=True):
        differing = [name for name in _EQUAL if rows[0][name] != other[name]]
        if differing:
            got = ", ".join(
                f"{name} {str(rows[0][name])[:12]} and {str(other[name])[:12]}"
                for name in differing
            )
            raise InputError(
                f"{sources[0].path} and {source.path} cannot be mixed, they have {got}; build both "
                "with the same --tokenizer and --length"
            )
    seen: dict[str, Source] = {}
    for source, other in zip(sources, rows, strict=True):
        first = seen.setdefault(other["fingerprint"], source)
        if first is not source:
            raise InputError(
                f"{first.path} and {source.path} hold the same rows; give one of them, with the "
                "sum of both weights"
            )
    return manifests


def interleave(weights: Sequence[int]) -> np.ndarray:
    """Return the source of each row of one period, [sum(weights)], by Tijdeman's rule."""
    total, ease = sum(weights), 2 * max(1, len(weights) - 1)
    taken = [0] * len(weights)
    pattern = np.zeros(total, np.int32)
    for row in range(total):
        due = []
        for source, weight in enumerate(weights):
            behind = weight * (row + 1) - total * taken[source]  # rows, times total
            if ease * behind >= total:  # 1 / ease of a row or more
                # After so many rows, times ease, the source is 1 - 1 / ease of a row behind.
                due.append((Fraction((ease - 1) * total - ease * behind, weight), source))
        source = min(due)[1]
        pattern[row] = source
        taken[source] += 1
    return pattern


class Shares:
    """The source of every row of a mixture, and its number among the rows of that source."""

    def __init__(self, weights: Sequence[int]):
        self.weights, self._pattern = tuple(weights), interleave(weights)
        before = np.cumsum(self._pattern == np.arange(len(weights))[:, None], axis=1)
        self._before = np.pad(before, ((0, 0), (1, 0)))  # [source, rows of the period before]

    def __getitem__(self, row: int) -> tuple[int, int]:
        periods, rest = divmod(row, len(self._pattern))
        source = int(self._pattern[rest])
        return source, periods * self.weights[source] + int(self._before[source, rest])

    def counts(self, rows: int) -> list[int]:
        """Return how many of the first `rows` rows come from each source."""
        periods, rest = divmod(rows, len(self._pattern))
        before = self._before[:, rest].tolist()
        return [periods * weight + n for weight, n in zip(self.weights, before, strict=True)]

    def most(self, rows: int) -> list[int]:
        """Return the most rows of each source among any `rows` rows after each other."""
        period = len(self._pattern)
        starts = np.arange(period)
        turns, rest = np.divmod(starts + rows, period)
        inside = self._before[:, rest] - self._before[:, starts]
        return (inside + turns * np.array(self.weights)[:, None]).max(axis=1).tolist()


class MixedRows:
    """The rows of a split of several sources, numbered through in the order of the sources."""

    def __init__(self, sources: Sequence[Source], split: str):
        self.sources, self.manifests = tuple(sources), read_manifests(sources)
        self.manifest = self.manifests[0]
        self._rows = [Rows(source.path, split) for source in sources]
        self.sizes = [len(rows) for rows in self._rows]
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._shares = Shares([source.weight for source in sources])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitems__(self, numbers: Sequence[int]) -> np.ndarray:
        """Read several rows at once: [len(numbers), length], in the order of `numbers`."""
        chosen = np.asarray(numbers, np.int64)
        which = np.searchsorted(self.starts, chosen, side="right") - 1
        result = np.empty((len(chosen), self.manifest["length"]), self.manifest["dtype"])
        for source in np.unique(which).tolist():
            inside = chosen[which == source] - self.starts[source]
            result[which == source] = self._rows[source].__getitems__(inside.tolist())
        return result

    def order(self, order_of: Callable[[int], Sequence[int]]) -> "MixedOrder":
        """Return the endless order of the mixture; `order_of(rows)` is a source's own."""
        return MixedOrder(self._shares, [*map(order_of, self.sizes)], self.starts.tolist())

    def check_batch(self, batch_size: int) -> None:
        """Raise InputError if a batch has more rows of a source than that has."""
        most = self._shares.most(batch_size)
        for source, size, rows in zip(self.sources, self.sizes, most, strict=True):
            if rows > size:
                raise InputError(
                    f"got batch_size={batch_size}, of which up to {rows} rows are of "
                    f"{source.path}, but it has {size}; give it more text or a smaller weight, or "
                    "choose a smaller batch"
                )

    def fingerprint(self) -> str:
        """Return the hash of the rows of all sources and of their weights."""
        pairs = zip(self.sources, self.manifests, strict=True)
        return content_hash([source.facts(manifest) for source, manifest in pairs])


class MixedOrder:
    """Endless sequence of the numbers of a mixture's rows."""

    def __init__(self, shares: Shares, orders: Sequence[Sequence[int]], starts: Sequence[int]):
        self._shares, self._orders, self._starts = shares, orders, starts

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> int:
        source, number = self._shares[row]
        return self._starts[source] + int(self._orders[source][number])


def sources_record(sources: Sequence[Source], manifests: Sequence[Manifest]) -> dict[str, Any]:
    """Return what a run keeps of its sources in SOURCES."""
    return {
        "sources": [
            {"name": source.name, "weight": source.weight, "manifest": {**manifest}}
            for source, manifest in zip(sources, manifests, strict=True)
        ]
    }


def read_sources(run: Path, record: Mapping[str, Any], *, rows: int) -> list[dict[str, Any]]:
    """Return `source_figures` of a run with the `run.json` of `record`; [] if it has no mixture.

    Raises InputError if its SOURCES is missing or damaged.
    """
    start, file = record.get("started_from"), run / SOURCES
    if not (isinstance(start, Mapping) and "sources" in start):
        return []
    if not file.exists():
        raise InputError(f"{file} of a run on a mixture is missing; restore it from a copy")
    return source_figures(read_json(file), rows, where=file)


def source_figures(
    record: Mapping[str, Any], rows: int, *, where: str | Path
) -> list[dict[str, Any]]:
    """Return what the first `rows` rows of a run had of each source: rows and passes over it.

    Raises InputError, which begins with `where`, for a record of another form.
    """
    try:
        entries = record["sources"]
        weights = [int(entry["weight"]) for entry in entries]
        splits = [entry["manifest"]["splits"]["train"] for entry in entries]
        sizes = [(int(split["rows"]), int(split["tokens"])) for split in splits]
        named = [(str(e["name"]), str(e["manifest"]["fingerprint"])) for e in entries]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"{where} is no record of sources; restore it from a copy") from None
    if not weights or min(weights) < 1 or sum(weights) > LONGEST_PERIOD or min(sizes)[0] < 1:
        raise InputError(f"{where} has bad weights or rows; restore it from a copy")
    return [
        {
            "name": name,
            "fingerprint": fingerprint,
            "weight": weight,
            "share": weight / sum(weights),
            "rows": count,
            "passes": count / size,
            "rows_there": size,
            "tokens_there": tokens,
        }
        for (name, fingerprint), weight, count, (size, tokens) in zip(
            named, weights, Shares(weights).counts(rows), sizes, strict=True
        )
    ]


def describe_source(figures: Mapping[str, Any]) -> str:
    """Return one line about a source of `source_figures`."""
    return (
        f"{figures['name']}: {100 * figures['share']:.4g} % of the rows, {figures['rows']:,} rows, "
        f"{figures['passes']:.2f} passes over {figures['rows_there']:,} rows "
        f"({figures['tokens_there']:,} tokens)"
    )
