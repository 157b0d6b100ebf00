"""Shards of token rows: ArrayRecord files of a TFDS dataset, each written alone in any process.

The token counts of the units place each shard in the stream of its split, so that a shard is
written without those before it; a row may begin in one unit and end in another. A shard is a part
(parts_folder.py) until all are there.
"""

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from biomedlm_jax.corpus.packer import read_rows
from biomedlm_jax.corpus.parts_folder import make_once

Span = tuple[Path, int, int]  # a file of ids, the first of them, and the one after the last
SHARD = "rows.array_record"  # in a part
# Of the classes whose messages ArrayRecord repeats, with the text of the operating system.
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def plan_shards(
    units: Sequence[tuple[Path, int]], *, length: int, most_rows: int
) -> Iterator[list[Span]]:
    """Yield the spans of each shard of `most_rows` rows, the last may have fewer.

    `units` are files of ids and their numbers of ids. Ids that fill no row are in no shard.
    """
    ends = list(accumulate(count for _, count in units))
    whole = ends[-1] // length * length if ends else 0
    unit = 0
    for first in range(0, whole, most_rows * length):
        last, spans = min(first + most_rows * length, whole), []
        while first < last:
            path, count = units[unit]
            stop = min(last, ends[unit])
            if stop > first:
                start = ends[unit] - count
                spans.append((path, first - start, stop - start))
            first = stop
            unit += stop == ends[unit]
        yield spans


def make_row_shard(
    folder: Path, spans: Sequence[Span], length: int, dtype: str, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the part `folder` with the rows of spans, unless it is there; return its part.json.

    That has `identity`, the number of rows and the bytes of the records.
    """

    def write(new: Path) -> dict[str, int]:
        from array_record.python.array_record_module import ArrayRecordWriter  # ty: ignore[import-not-found]

        (head, tail), rows, size = _record_frame(length, dtype), 0, 0
        try:
            writer = ArrayRecordWriter(str(new / SHARD), "group_size:1")
            for block in read_rows(spans, length=length, dtype=dtype):
                for row in block:
                    writer.write(b"".join((head, row.data, tail)))
                rows += len(block)
                size += block.nbytes + len(block) * len(head + tail)
            writer.close()
        except RuntimeError as error:  # of any cause
            code = next((code for code in ERRORS if os.strerror(code) in str(error)), errno.EIO)
            raise OSError(code, os.strerror(code), str(new / SHARD)) from error
        return {"rows": rows, "bytes": size}

    return make_once(folder, identity, write)


def row_features(length: int, dtype: str) -> Any:
    """Return the features of TFDS of a row."""
    import tensorflow_datasets as tfds  # takes a second to import

    # Raw bytes: a tf.Example would store the ids as int64.
    row = tfds.features.Tensor(shape=(length,), dtype=np.dtype(dtype), encoding="bytes")
    return tfds.features.FeaturesDict({"tokens": row})


def _record_frame(length: int, dtype: str) -> tuple[bytes, bytes]:
    """Return what TFDS writes before and after the ids of a row, which takes it most of the time.

    All rows have the same length, and their records the same bytes around the ids.
    """
    row = np.arange(length).astype(dtype)
    record = row_features(length, dtype).serialize_example({"tokens": row})
    head, ids, tail = record.partition(row.data)
    if not ids:
        raise NotImplementedError("tensorflow_datasets does not write the ids of a row as they are")
    return head, tail


def write_dataset(
    directory: Path,
    shards: Mapping[str, Sequence[tuple[Path, Mapping[str, Any]]]],
    *,
    length: int,
    dtype: str,
) -> None:
    """Make the TFDS dataset `directory` of the shards of each split, whose files are moved.

    A shard is its part's directory and part.json.
    """
    import tensorflow_datasets as tfds

    directory.mkdir()
    identity = tfds.core.DatasetIdentity(
        name="token_rows",
        version=tfds.core.Version("1.0.0"),
        data_dir=str(directory),
        module_name="biomedlm_jax.corpus.tokens",
    )
    info = tfds.core.DatasetInfo(builder=identity, features=row_features(length, dtype))
    info.set_file_format("array_record")
    splits = []
    for split, parts in shards.items():
        template = tfds.core.ShardedFileTemplate(
            dataset_name=info.name,
            data_dir=tfds.core.Path(directory),
            split=split,
            filetype_suffix="array_record",
            template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
        )
        for number, (folder, _) in enumerate(parts):
            name = template.sharded_filepath(shard_index=number, num_shards=None)
            (folder / SHARD).rename(os.fspath(name))
        split_info = tfds.core.SplitInfo(
            name=split,
            shard_lengths=[part["rows"] for _, part in parts],
            num_bytes=sum(part["bytes"] for _, part in parts),
            filename_template=template,
        )
        splits.append(split_info)
    info.set_splits(tfds.core.SplitDict(splits))
    info.write_to_directory(directory)
