import random
from dataclasses import replace
from itertools import combinations

import pytest
from duplicates import KEPT, NONE, RNG, WORDS, citation, decide, full, text

from biomedlm_jax.corpus import containment, copies, deduplication, sorted_runs
from biomedlm_jax.corpus.articles import Article, Deletion
from biomedlm_jax.corpus.signatures import jaccard, shingles


def test_the_newest_version_of_a_citation_wins():
    records = [
        citation(pmid="1"),
        citation(pmid="2", version=2),
        citation(pmid="2", version=1),
        citation(pmid="1"),  # of an update file: the same version, but later
        citation(pmid="3"),
        citation(),
        citation(),
    ]
    got = decide(records)
    assert got == [("older_version", 3), KEPT, ("older_version", 1), KEPT, KEPT, KEPT, KEPT]


def test_a_deletion_removes_the_citations_before_it():
    records = [
        citation(pmid="1"),
        full(pmid="1"),  # of another publisher
        Deletion("", "1"),
        citation(pmid="2"),
        Deletion("", "2"),
        citation(pmid="2"),  # is back
        Deletion("", "9"),
    ]
    assert decide(records) == [("deleted", -1), KEPT, NONE, ("deleted", -1), NONE, KEPT, NONE]


def test_an_abstract_whose_article_is_there_is_left_out_by_any_identifier():
    records = [
        citation(pmid="1"),
        citation(pmid="2", doi="10.1/B"),
        citation(pmcid="PMC3"),
        citation(pmid="4", doi="10.1/d"),
        full(pmid="1", pmcid="PMC1"),
        full(doi="https://doi.org/10.1/b"),
        full(pmcid="PMC3"),
    ]
    covered = [("abstract_of_article", other) for other in (4, 5, 6)]
    assert decide(records) == [*covered, KEPT, KEPT, KEPT, KEPT]


def test_an_identifier_that_articles_share_is_none():
    supplement = [citation(pmid=str(n), doi="10.1/supplement") for n in (1, 2, 3)]
    assert decide([*supplement, full(doi="10.1/supplement")]) == [KEPT] * 4
    assert decide([citation(pmid="1", pmcid="PMC1"), full(pmid="2", pmcid="PMC1")]) == [KEPT] * 2


def test_a_refused_newest_version_does_not_bring_back_an_older_one():
    records = [
        citation(pmid="1"),
        citation(pmid="1", version=2),
        full(pmid="2"),
        citation(pmid="2"),
    ]
    # The full text of 2 has a licence that the filters refuse: its citation stays.
    assert decide(records, refused={1, 2}) == [("older_version", 1), NONE, NONE, KEPT]


def by_hand(records) -> list[str]:
    """The rule of versions, one article at a time, where only PMIDs identify."""
    reasons = []
    for i, record in enumerate(records):
        if isinstance(record, Deletion):
            reasons.append("no_text")
            continue
        later = records[i + 1 :]
        same = [
            (one.version, j, bool(one.body))
            for j, one in enumerate(records)
            if isinstance(one, Article) and one.pmid == record.pmid
            if one.body
            or not any(isinstance(x, Deletion) and x.pmid == one.pmid for x in records[j + 1 :])
        ]
        kind = [(version, j) for version, j, body in same if body == bool(record.body)]
        if not record.body and any(
            isinstance(x, Deletion) and x.pmid == record.pmid for x in later
        ):
            reasons.append("deleted")
        elif max(kind)[1] != i:
            reasons.append("older_version")
        elif not record.body and any(body for *_, body in same):
            reasons.append("abstract_of_article")
        else:
            reasons.append("")
    return reasons


def small_tasks(monkeypatch, size):
    """Let there be many tasks, which hold about so many keys, rows or links."""
    for module in (sorted_runs, containment, deduplication):
        monkeypatch.setattr(module, "JOINED", size)
    monkeypatch.setattr(copies, "CACHED", size)
    monkeypatch.setattr(containment, "COMPARED", size)
    monkeypatch.setattr(containment, "_SAMPLED", 1 + size // 10)
    monkeypatch.setattr(deduplication, "RUN_BYTES", 1000 * size)
    monkeypatch.setattr(deduplication, "LINKS", size)
    monkeypatch.setattr(deduplication, "COMPARING", (size, 64))


@pytest.mark.parametrize("seed", range(8))
def test_versions_follow_the_rule(seed, monkeypatch):
    small_tasks(monkeypatch, 10)
    rng = random.Random(seed)
    records = []
    for _ in range(80):
        pmid, version = str(rng.randint(1, 25)), rng.randint(1, 3)
        kind = rng.choices((citation, full, Deletion), (6, 2, 1))[0]
        values = {"place": "", "pmid": pmid}
        records.append(Deletion(**values) if kind is Deletion else kind(pmid=pmid, version=version))
    got = decide(records, segment=rng.randint(1, 30), near=0, contained=0)
    assert [reason for reason, _ in got] == by_hand(records)


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


def edited(words: list[str], changes: int) -> list[str]:
    """Change words that are far from each other: each change takes five shingles."""
    places = RNG.sample(range(3, len(words) - 3, 7), changes)
    return [RNG.choice(WORDS) + "x" if i in places else word for i, word in enumerate(words)]


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


@pytest.mark.parametrize(("segment", "joined"), [(5, 50), (20, 9), (1000, 1 << 22)])
def test_segments_and_turns_do_not_matter(segment, joined, monkeypatch):
    rng = random.Random(5)
    base = [citation(pmid=str(n), abstract=text(80)) for n in range(30)]
    records = [replace(rng.choice(base), pmid=rng.choice(["", "1", "2", "77"])) for _ in range(60)]
    expected = decide(records)
    small_tasks(monkeypatch, joined)
    assert decide(records, segment=segment) == expected
    assert {reason for reason, _ in expected} >= {"", "older_version", "exact_duplicate"}


def test_nothing_and_texts_without_words():
    assert decide([]) == []
    assert decide([citation(abstract="?"), citation(abstract="!")]) == [KEPT, KEPT]
    assert decide([Deletion("", "1"), Deletion("", "1")]) == [NONE, NONE]
