"""ngram_search.py against sets of words, with one process and with several."""

import json
import random
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedlm_jax.corpus.ngram_search import EXAMPLES, search_documents
from biomedlm_jax.corpus.ngrams import NgramIndex
from biomedlm_jax.errors import InputError

LENGTH = 3
RNG = random.Random(0)
TEXTS = [" ".join(RNG.choices("abcdefg", k=RNG.randint(1, 12))) for _ in range(24)]
OWNERS = [number // 2 for number in range(24)]
GROUPS = [owner % 3 for owner in range(12)]
DOCUMENTS = [" ".join(RNG.choices("abcdefghij", k=30)) for _ in range(21)]


def grams(text: str) -> list[str]:
    there = text.split()
    return [" ".join(there[i : i + LENGTH]) for i in range(len(there) - LENGTH + 1)]


def longest_run(texts: list[str], there: set[str]) -> int:
    """The most consecutive n-grams of one of the texts that are in a set."""
    marks = ["".join("x" if gram in there else " " for gram in grams(text)) for text in texts]
    return max(len(run) for mark in marks for run in [*mark.split(" "), ""])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    rows = [{"text": text, "pmid": n, "id": f"d{n}"} for n, text in enumerate(DOCUMENTS)]
    for name, part in (("a", rows[:9]), ("b", [{"text": " "}]), ("c", rows[9:15])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines)
    pq.write_table(pa.Table.from_pylist(rows[15:]), folder / "d.parquet")
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_counts_and_examples_are_those_of_sets(files, tmp_path, workers):
    index = NgramIndex.of(TEXTS, "words", LENGTH)
    calls = []
    matches = search_documents(
        [index],
        np.array(OWNERS),
        np.array(GROUPS),
        [files],
        tmp_path,
        workers=workers,
        progress=lambda done, of: calls.append((done, of)),
    )
    assert calls[-1] == (len(calls), len(calls))
    assert (matches.documents, matches.skipped.empty) == (21, 1)
    assert matches.text_bytes == sum(map(len, DOCUMENTS))
    assert [one["path"][-7:] for one in matches.inputs] == [
        "a.jsonl",
        "b.jsonl",
        "c.jsonl",
        "parquet",
    ]
    sets = [{*grams(document)} for document in DOCUMENTS]
    of = matches.units["words"]
    expected = [
        index.offsets[n] + i
        for n, text in enumerate(TEXTS)
        for i, gram in enumerate(grams(text))
        if gram in set().union(*sets)
    ]
    assert of.starts.tolist() == expected
    by_owner = [[TEXTS[n] for n in range(24) if OWNERS[n] == owner] for owner in range(12)]
    runs = [[longest_run(texts, there) for there in sets] for texts in by_owner]
    counts = {owner: sum(map(bool, of_owner)) for owner, of_owner in enumerate(runs)}
    assert of.documents == Counter(counts)
    for group in range(3):
        hit = [any(runs[o][d] for o in range(12) if GROUPS[o] == group) for d in range(21)]
        assert of.group_documents[group] == sum(hit)
    for owner, of_owner in enumerate(runs):
        best = sorted((-run, d) for d, run in enumerate(of_owner) if run)[:EXAMPLES]
        examples = of.examples.get(owner, [])
        got = [(-one.ngrams, int(one.names["pmid"])) for one in examples]
        assert got == best
        for one in examples:
            assert one.names["id"] == f"d{one.names['pmid']}"
            place = one.start - int(index.offsets[one.text])
            there = sets[int(one.names["pmid"])]
            assert {*grams(TEXTS[one.text])[place : place + one.ngrams]} <= there


def test_a_search_after_an_error_has_its_own_texts(files, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "a b c"}\n{"text": 3}\n')
    (tmp_path / "index").mkdir()
    one = np.zeros(1, int)
    arguments = one, one, [tmp_path / "bad.jsonl"], tmp_path / "index"
    with pytest.raises(InputError, match=r"bad\.jsonl:2"):
        search_documents([NgramIndex.of(["a b c"], "words", LENGTH)], *arguments)
    (tmp_path / "bad.jsonl").write_text('{"text": "a b c"}\n')
    shutil.rmtree(tmp_path / "index")
    (tmp_path / "index").mkdir()
    other = NgramIndex.of(["x y z"], "words", LENGTH)
    assert not search_documents([other], *arguments).units["words"].starts.size


def test_no_documents(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    (tmp_path / "index").mkdir()
    index, one = NgramIndex.of(["a b c"], "words", LENGTH), np.zeros(1, int)
    with pytest.raises(InputError, match=r"no documents in 1 file.*1 empty text"):
        search_documents([index], one, one, [tmp_path / "a.jsonl"], tmp_path / "index")
