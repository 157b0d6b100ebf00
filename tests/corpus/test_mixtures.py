"""mixtures.py: exact proportions in every window, and sources that fit together."""

import json
import random

import numpy as np
import pytest

from biomedlm_jax.corpus.mixtures import (
    SOURCES,
    MixedRows,
    Shares,
    Source,
    describe_source,
    interleave,
    parse_mixture,
    read_manifests,
    read_sources,
    source_figures,
    sources_record,
)
from biomedlm_jax.corpus.rows import Rows
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.errors import InputError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a:99,b:1", [("a", "a", 99), ("b", "b", 1)]),
        ("x/a/rows:0.99, x/b/rows/:.01", None),
        ("x/a/rows:0.99, x/b/rows/:0.01", [("a", "x/a/rows", 99), ("b", "x/b/rows/", 1)]),
        ("d=gs://k/a:15,e=/b:1,f=c:4", [("d", "gs://k/a", 15), ("e", "/b", 1), ("f", "c", 4)]),
        ("a:2,b:4,c:6.0", [("a", "a", 1), ("b", "b", 2), ("c", "c", 3)]),
        ("n=d=1/a:1,./k=1/b:1", [("n", "d=1/a", 1), ("b", "./k=1/b", 1)]),
    ],
)
def test_a_mixture_is_parsed(text, expected):
    if expected is None:
        with pytest.raises(InputError, match=r"expected DIR:WEIGHT,DIR:WEIGHT or NAME=DIR:WEI"):
            parse_mixture(text)
        return
    got = [(source.name, source.path, source.weight) for source in parse_mixture(text)]
    assert got == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "expected DIR:WEIGHT,DIR:WEIGHT"),
        ("a:1", "expected DIR:WEIGHT,DIR:WEIGHT"),
        ("a:1,b", "expected DIR:WEIGHT,DIR:WEIGHT"),
        ("a:1,b:-1", "expected DIR:WEIGHT,DIR:WEIGHT"),
        ("a:1,b:nan", "expected DIR:WEIGHT,DIR:WEIGHT"),
        ("a:1,b:1e9", "expected DIR:WEIGHT,DIR:WEIGHT"),
        ("a:1,,b:1", "expected DIR:WEIGHT,DIR:WEIGHT"),
        ("a:1,b:0", "with a weight of 0; leave that source out"),
        ("a/:1,a:2", "with a directory twice"),
        ("n=a:1,n=b:2", "have no names of their own; expected NAME=DIR:WEIGHT"),
        ("p/x:1,p/y:1,q/x:1", "have no names of their own"),
        ("a:123457,b:1", r"exact after 123,458 rows; expected at most 100,000: round the weights"),
    ],
)
def test_a_bad_mixture_is_refused_in_one_line(text, message):
    with pytest.raises(InputError, match=message) as error:
        parse_mixture(text)
    assert "\n" not in str(error.value)


def test_shares_are_exact_in_every_window():
    """Counted by hand: after n rows within 1 - 1 / (2k - 2) of exact, as Tijdeman proved."""
    rng = random.Random(0)
    many = [[99, 1], [3, 1], [15, 1, 4], [1, 1, 1, 1], [1], [1, 59]]
    many += [[rng.randint(1, 40) for _ in range(rng.randint(2, 7))] for _ in range(30)]
    for weights in many:
        total, k = sum(weights), len(weights)
        pattern = interleave(weights)
        assert np.bincount(pattern).tolist() == weights
        order = np.concatenate([pattern, pattern])
        taken = (order == np.arange(k)[:, None]).cumsum(axis=1)
        taken = np.pad(taken, ((0, 0), (1, 0)))
        exact = np.arange(2 * total + 1) * np.array(weights)[:, None] / total
        bound = 1 - 1 / max(1, 2 * k - 2)
        assert np.abs(taken - exact).max() <= bound + 1e-9
        shares = Shares(weights)
        expected = [(int(s), int(taken[s, i])) for i, s in enumerate(order)]
        assert [shares[i] for i in range(2 * total)] == expected
        assert [shares.counts(n) for n in range(2 * total)] == taken.T[:-1].tolist()
        for window in {1, min(3, total), max(1, total - 1), total}:
            inside = taken[:, window : total + window] - taken[:, :total]
            assert shares.most(window) == inside.max(axis=1).tolist()
            assert np.abs(inside - window * np.array(weights)[:, None] / total).max() <= 2 * bound
    assert interleave([3, 1]).tolist() == [0, 0, 1, 0]


