from collections import Counter

import pytest

from biomedlm_jax.quickstart.world import (
    MAX_FAMILIES,
    RELATIONS,
    SHARED_VALUES,
    SeededRandom,
    facts,
    make_world,
)


def test_equal_seeds_make_equal_worlds():
    assert make_world(3, families=24) == make_world(3, families=24)
    assert make_world(3, families=24) != make_world(4, families=24)


def test_a_name_belongs_to_one_family(names_in):
    names = [
        name
        for family in make_world(families=MAX_FAMILIES)
        for name in (family.disease, family.gene, family.drug)
    ]
    assert len(set(names)) == len(names) == 3 * MAX_FAMILIES
    assert names_in(" ".join(names)) == names


def test_shared_values_are_balanced():
    world = make_world(families=60)
    for relation, values in SHARED_VALUES.items():
        counts = Counter(fact.value for fact in facts(world) if fact.relation == relation)
        assert set(counts) <= set(values)
        assert max(counts.values()) - min(counts.values()) <= 1, relation


def test_facts_are_the_fields_of_families():
    world = make_world(families=5)
    for fact in facts(world):
        subject, value = RELATIONS[fact.relation]
        assert fact.subject == getattr(world[fact.family], subject)
        assert fact.value == getattr(world[fact.family], value)
    assert len(facts(world)) == len(set(facts(world))) == 5 * len(RELATIONS)


@pytest.mark.parametrize("families", [0, MAX_FAMILIES + 1])
def test_a_world_of_impossible_size_names_the_possible_ones(families):
    with pytest.raises(ValueError, match=f"expected 1 to {MAX_FAMILIES} families, got {families}"):
        make_world(families=families)


def test_balanced_choices_and_shuffles():
    rng = SeededRandom("test", 0)
    assert sorted(rng.shuffled("abcde")) == [*"abcde"]
    counts = Counter(rng.balanced("abc", 8))
    assert sum(counts.values()) == 8
    assert max(counts.values()) - min(counts.values()) == 1
    integers = Counter(rng.integer(2, 4) for _ in range(300))
    assert set(integers) == {2, 3, 4}
    assert {rng.choice("xy") for _ in range(50)} == {"x", "y"}
