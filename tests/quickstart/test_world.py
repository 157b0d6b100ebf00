import hashlib
import json
import re
from collections import Counter, defaultdict
from itertools import chain, combinations

import pytest

from biomedlm_jax.qa.tasks import find_task, read_examples
from biomedlm_jax.quickstart.facts import DRUG_CLASSES, MAX_DISEASES, SHARED_VALUES
from biomedlm_jax.quickstart.prose import ANAPHORS
from biomedlm_jax.quickstart.wording import FILLERS, FINDINGS, STATEMENTS
from biomedlm_jax.quickstart.world import (
    abstracts,
    make_world,
    prompts,
    questions,
    split_facts,
    write_questions,
    write_world,
)

DOCUMENTS = 1200  # twenty rounds of the 60 diseases


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def documents(world):
    return list(abstracts(world, DOCUMENTS, seed=0))


@pytest.fixture(scope="module")
def splits(world):
    return questions(world, seed=0)


@pytest.fixture(scope="module")
def asked(splits):
    return [question for split in splits.values() for question in split]


def said(value: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None


@pytest.fixture(scope="module")
def family_of(world):
    """Every name, in lower case -> its family."""
    families = {}
    for fact in world.facts():
        families[fact.subject.lower()] = fact.family
        if fact.relation == "protein":
            families[fact.value.lower()] = fact.family
    return families


# A name shows what it is by its letters alone; an eponym takes its second word along.
NAME = re.compile(
    r"\b(?:zv|vl|dv|kv|zl|zr|tv|dz)[a-z]+(?: (?:disease|syndrome))?\b|\b[BGTVZ]Q[A-Z]\d\b", re.I
)


def names_in(text: str) -> set[str]:
    return {
        name if name.endswith(("en disease", "an syndrome")) else name.split()[0]
        for name in (match[0].lower() for match in NAME.finditer(text))
    }


def test_one_seed_writes_the_same_bytes_and_another_seed_does_not(tmp_path):
    for directory, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_world(tmp_path / directory, seed=seed, documents=120, diseases=24)
        write_questions(tmp_path / directory, make_world(seed, diseases=24), seed)
    for name in ("abstracts.jsonl", "facts.json", "train.jsonl", "dev.jsonl", "test.jsonl"):
        first, again, other = ((tmp_path / d / name).read_bytes() for d in "abc")
        assert first == again
        assert first != other


def test_the_world_of_seed_0_is_the_same_on_every_python_and_platform(tmp_path):
    write_world(tmp_path, seed=0, documents=60)
    write_questions(tmp_path, make_world(0))
    written = b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert hashlib.sha256(written).hexdigest()[:16] == "15422384506aeec7", (
        "seed 0 writes other bytes than it did; if the wording or the facts were changed on "
        "purpose, put the new digest here"
    )


def test_a_name_belongs_to_one_family(world):
    owners = {}
    for family, entities in enumerate(map(world.family, range(len(world.diseases)))):
        for name in [entity.name for entity in entities] + [entities[1].protein]:
            assert owners.setdefault(name.lower(), family) == family
    assert len(owners) == 5 * len(world.diseases)
    assert all(names_in(name) == {name} for name in owners)


def test_shared_values_are_dealt_evenly(world):
    for relation, values in SHARED_VALUES.items():
        counts = Counter(fact.value for fact in world.facts() if fact.relation == relation)
        assert set(counts) <= set(values)
        assert max(counts.values()) - min(counts.values()) <= 1, relation


def test_every_fact_is_stated_more_than_once(world, documents, family_of):
    texts = defaultdict(list)
    for document in documents:
        texts[family_of[min(names_in(document["text"]))]].append(document["text"])
    for fact in world.facts():
        both = [t for t in texts[fact.family] if said(fact.subject, t) and said(fact.value, t)]
        assert len(both) >= 2, fact


def test_an_abstract_speaks_of_one_family_and_says_nothing_else_of_it(world, documents, family_of):
    shared = {value for values in SHARED_VALUES.values() for value in values}
    shared |= set(DRUG_CLASSES.values())
    any_shared = re.compile(rf"\b({'|'.join(sorted(shared, key=len, reverse=True))})\b", re.I)
    truth = defaultdict(set)
    for fact in world.facts():
        truth[fact.family].add(fact.value.lower())
    for document in documents:
        text = document["text"]
        (family,) = {family_of[name] for name in names_in(text)}
        assert {value.lower() for value in any_shared.findall(text)} <= truth[family], text


def test_the_figures_are_those_of_the_trial(world, documents):
    trials = {trial.name: trial for trial in world.trials}
    seen = Counter()
    for document in documents:
        for sentence in re.split(r"(?<=\.) ", document["text"]):
            found = [trials[name] for name in trials if name in sentence]
            rates = re.findall(r"\d+%", sentence)
            weeks = re.findall(r"\bweek (\d+)|(\d+) weeks", sentence)
            enrolled = re.findall(r"(\d+) patients with", sentence)
            if rates:
                assert rates == [found[0].drug_response, found[0].placebo_response]
                before_placebo = re.search(r"(\d+%)(?:(?!\d+%).)*placebo", sentence)
                assert before_placebo[1] == found[0].placebo_response
                seen["rates"] += 1
            if weeks:
                assert {a or b for a, b in weeks} == {found[0].weeks}
                seen["weeks"] += 1
            if enrolled:
                assert enrolled == [found[0].participants]
                seen["enrolled"] += 1
    assert min(seen.values()) > 100
    assert len(seen) == 3


def test_abstracts_read_well(documents):
    for document in documents:
        title, body = document["text"].split("\n")
        assert title == document["title"]
        assert not re.search(r"[\[\]{}|]|  |\.\.", body), body
        assert not re.search(r"\ba [aeio]|\ban [^aeioX]|\ba X-", body), body
        assert 50 <= len(document["text"].split()) <= 130
        assert body.endswith(".")
        sentences = [s.split(": ")[-1] for s in re.split(r"(?<=\.) ", body)]
        assert all(s[0].isupper() for s in sentences), body
        assert len(set(sentences)) == len(sentences), body
        assert not any(anaphor in sentences[0].lower() for anaphor in ANAPHORS), body
    bodies = [document["text"].split("\n")[1] for document in documents]
    assert len(set(bodies)) == len(bodies)


def test_families_and_kinds_of_abstract_take_turns(world, documents, family_of):
    counts = Counter(family_of[min(names_in(document["text"]))] for document in documents)
    assert set(counts.values()) == {DOCUMENTS // len(world.diseases)}
    assert len({document["id"] for document in documents}) == DOCUMENTS


def test_questions_have_one_right_answer(world, asked):
    facts = {(fact.subject, fact.relation): fact for fact in world.facts()}
    values = {}
    for fact in facts.values():
        values.setdefault(fact.relation, set()).add(fact.value)
    for question in asked:
        fact = facts[question["meta"]["subject"], question["meta"]["relation"]]
        options = question["options"]
        assert list(options) == ["A", "B", "C", "D"]
        assert len(set(options.values())) == 4
        assert options[question["answer_idx"]] == question["answer"]
        if question["answer"] == fact.value:  # the question names the subject
            assert said(fact.subject, question["question"])
            assert set(options.values()) <= values[fact.relation]
            assert not any(said(option, question["question"]) for option in options.values())
        else:  # it names the value, and asks whose it is
            assert question["answer"] == fact.subject
            assert said(fact.value, question["question"])
            holders = [o for o in options.values() if facts[o, fact.relation].value == fact.value]
            assert holders == [fact.subject]
    assert len({question["id"] for question in asked}) == len(asked)


def test_every_letter_is_right_equally_often(splits):
    for side in splits.values():
        counts = Counter(question["answer_idx"] for question in side)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len(counts) == 4


def test_no_held_out_name_occurs_in_a_training_question(world, splits):
    facts = split_facts(world, seed=0)
    assert sorted(chain(*facts.values())) == sorted(world.facts())
    families = {split: {fact.family for fact in its} for split, its in facts.items()}
    assert {split: len(its) for split, its in families.items()} == {
        "train": 36,
        "dev": 9,
        "test": 15,
    }
    names = {}
    for split, asked in splits.items():
        subjects = {fact.subject for fact in facts[split]}
        assert {question["meta"]["subject"] for question in asked} <= subjects
        names[split] = {
            name
            for question in asked
            for text in (question["question"], *question["options"].values())
            for name in names_in(text)
        }
        assert names[split]
    for one, other in combinations(names, 2):
        assert not names[one] & names[other]


def test_prompts_are_beginnings_of_sentences_in_the_abstracts(world):
    text = "\n".join(document["text"] for document in abstracts(world, 3600))
    for prompt in prompts(world, 6):
        assert f"{prompt['prompt']}{prompt['completion']}." in text


def test_written_files_have_their_shapes(tmp_path):
    summary = write_world(tmp_path, seed=3, documents=90, diseases=24)
    lines = (tmp_path / "abstracts.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert summary["documents"] == len(rows) == 90
    assert all(row["meta"] == {"pile_set_name": "PubMed Abstracts"} for row in rows)
    assert [row["text"] for row in rows] == [
        document["text"] for document in abstracts(make_world(3, diseases=24), 90, seed=3)
    ]
    assert summary["bytes"] == (tmp_path / "abstracts.jsonl").stat().st_size
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert sum(len(facts[split]) for split in ("train", "dev", "test")) == summary["facts"]


def test_written_questions_are_a_set_of_ones_own(tmp_path):
    counts = write_questions(tmp_path, make_world(3, diseases=24), 3)
    task = find_task(f"jsonl:{tmp_path}")
    assert (task.kind, task.splits) == ("choice", ("train", "dev", "test"))
    for split, asked in questions(make_world(3, diseases=24), 3).items():
        examples = read_examples(task, split=split)
        assert counts[split] == len(examples) == len(asked)
        for example, question in zip(examples, asked, strict=True):
            assert example.question == question["question"]
            assert example.options[example.label] == question["answer"]


@pytest.mark.parametrize("diseases", [0, MAX_DISEASES + 1])
def test_a_world_of_impossible_size_says_what_is_possible(diseases):
    with pytest.raises(ValueError, match=f"got diseases={diseases}; a world has 1 to"):
        make_world(diseases=diseases)


def test_a_world_too_small_for_questions_says_so():
    with pytest.raises(ValueError, match="got 3 families in one split"):
        questions(make_world(diseases=23))


@pytest.mark.parametrize("seed", range(5))
def test_any_seed_makes_a_world_with_questions(seed):
    for diseases in (24, 37, 60):
        assert questions(make_world(seed, diseases=diseases), seed)


def test_every_wording_and_choice_can_be_written():
    """A slot that nobody fills, or a choice that is not closed, would hide in a rare sentence."""
    world = make_world(1, diseases=1)
    text = "".join(document["text"] for document in abstracts(world, 3000))
    assert not set("[]{}|") & set(text)
    for wording in {*chain(*STATEMENTS.values(), *FINDINGS.values(), *FILLERS.values())}:
        words = re.split(r"\[[^\]]*\]|\{\w+\}", wording)
        assert all(part in text for part in words), wording
