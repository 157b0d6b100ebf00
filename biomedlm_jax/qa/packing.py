"""Shared-prefix rows: a question once, then each of its options as a branch of its own.

A branch sees its question and itself, at the positions that it would have alone; so its states are
those of a row that holds the question and this option only. Several questions fill a row.

Axes: B rows, L places of a row, T scored places of a row, E answers read at them.
"""

import bisect
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

TOKENS, LAST = "tokens", "last"  # what is read: every branch token's probability, or its last state


class Prompt(NamedTuple):
    """Token ids of a question and of the branches that go on from it."""

    prefix: list[int]
    branches: list[list[int]]
    # Which question of the caller, and which of its options come first here: rows of one option
    # each belong to one question, too.
    question: int
    first_option: int = 0


class Rows(NamedTuple):
    """One batch of packed rows: int32 arrays, the same shapes for every batch of a bucket."""

    tokens_BxL: np.ndarray
    positions_BxL: np.ndarray
    prompt_BxL: np.ndarray  # which prompt of its row a place belongs to; -1: padding
    branch_BxL: np.ndarray  # 0: the prefix, seen by all; else the branch, seen by itself
    source_BxT: np.ndarray  # the places whose states are read
    slot_BxE: np.ndarray  # which of the T an answer is read at
    target_BxE: np.ndarray  # the token whose probability it is (TOKENS), else 0
    question_BxE: np.ndarray  # the caller's question; -1: padding
    option_BxE: np.ndarray


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Rows of one shape: the prompts of each row, by index."""

    length: int
    rows: list[list[int]]
    sources: int
    answers: int


def separate(prompts: Iterable[Prompt]) -> list[Prompt]:
    """One prompt per option, the question repeated: what the original code computes."""
    return [
        Prompt(prompt.prefix, [branch], prompt.question, prompt.first_option + i)
        for prompt in prompts
        for i, branch in enumerate(prompt.branches)
    ]


def size(prompt: Prompt, read: str) -> int:
    """Places that a prompt takes: a last token that is only predicted takes none."""
    return len(prompt.prefix) + sum(len(b) - (read == TOKENS) for b in prompt.branches)


def row_lengths(sizes: Sequence[int], *, at_most: int = 4, multiple: int = 64) -> list[int]:
    """Up to four row lengths that fit prompts of these sizes: quantiles, rounded up."""
    ordered = sorted(sizes)
    places = [len(ordered) * (i + 1) // at_most - 1 for i in range(at_most)]
    return sorted({-(-ordered[max(place, 0)] // multiple) * multiple for place in places})


def make_buckets(
    prompts: Sequence[Prompt], *, read: str, lengths: Sequence[int] | None = None
) -> list[Bucket]:
    """Pack prompts into rows of the given lengths (by default their own quantiles).

    The largest come first, each into the fullest row that has room, else into a new row of the
    shortest length that holds it. Raises ValueError for a prompt longer than every length.
    """
    sizes = [size(prompt, read) for prompt in prompts]
    lengths = sorted(lengths or row_lengths(sizes))
    rows: dict[int, list[list[int]]] = {length: [] for length in lengths}
    open_rows: dict[int, list[list[int]]] = {}  # places left -> rows
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
                raise ValueError(
                    f"a question with its options takes {needed} tokens, and the longest row has "
                    f"{lengths[-1]}; allow longer rows"
                )
            room, row = lengths[at], []
            rows[room].append(row)
        row.append(index)
        room -= needed
        if room not in open_rows:
            open_rows[room] = []
            bisect.insort(rooms, room)
        open_rows[room].append(row)
    return [_bucket(prompts, length, rows[length], read) for length in lengths if rows[length]]


def _bucket(prompts, length: int, rows: list[list[int]], read: str) -> Bucket:
    sources = max(sum(_sources(prompts[i], read) for i in row) for row in rows)
    answers = max(sum(_answers(prompts[i], read) for i in row) for row in rows)
    return Bucket(length, rows, _round_up(sources), _round_up(answers))


def _sources(prompt: Prompt, read: str) -> int:
    if read == LAST:
        return len(prompt.branches)
    return 1 + sum(len(branch) - 1 for branch in prompt.branches)


def _answers(prompt: Prompt, read: str) -> int:
    return len(prompt.branches) if read == LAST else sum(len(b) for b in prompt.branches)


def _round_up(count: int) -> int:
    return -(-count // 8) * 8


def batches(
    prompts: Sequence[Prompt], bucket: Bucket, *, batch_size: int, read: str
) -> Iterator[Rows]:
    """The bucket's rows, `batch_size` at a time; the last batch is filled with empty rows."""
    for begin in range(0, len(bucket.rows), batch_size):
        yield lay_out(
            prompts,
            bucket.rows[begin : begin + batch_size],
            batch_size=batch_size,
            length=bucket.length,
            sources=bucket.sources,
            answers=bucket.answers,
            read=read,
        )


def lay_out(
    prompts: Sequence[Prompt],
    rows: Sequence[Sequence[int]],
    *,
    batch_size: int,
    length: int,
    sources: int,
    answers: int,
    read: str,
) -> Rows:
    """The arrays of one batch, from the indices of the prompts of each row."""
    shapes = Rows(*[length] * 4, sources, *[answers] * 4)
    out = Rows(*(np.zeros((batch_size, n), np.int32) for n in shapes))
    out.prompt_BxL[:] = -1
    out.question_BxE[:] = -1
    for b, row in enumerate(rows):
        place = slots = entries = 0
        for number, index in enumerate(row):
            prompt = prompts[index]
            prefix_end = place + len(prompt.prefix)
            _write(out, b, place, prompt.prefix, position=0, prompt=number, branch=0)
            place = prefix_end
            if read == TOKENS:  # the first token of every branch is read at the prefix's end
                out.source_BxT[b, slots] = prefix_end - 1
                first_slot, slots = slots, slots + 1
            for i, branch in enumerate(prompt.branches):
                written = branch[:-1] if read == TOKENS else branch
                _write(
                    out,
                    b,
                    place,
                    written,
                    position=len(prompt.prefix),
                    prompt=number,
                    branch=i + 1,
                )
                if read == TOKENS:
                    more = np.arange(len(written))
                    out.source_BxT[b, slots + more] = place + more
                    here = slice(entries, entries + len(branch))
                    out.slot_BxE[b, here] = [first_slot, *(slots + more)]
                    out.target_BxE[b, here] = branch
                    slots += len(written)
                else:
                    here = slice(entries, entries + 1)
                    # An empty branch (a whole text is its prefix) is read at the prefix's end.
                    out.source_BxT[b, slots] = (place + len(branch) if branch else prefix_end) - 1
                    out.slot_BxE[b, here] = slots
                    slots += 1
                out.question_BxE[b, here] = prompt.question
                out.option_BxE[b, here] = prompt.first_option + i
                entries, place = here.stop, place + len(written)
    return out


def _write(out: Rows, b: int, place: int, ids, *, position: int, prompt: int, branch: int) -> None:
    here = slice(place, place + len(ids))
    out.tokens_BxL[b, here] = ids
    out.positions_BxL[b, here] = np.arange(position, position + len(ids))
    out.prompt_BxL[b, here] = prompt
    out.branch_BxL[b, here] = branch
