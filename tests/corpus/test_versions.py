import random

import pytest
from duplicates import KEPT, NONE, citation, decide, full, small_tasks

from biomedlm_jax.corpus.articles import Article, Deletion


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


@pytest.mark.parametrize("seed", range(4))
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
