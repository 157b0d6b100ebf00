"""rows.py: random access equals what TFDS reads, and damaged rows are refused."""

import random
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from biomedlm_jax.corpus.rows import Rows


def test_rows_are_read_in_any_order_and_by_tfds_alone(build, out):
    manifest = build()
    rows = Rows(out, "train")
    everything = np.stack(list(rows))
    assert rows.manifest == manifest
    assert everything.shape == (len(rows), 16) == (manifest["splits"]["train"]["rows"], 16)
    order = random.Random(0).choices(range(len(rows)), k=50)
    assert np.array_equal(rows.__getitems__(order), everything[order])
    assert np.array_equal(rows[-1], everything[-1])
    for index in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            rows[index]
    builder: Any = tfds.builder_from_directory(str(out / "rows"))
    source = builder.as_data_source("train")
    assert np.array_equal([record["tokens"] for record in source], everything)


def test_a_split_without_rows(build, out):
    build(validation_fraction=0)
    assert list(Rows(out, "validation")) == []


def test_damaged_rows(build, out):
    build()
    with pytest.raises(ValueError, match="got the split 'test'; expected one of train, validation"):
        Rows(out, "test")
    rows = Rows(out, "train")
    rows.manifest["vocab_size"] = 299  # the rows hold 299, the end of text
    with pytest.raises(ValueError, match="token id 299, but its vocabulary has 299 entries"):
        rows.__getitems__(range(len(rows)))
    next((out / "rows").glob("*validation*-00000")).unlink()
    with pytest.raises(ValueError, match="validation rows"):
        Rows(out, "validation")
