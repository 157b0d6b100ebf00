import numpy as np
from duplicates import KEPT, RNG, WORDS, citation, decide, edited, full, text, write_segments

from biomedlm_jax.corpus import containment, sorted_runs
from biomedlm_jax.corpus.containment import pair_ranges, sample_rows, seed_rows


def test_a_text_inside_a_longer_one_is_left_out():
    inside, changed, half, other = (RNG.choices(WORDS, k=150) for _ in range(4))
    body = [*text(900).split(), *inside, *text(300).split()]
    long = [*edited(changed, 5), *half[:75], *text(800).split()]
    records = [
        citation(abstract=" ".join(inside)),
        citation(abstract=" ".join(changed)),
        citation(abstract=" ".join(half)),
        citation(abstract=" ".join(other)),
        full(body=" ".join(body)),
        full(body=" ".join(long)),
    ]
    assert decide(records) == [("contained", 4), ("contained", 5), KEPT, KEPT, KEPT, KEPT]
    assert decide(records, contained=0) == [KEPT] * 6
    assert decide(records, contained=0.9)[1] == KEPT


def test_containment_finds_what_exact_comparison_finds():
    articles = [RNG.choices(WORDS, k=700) for _ in range(60)]
    parts = [article[100:260] for article in articles]
    parts = [edited(part, n % 5) for n, part in enumerate(parts)]
    records = [
        citation(abstract=" ".join(part))
        for part in (*parts, *map(str.split, map(text, [150] * 60)))
    ]
    records += [full(body=" ".join(article)) for article in articles]
    got = decide(records, segment=50)
    assert sum(got[n] == ("contained", 120 + n) for n in range(60)) >= 57
    assert got[60:] == [KEPT] * 120


def test_a_chain_of_contained_texts_ends_in_one_that_stays():
    large = RNG.choices(WORDS, k=1400)
    records = [
        citation(abstract=" ".join(large[200:300])),
        full(body=" ".join(large[100:600])),
        full(body=" ".join(large)),
    ]
    assert decide(records) == [("contained", 2), ("contained", 2), KEPT]


def test_a_common_phrase_is_no_containment(monkeypatch):
    monkeypatch.setattr(containment, "COMMON", 5)
    phrase = text(120)
    records = [citation(abstract=phrase), *(full(body=f"{text(400)} {phrase}") for _ in range(6))]
    assert decide(records) == [KEPT] * 7  # more than COMMON articles have it: nobody's abstract
    assert decide(records[:5])[0] == ("contained", 1)


def test_the_ranges_of_a_join_have_equal_parts_of_the_keys(tmp_path):
    """Though seeds and samples are the smallest hashes of their texts."""
    records = [citation(abstract=text(150)) for _ in range(150)]
    segments, kept = write_segments(tmp_path, records), np.ones(150, bool)
    edges = np.array([first for first, _ in sorted_runs.ranges(1 << 22)], np.uint64)
    assert len(edges) == 16
    for rows_of in (seed_rows, sample_rows):
        keys = rows_of(segments, kept, 0, len(segments.sizes))["key"]
        counts = np.bincount(np.searchsorted(edges, keys, side="right") - 1, minlength=16)
        assert len(keys) > 800
        assert counts.max() < 2 * counts.min()


def test_ranges_of_pairs_have_a_limited_number_of_whole_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(containment, "COMPARED", 100)
    monkeypatch.setattr(containment, "_SAMPLED", 10)
    parts = np.random.default_rng(0).integers(0, 5000, 4000) ** 2  # more of the small ones
    pairs = (parts.astype(np.uint64) << np.uint64(32)) | np.arange(4000, dtype=np.uint64)
    for number in range(4):
        sorted_runs.save(tmp_path / f"{number}.npy", np.sort(pairs[number::4]))
    ranges = pair_ranges(tmp_path, list("0123"))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 2**64
    assert [end for _, end in ranges[:-1]] == [first for first, _ in ranges[1:]]
    assert all(end % 2**32 == 0 for _, end in ranges)
    edges = np.array([end for _, end in ranges[:-1]], np.uint64)
    counts = np.bincount(np.searchsorted(edges, pairs, side="right"), minlength=len(ranges))
    assert 20 <= len(ranges) <= 41
    assert counts.max() < 300
    sorted_runs.save(tmp_path / "none.npy", pairs[:0])
    assert pair_ranges(tmp_path, ["none"]) == pair_ranges(tmp_path, []) == []
