"""suffix_index.py against sorted lists of words."""

import json
import random

import numpy as np
import pydivsufsort
import pytest

from biomedlm_jax.corpus import suffix_index
from biomedlm_jax.corpus.input_files import describe
from biomedlm_jax.corpus.ngrams import words
from biomedlm_jax.corpus.suffix_index import (
    FILES,
    INDEX,
    SuffixIndex,
    build_index,
    is_index,
    stale,
)
from biomedlm_jax.errors import InputError
from biomedlm_jax.integrity import SUMS

RNG = random.Random(0)
TEXTS = [
    " ".join(RNG.choices(["Ab", "b", "abc", "ζ-1", "漢", "."], k=RNG.randint(1, 40)))
    for _ in range(30)
]
DOCUMENTS = [words(text) for text in TEXTS]


@pytest.fixture(scope="module", params=[False, True], ids=["32 bits", "64 bits"])
def index(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    rows = [{"text": text, "pmid": str(n)} for n, text in enumerate(TEXTS)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sha256 = describe(folder / "a.jsonl")["sha256"]
    with pytest.MonkeyPatch.context() as patch:
        sort = pydivsufsort.divsufsort
        patch.setattr(pydivsufsort, "divsufsort", lambda text: sort(text, force64=request.param))
        facts = build_index(folder / "a.jsonl", sha256, folder / "a")
    assert facts["words"] == sum(map(len, DOCUMENTS))
    assert np.load(folder / "a" / "suffixes.npy").dtype == (np.int64 if request.param else np.int32)
    return SuffixIndex(folder / "a")


def places_of(run: list[str]) -> list[tuple[int, int]]:
    """(document, word) of each place of a run of words."""
    return [
        (n, i)
        for n, there in enumerate(DOCUMENTS)
        for i in range(len(there) - len(run) + 1)
        if there[i : i + len(run)] == run
    ]


def encoded(run: list[str]) -> bytes:
    return " ".join(["", *run, ""]).encode()


@pytest.mark.parametrize("window", [2, 256])
def test_runs_of_words_are_where_a_scan_has_them(index, window, monkeypatch):
    monkeypatch.setattr(suffix_index, "WINDOW", window)
    for _ in range(150):
        run = RNG.choices(["ab", "b", "abc", "ζ1", "漢", "a"], k=RNG.randint(1, 12))
        if RNG.random() < 0.3:
            there = RNG.choice(DOCUMENTS) or run
            start = RNG.randrange(len(there))
            run = there[start : start + RNG.randint(1, 30)]
        lengths = [n for n in range(1, len(run) + 1) if places_of(run[:n])]
        expected = len(encoded(run[: lengths[-1]])) if lengths else 0
        assert index.longest(encoded(run)) == expected
        rows = index.rows(encoded(run))
        numbers, places = index.places(rows)
        before = [index.words_before(n, at) for n, at in zip(numbers, places, strict=True)]
        assert [*zip(numbers.tolist(), before, strict=True)] == places_of(run)
    assert index.document(3) == {"names": {"pmid": "3"}, "text": TEXTS[3]}


def test_an_index_is_of_its_shard(tmp_path):
    shard, out = tmp_path / "a.jsonl", tmp_path / "a"
    shard.write_text('{"text": "one two"}\n')
    sha256 = describe(shard)["sha256"]
    build_index(shard, sha256, out)
    made = (out / "index.json").stat().st_mtime_ns
    build_index(shard, sha256, out)
    assert (out / "index.json").stat().st_mtime_ns == made  # kept
    assert (is_index(out), is_index(tmp_path), stale(out, sha256)) == (True, False, "")
    assert stale(out, "0" * 64) == "is of other documents"
    with pytest.raises(InputError, match="changed after the corpus was built"):
        build_index(shard, "0" * 64, out)
    (out / "text").write_bytes(b" one")
    assert "text is missing or has another size" in stale(out, sha256)
    build_index(shard, sha256, out)
    assert stale(out, sha256) == ""


@pytest.mark.parametrize("name", [*FILES, INDEX, SUMS])
def test_a_damaged_index_is_refused_or_written_again(tmp_path, name):
    shard, out = tmp_path / "a.jsonl", tmp_path / "a"
    shard.write_text('{"text": "one two", "pmid": "3"}\n')
    sha256 = describe(shard)["sha256"]
    build_index(shard, sha256, out)
    whole = (out / name).read_bytes()
    (out / name).write_bytes(bytes(byte ^ 0x55 for byte in whole))  # of the same size
    if name in ("documents.npy", "frames.npy"):
        assert "is damaged" in stale(out, sha256)
    elif name in ("suffixes.npy", "documents.zst"):
        with pytest.raises(
            InputError, match=r"is damaged.* biomedlm trace --build writes it again"
        ):
            SuffixIndex(out).document(0)
    build_index(shard, sha256, out)
    assert (out / name).read_bytes() == whole
    (out / SUMS).unlink()
    assert "SHA256SUMS is missing" in stale(out, sha256)


def test_it_needs_the_library_to_build(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydivsufsort", None)
    with pytest.raises(InputError, match="needs pydivsufsort, which is missing; fix: pip install"):
        build_index(tmp_path / "a.jsonl", "0", tmp_path / "a")
