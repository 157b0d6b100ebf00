"""Packed rows: a prefix once, then each of its branches; the one format of scoring and tuning.

A branch attends to its prefix and itself, at the position ids that it would have alone: its states
are those of a row of its own. A question has a branch for each option, a text to classify one empty
branch, a source one branch, its answer.

Axes: B rows, L positions of a row, T positions whose states are read, E entries read at them.
"""

import bisect
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from biomedlm_jax import mesh as meshes
from biomedlm_jax.errors import InputError

TOKENS, LAST = "tokens", "last"  # what is read: the probability of every token, or the last state


class Prompt(NamedTuple):
    """Token ids of a prefix and of the branches that continue it."""

    prefix: list[int]
    branches: list[list[int]]
    question: int  # its number for the caller; several prompts can belong to it
    first_option: int = 0  # the option of the question that the first branch is


class Rows(NamedTuple):
    """One batch of packed rows: int32 arrays, of the same shapes in every batch of a bucket."""

    tokens_BxL: Any
    positions_BxL: Any
    prompt_BxL: Any  # the prompt of its row that a position belongs to; -1: padding
    branch_BxL: Any  # 0: the prefix; else the branch. None: no prompt has several branches
    source_BxT: Any  # the positions whose states are read
    slot_BxE: Any  # which of the T an entry is read at
    target_BxE: Any  # the token whose probability is read (TOKENS), else 0
    question_BxE: Any  # the caller's question; -1: padding
    option_BxE: Any


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Rows of one shape: the prompts of each row, by index."""

    length: int
    rows: list[list[int]]
    sources: int  # T
    entries: int  # E
    branched: bool  # whether a prompt has several branches


def one_prompt_per_option(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return one prompt per option, the prefix repeated: what the original code computes."""
    return [
        Prompt(prompt.prefix, [branch], prompt.question, prompt.first_option + i)
        for prompt in prompts
        for i, branch in enumerate(prompt.branches)
    ]


def size(prompt: Prompt, read: str) -> int:
    """Return the positions that a prompt takes; a last token that is only predicted takes none."""
    return len(prompt.prefix) + sum(len(b) - (read == TOKENS) for b in prompt.branches)


def row_multiple() -> int:
    """Return what row lengths are rounded up to: the block of the TPU's kernel, or 64."""
    return 128 if meshes.platform() == "tpu" else 64


