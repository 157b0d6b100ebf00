import hashlib
import json
import re
from collections import Counter
from itertools import chain

import pytest

from biomedlm_jax.quickstart.abstracts import WORDING, abstracts, fact_prompts, write_world
from biomedlm_jax.quickstart.world import RELATIONS, SHARED_VALUES, facts, make_world


@pytest.fixture(scope="module")
def world():
    return make_world(families=60)


@pytest.fixture(scope="module")
def texts(world):
    return list(abstracts(world, 1200))


def test_the_world_of_seed_0_is_the_same_on_every_python_and_platform(tmp_path):
    for directory, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_world(tmp_path / directory, families=60, documents=60, seed=seed)
    first, again, other = (
        b"".join(path.read_bytes() for path in sorted((tmp_path / directory).iterdir()))
        for directory in "abc"
    )
    assert first == again != other
    assert hashlib.sha256(first).hexdigest()[:16] == "1c8b426b986fbb74", (
        "seed 0 writes other bytes than before; if the wording or the facts were changed on "
        "purpose, put the new digest here"
    )


def test_every_fact_is_stated_in_one_sentence_often(world, texts, states):
    sentences = [s for text in texts for s in re.split(r"(?<=\.) |\n", text)]
    by_name = {name: [s for s in sentences if name in s] for name in names_of(world)}
    for fact in facts(world):
        stated = [s for s in by_name[fact.subject] if states(s, fact.value)]
        assert len(stated) >= 8, fact


def names_of(world) -> dict[str, int]:
    return {
        name: index
        for index, family in enumerate(world)
        for name in (family.disease, family.gene, family.drug)
    }


def test_a_sentence_states_nothing_but_facts_of_its_family(world, texts, names_in):
    families = names_of(world)
    shared = {value for values in SHARED_VALUES.values() for value in values}
    any_shared = re.compile(rf"\b({'|'.join(sorted(shared, key=len, reverse=True))})\b", re.I)
    values = [{v.lower() for v in vars(family).values()} for family in world]
    for text in texts:
        for sentence in re.split(r"(?<=\.) |\n", text):
            owners = {families[name] for name in names_in(sentence)}
            stated = {value.lower() for value in any_shared.findall(sentence)}
            if owners:
                (owner,) = owners
                assert stated <= values[owner], sentence


def test_abstracts_read_well(texts):
    for text in texts:
        title, body = text.split("\n")
        assert title[0].isupper()
        assert not re.search(r"[\[\]{}|]|  |\.\.", text), text
        assert not re.search(r"\ba [aeio]|\ban [^aeio]", text), text
        assert 30 <= len(text.split()) <= 90
        sentences = [s.split(": ")[-1] for s in re.split(r"(?<=\.) ", body)]
        assert all(s[0].isupper() and s.endswith(".") for s in sentences), body
        assert len(set(sentences)) == len(sentences), body
    assert len(set(texts)) == len(texts)


def test_families_and_kinds_of_abstract_are_balanced(world, texts, names_in):
    reviews = [text for text in texts if len({*names_in(text)}) > 3]
    assert len(reviews) == len(texts) / 5
    counts = Counter(name for text in texts for name in {*names_in(text)})
    diseases = [counts[family.disease] for family in world]
    assert max(diseases) < 1.5 * min(diseases)


def test_every_wording_and_choice_can_be_written():
    """An unknown slot, or a choice that is not closed, would hide in a rare sentence."""
    text = "".join(abstracts(make_world(families=1), 3000))
    assert not set("[]{}|") & set(text)
    titles = [plan["titles"] for plan in WORDING["plans"]]
    lists = [*WORDING["statements"].values(), *WORDING["fillers"].values(), *titles]
    for wording in chain(*lists):
        parts = re.split(r"\[[^\]]*\]|\{\w+\}", wording)
        assert all(part in text for part in parts), wording


def test_prompts_are_beginnings_of_sentences_in_the_abstracts(world):
    text = "\n".join(abstracts(world, 4800))
    made = fact_prompts(world, 6)
    assert len(made) == 6
    assert len({prompt["prompt"].split()[1] for prompt in made}) > 2  # of several relations
    for prompt in made:
        assert f"{prompt['prompt']}{prompt['completion']}." in text


def test_written_files_have_their_shapes(tmp_path):
    world = write_world(tmp_path, families=24, documents=90, seed=3)
    rows = [json.loads(line) for line in (tmp_path / "abstracts.jsonl").read_text().splitlines()]
    assert all(row["meta"] == {"pile_set_name": "PubMed Abstracts"} for row in rows)
    assert [row["text"] for row in rows] == list(abstracts(make_world(3, families=24), 90, 3))
    written = json.loads((tmp_path / "facts.json").read_text())
    assert written["seed"] == 3
    assert [tuple(fact.values()) for fact in written["facts"]] == facts(world)
    assert len(written["facts"]) == 24 * len(RELATIONS)
