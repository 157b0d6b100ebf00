import random
from collections import Counter

from duplicates import KEPT, NONE, WORDS, citation, decide, full, small_tasks

from biomedlm_jax.corpus.articles import Deletion


def corpus():
    """200 records, with every reason to leave some out and with chains of similar texts."""
    rng = random.Random(5)
    template = rng.choices(WORDS, k=60)
    base = [rng.choices(WORDS, k=rng.randint(60, 160)) for _ in range(30)]
    records = []
    for _ in range(200):
        words = list(rng.choice([*base, template]))
        for _ in range(rng.choice([0, 0, 1, 2, 4])):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        pmid = rng.choice(["", "", str(rng.randint(1, 50))])
        names = {"pmid": pmid, "version": rng.randint(1, 3)}
        kind = rng.randrange(8)
        if kind == 0:
            records.append(Deletion("", pmid or "1"))
        elif kind == 1:
            records.append(full(body=" ".join([*rng.choices(WORDS, k=200), *words]), **names))
        elif kind < 4:
            words = [*template[5 * kind :], *words[:8]]
            records.append(citation(abstract=" ".join(words), **names))
        else:
            records.append(citation(abstract=" ".join(words), **names))
    return records


def test_the_number_of_tasks_does_not_matter(monkeypatch):
    records = corpus()
    expected = decide(records, {3, 4, 5}, segment=1000)
    reasons = Counter(reason for reason, _ in expected)
    assert {*reasons} == {"", "no_text", "deleted", "older_version", "abstract_of_article"} | {
        "exact_duplicate",
        "near_duplicate",
        "contained",
    }
    small_tasks(monkeypatch, 90)
    assert decide(records, {3, 4, 5}, segment=33) == expected


def test_nothing_and_texts_without_words():
    assert decide([]) == []
    assert decide([citation(abstract="?"), citation(abstract="!")]) == [KEPT, KEPT]
    assert decide([Deletion("", "1"), Deletion("", "1")]) == [NONE, NONE]