def round_up(count: int, multiple: int = 8) -> int:
    """Return the next multiple; counts are rounded so that few shapes occur."""
    return -(-count // multiple) * multiple


def row_lengths(sizes: Sequence[int], *, at_most: int = 4) -> list[int]:
    """Return up to four row lengths that fit prompts of these sizes: quantiles, rounded up."""
    ordered, multiple = sorted(sizes), row_multiple()
    places = [len(ordered) * (i + 1) // at_most - 1 for i in range(at_most)]
    return sorted({round_up(ordered[max(place, 0)], multiple) for place in places})


def make_buckets(
    prompts: Sequence[Prompt], *, read: str, lengths: Sequence[int] | None = None
) -> list[Bucket]:
    """Pack prompts into rows of the given lengths, by default `row_lengths` of their sizes.

    The largest come first, each into the fullest row that has room, else into a new row of the
    shortest length that holds it. Raises InputError for a prompt longer than every length.
    """
    sizes = [size(prompt, read) for prompt in prompts]
    lengths = sorted(lengths or row_lengths(sizes))
    rows: dict[int, list[list[int]]] = {length: [] for length in lengths}
    open_rows: dict[int, list[list[int]]] = {}  # positions left -> rows
    rooms: list[int] = []  # its keys, in order
    for index in sorted(range(len(prompts)), key=lambda i: (-sizes[i], i)):
        needed = sizes[index]
        at = bisect.bisect_left(rooms, needed)
        if at < len(rooms):
            room = rooms[at]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del open_rows[room], rooms[at]
        else:
            at = bisect.bisect_left(lengths, needed)
            if at == len(lengths):
                expected = f"expected at most {lengths[-1]}, the longest row"
                raise InputError(f"got a prompt of {needed} tokens with its branches; {expected}")
            room, row = lengths[at], []
            rows[room].append(row)
        row.append(index)
        room -= needed
        if room not in open_rows:
            bisect.insort(rooms, room)
        open_rows.setdefault(room, []).append(row)
    sources = entries = [len(prompt.branches) for prompt in prompts]
    branched = max(sources, default=0) > 1
    if read == TOKENS:
        entries = [sum(map(len, prompt.branches)) for prompt in prompts]
        sources = [1 + n - branches for n, branches in zip(entries, sources, strict=True)]

    def most(counts: list[int], rows: list[list[int]]) -> int:
        return round_up(max(sum(counts[i] for i in row) for row in rows))

    return [
        Bucket(length, of_length, most(sources, of_length), most(entries, of_length), branched)
        for length, of_length in rows.items()
        if of_length
    ]


def batches(
    prompts: Sequence[Prompt], bucket: Bucket, *, batch_size: int, read: str
) -> Iterator[Rows]:
    """Yield the rows of a bucket, `batch_size` at a time; the last batch ends in padding rows."""
    for begin in range(0, len(bucket.rows), batch_size):
        chosen = bucket.rows[begin : begin + batch_size]
        yield build_rows(prompts, bucket, chosen, batch_size=batch_size, read=read)


def build_rows(
    prompts: Sequence[Prompt],
    shape: Bucket,
    rows: Sequence[Sequence[int]],
    *,
    batch_size: int,
    read: str,
) -> Rows:
    """Return one batch of `shape` as numpy arrays; `rows` are the prompts' indices of each row."""
    lengths = [*[shape.length] * 4, shape.sources, *[shape.entries] * 4]
    out = Rows._make(np.zeros((batch_size, n), np.int32) for n in lengths)
    out.prompt_BxL[:] = -1
    out.question_BxE[:] = -1
    for b, row in enumerate(rows):
        place = slots = entries = 0
        for number, index in enumerate(row):
            prompt = prompts[index]
            start = len(prompt.prefix)
            _write(out, b, place, prompt.prefix, position=0, prompt=number, branch=0)
            place, first_slot = place + start, slots
            prefix_end = place - 1
            if read == TOKENS:  # the first token of every branch is read at the prefix's end
                out.source_BxT[b, slots] = prefix_end
                slots += 1
            for i, branch in enumerate(prompt.branches):
                if read == TOKENS:
                    written, targets = branch[:-1], branch
                    sources = range(place, place + len(written))
                    read_at = [first_slot, *range(slots, slots + len(written))]
                else:  # an empty branch (a whole text is its prefix) is read at the prefix's end
                    written, targets, read_at = branch, [0], [slots]
                    sources = [place + len(branch) - 1 if branch else prefix_end]
                _write(out, b, place, written, position=start, prompt=number, branch=i + 1)
                here = slice(entries, entries + len(read_at))
                out.source_BxT[b, slots : slots + len(sources)] = sources
                out.slot_BxE[b, here], out.target_BxE[b, here] = read_at, targets
                out.question_BxE[b, here] = prompt.question
                out.option_BxE[b, here] = prompt.first_option + i
                place, slots, entries = place + len(written), slots + len(sources), here.stop
    # Where no branches share a prefix, causal attention within a prompt is the same.
    return out if shape.branched else out._replace(branch_BxL=None)


def _write(out: Rows, b: int, place: int, ids, *, position: int, prompt: int, branch: int) -> None:
    here = slice(place, place + len(ids))
    out.tokens_BxL[b, here] = ids
    out.positions_BxL[b, here] = np.arange(position, position + len(ids))
    out.prompt_BxL[b, here] = prompt
    out.branch_BxL[b, here] = branch