def test_positions_far_away_need_no_memory():
    shares = Shares([99, 1])
    assert shares.counts(10**15) == [99 * 10**13, 10**13]
    sources, numbers = zip(*(shares[10**15 + i] for i in range(100)), strict=True)
    assert sources.count(1) == 1
    assert numbers[sources.index(1)] == 10**13


@pytest.fixture
def sources(build, other_documents, tmp_path):
    """Two directories of rows with one tokenizer, 3 to 1."""
    for name, texts in {"one": None, "two": other_documents}.items():
        build(tmp_path / name, **({} if texts is None else {"texts": texts}))
    return parse_mixture(f"{tmp_path}/one:3,{tmp_path}/two:1")


def test_rows_are_numbered_through_all_sources(sources):
    rows = MixedRows(sources, "train")
    alone = np.concatenate([np.stack(list(Rows(source.path, "train"))) for source in sources])
    assert len(rows) == len(alone)
    numbers = np.random.default_rng(0).permutation(len(alone)).tolist()
    got = rows.__getitems__(numbers)
    assert got.dtype == alone.dtype
    np.testing.assert_array_equal(got, alone[numbers])
    assert rows.__getitems__([]).shape == (0, alone.shape[1])
    order = rows.order(range)  # of each source, that of the file
    first = len(Rows(sources[0].path, "train"))
    assert [order[i] for i in range(8)] == [0, 1, first, 2, 3, 4, first + 1, 5]


def test_the_fingerprint_is_of_rows_and_weights(sources):
    def fingerprint(*chosen):
        return MixedRows(chosen, "train").fingerprint()

    one, two = sources
    renamed = Source(name="other", path=one.path, weight=3)
    heavier = Source(name=one.name, path=one.path, weight=4)
    assert fingerprint(one, two) == fingerprint(renamed, two)
    different = [fingerprint(one, two), fingerprint(two, one), fingerprint(heavier, two)]
    assert len({*different}) == 3


def test_sources_that_do_not_fit_are_named_with_the_difference(build, sources, tmp_path):
    build(tmp_path / "long", length=32)
    other = train_tokenizer((f"quite {i * 7919} other words" for i in range(99)), vocab_size=290)
    build(tmp_path / "words", tokenizer=other)
    build(tmp_path / "copy")
    for name, message in (
        ("long", "have length 16 and 32; build both with the same"),
        ("words", r"have tokenizer_hash \w{12} and \w{12}, vocab_size 300 and 290, eos_id 299 an"),
    ):
        with pytest.raises(InputError, match=f"/one and .*/{name} cannot be mixed, they {message}"):
            read_manifests(parse_mixture(f"{tmp_path}/one:3,{tmp_path}/{name}:1"))
    with pytest.raises(InputError, match=r"/one and .*/copy hold the same rows; give one of them"):
        read_manifests(parse_mixture(f"{tmp_path}/one:3,{tmp_path}/copy:1"))
    with pytest.raises(InputError, match="no such directory"):
        read_manifests(parse_mixture(f"{tmp_path}/one:3,{tmp_path}/none:1"))


def test_the_figures_of_a_run(sources, tmp_path):
    manifests = read_manifests(sources)
    sizes = [manifest["splits"]["train"]["rows"] for manifest in manifests]
    kept = json.loads(json.dumps(sources_record(sources, manifests)))
    figures = source_figures(kept, 40, where="here")
    assert [one["rows"] for one in figures] == [30, 10]
    assert [one["passes"] for one in figures] == [30 / sizes[0], 10 / sizes[1]]
    assert describe_source(figures[0]).startswith("one: 75 % of the rows, 30 rows, 0.")

    mixed = {"started_from": {"sources": {"1": {}, "2": {}}}}
    assert read_sources(tmp_path, {"started_from": {"rows": "a"}}, rows=40) == []
    with pytest.raises(InputError, match=r"sources.json of a run on a mixture is missing"):
        read_sources(tmp_path, mixed, rows=40)
    (tmp_path / SOURCES).write_text(json.dumps(kept))
    assert read_sources(tmp_path, mixed, rows=40) == figures
    for bad in ({}, {"sources": []}, {"sources": [{"weight": 0}]}, {"sources": 3}):
        with pytest.raises(InputError, match=r"^here "):
            source_figures(bad, 40, where="here")
    kept["sources"][0]["weight"] = 10**9
    with pytest.raises(InputError, match=r"^here has bad weights"):
        source_figures(kept, 40, where="here")
