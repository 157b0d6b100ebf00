from itertools import combinations

from duplicates import KEPT, RNG, WORDS, citation, decide, edited, full, text

from biomedlm_jax.corpus.signatures import jaccard, shingles


def test_of_equal_texts_the_first_stays():
    one = text()
    records = [citation(abstract=one), full(), full(body=f" {one}\n"), citation(abstract=one)]
    for options in ({}, {"near": 0, "contained": 0}):
        got = decide(records, **options)
        assert got == [KEPT, KEPT, ("exact_duplicate", 0), ("exact_duplicate", 0)]
    # A word in capitals is no equal text, but a near one.
    shouted = [records[0], citation(abstract=one.upper())]
    assert decide(shouted, near=0) == [KEPT, KEPT]
    assert decide(shouted) == [KEPT, ("near_duplicate", 0)]


def test_near_duplicates_are_those_of_exact_jaccard():
    """200 planted pairs at a similarity from 0.8 to 0.82, and 100 below, among other texts."""
    pairs = []
    for number in range(300):
        words = RNG.choices(WORDS, k=244)  # 240 shingles
        pairs.append((words, edited(words, 5 if number < 200 else 7)))
    firsts, seconds = zip(*pairs, strict=True)
    records = [citation(abstract=" ".join(words)) for words in (*firsts, *seconds)]
    sets = [{tuple(w[i : i + 5]) for i in range(len(w) - 4)} for w in (*firsts, *seconds)]
    truth = [len(a & b) / len(a | b) for a, b in zip(sets[:300], sets[300:], strict=True)]
    assert 0.8 <= min(truth[:200]) < max(truth[:200]) < 0.82
    assert max(truth[200:]) < 0.8
    got = decide(records, segment=100, contained=0)
    assert got[:300] == [KEPT] * 300
    right = sum(got[300 + i] == ("near_duplicate", i) for i in range(200))
    assert right >= 0.95 * 200, f"recall {right / 200}"
    assert got[500:] == [KEPT] * 100  # no pair below the threshold


def test_a_near_duplicate_is_one_of_a_document_that_stays():
    """a is like b and b like c, but c is not like a: c stays though b goes."""
    a = RNG.choices(WORDS, k=244)
    b = [*a[:-20], *RNG.choices(WORDS, k=20)]
    c = [*RNG.choices(WORDS, k=20), *b[20:]]
    records = [citation(abstract=" ".join(words)) for words in (a, b, c)]
    similar = [
        jaccard(shingles(records[i].text), shingles(records[j].text))
        for i, j in combinations(range(3), 2)
    ]
    assert similar[0] > 0.8 > similar[1]
    assert similar[2] > 0.8
    assert decide(records) == [KEPT, ("near_duplicate", 0), KEPT]
