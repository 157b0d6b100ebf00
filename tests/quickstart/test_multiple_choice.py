import json
from collections import Counter
from itertools import chain, combinations

import pytest

from biomedlm_jax.qa.splits import read_questions
from biomedlm_jax.qa.tasks import find_task
from biomedlm_jax.quickstart.multiple_choice import questions, split_facts, write_questions
from biomedlm_jax.quickstart.world import SHARED_VALUES, facts, make_world


@pytest.fixture(scope="module")
def world():
    return make_world(families=60)


@pytest.fixture(scope="module")
def splits(world):
    return questions(world)


def test_questions_have_one_right_answer(world, splits, names_in, states):
    of_value = {(fact.value, fact.relation): fact for fact in facts(world)}
    of_subject = {}
    for fact in facts(world):
        of_subject.setdefault(fact.subject, []).append(fact)
    for question in chain(*splits.values()):
        options, answer = question["options"], question["options"][question["answer_idx"]]
        assert list(options) == ["A", "B", "C", "D"]
        assert len(set(options.values())) == 4
        assert not any(states(question["question"], option) for option in options.values())
        (name,) = names_in(question["question"])
        if name in of_subject and any(fact.value == answer for fact in of_subject[name]):
            fact = next(fact for fact in of_subject[name] if fact.value == answer)
            others = {f.value for f in facts(world) if f.relation == fact.relation}
            assert set(options.values()) <= others
            assert sum(fact.value == option for option in options.values()) == 1
        else:  # the question names the value, and asks for the subject
            fact = next(
                f for (value, _), f in of_value.items() if value == name and f.subject == answer
            )
        assert question["group"] == world[fact.family].disease
    ids = [question["id"] for question in chain(*splits.values())]
    assert len(set(ids)) == len(ids)


def test_every_letter_is_right_equally_often(splits):
    for split in splits.values():
        counts = Counter(question["answer_idx"] for question in split)
        assert len(counts) == 4
        assert max(counts.values()) - min(counts.values()) <= 1


def test_no_held_out_name_occurs_in_a_training_question(world, splits, names_in):
    of_split = split_facts(world)
    assert sorted(chain(*of_split.values())) == sorted(facts(world))
    families = {split: {fact.family for fact in some} for split, some in of_split.items()}
    assert {split: len(some) for split, some in families.items()} == {
        "train": 34,
        "dev": 6,
        "test": 20,
    }
    names = {
        split: {
            name
            for question in some
            for text in (question["question"], *question["options"].values())
            for name in names_in(text)
        }
        for split, some in splits.items()
    }
    for one, other in combinations(names.values(), 2):
        assert one
        assert other
        assert not one & other


def test_shared_values_are_right_equally_often_in_the_test_split(world):
    for relation, values in SHARED_VALUES.items():
        some = [fact.value for fact in split_facts(world)["test"] if fact.relation == relation]
        counts = [some.count(value) for value in values]
        assert max(counts) - min(counts) <= 1, relation


def test_groups_are_families(splits):
    counts = Counter(question["group"] for question in splits["test"])
    assert len(counts) == 20
    assert set(counts.values()) == {18}


def test_written_questions_are_a_set_of_ones_own(tmp_path):
    world = make_world(3, families=40)
    counts = write_questions(tmp_path, world, 3)
    task = find_task(f"jsonl:{tmp_path}")
    assert (task.kind, task.splits) == ("choice", ("train", "dev", "test"))
    for split, rows in questions(world, 3).items():
        read = read_questions(task, split=split)
        assert counts[split] == len(read) == len(rows)
        for question, row in zip(read, rows, strict=True):
            assert question.question == row["question"]
            assert question.group == row["group"]
            assert question.label == "ABCD".index(row["answer_idx"])
            assert question.options == tuple(row["options"].values())


def test_equal_seeds_write_equal_bytes(tmp_path):
    for directory, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_questions(tmp_path / directory, make_world(families=40), seed)
    for split in ("train", "dev", "test"):
        first, again, other = ((tmp_path / d / f"{split}.jsonl").read_bytes() for d in "abc")
        assert first == again != other
        assert json.loads(first.splitlines()[0])["id"] == f"{split}-0000"


def test_a_world_too_small_for_questions_names_the_least_size():
    with pytest.raises(
        ValueError, match=r"at least 4 families in the dev split, got 3; fix: .* 40"
    ):
        questions(make_world(families=32))


@pytest.mark.parametrize("seed", range(3))
def test_any_seed_makes_questions(seed):
    for families in (40, 47, 60):
        assert questions(make_world(seed, families=families), seed)
