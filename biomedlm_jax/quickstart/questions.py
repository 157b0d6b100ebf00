"""Multiple-choice questions about an invented world, in MedQA's shape, split by facts.

A family of facts (a disease, its gene, drug and trial) is in one split as a whole, and the wrong
options of a question come from its own split. So no held-out name occurs in any training question:
neither elimination ("that gene belongs to another disease") nor a chain of facts leads from there
to a held-out answer. Only the abstracts do.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from biomedlm_jax.quickstart.facts import SHARED_VALUES, Dice, Fact, World

LETTERS = "ABCD"
SPLITS = ("train", "dev", "test")
DEV, TEST = 0.15, 0.25  # shares of families


class Wording(NamedTuple):
    """A question about a relation, and which end of the fact it asks for: "value" or "subject"."""

    text: str
    asks: str


# Not asked: a drug's class, which its name gives away, and the figures of the trials.
WORDINGS = {
    "organ": (
        Wording("Which organ is primarily affected by {subject}?", "value"),
        Wording("A {age}-year-old {person} has {subject}. Which organ is damaged?", "value"),
        Wording("In which organ is the damage of {subject} found?", "value"),
    ),
    "symptom": (
        Wording("What is the main symptom of {subject}?", "value"),
        Wording(
            "A {age}-year-old {person} develops {subject}. Which symptom is most likely?", "value"
        ),
        Wording("Which complaint is typical of {subject}?", "value"),
    ),
    "inheritance": (
        Wording("How is {subject} inherited?", "value"),
        Wording("A {age}-year-old {person} has {subject}. What is its inheritance?", "value"),
        Wording("Which pattern of inheritance does {subject} follow?", "value"),
    ),
    "gene": (
        Wording("Mutations in which gene cause {subject}?", "value"),
        Wording(
            "A {age}-year-old {person} has {subject}. Sequencing of which gene is most likely to "
            "show a mutation?",
            "value",
        ),
        Wording("Which disease is caused by mutations in {value}?", "subject"),
    ),
    "treatment": (
        Wording("What is the first-line treatment of {subject}?", "value"),
        Wording(
            "A {age}-year-old {person} is diagnosed with {subject}. Which drug should be given "
            "first?",
            "value",
        ),
        Wording("{value} is the first-line treatment of which disease?", "subject"),
    ),
    "protein": (
        Wording("Which protein does {subject} encode?", "value"),
        Wording("What is the product of the gene {subject}?", "value"),
        Wording("Which gene encodes {value}?", "subject"),
    ),
    "target": (
        Wording("What is the molecular target of {subject}?", "value"),
        Wording("On which protein does {subject} act?", "value"),
        Wording("Which drug targets {value}?", "subject"),
    ),
    "adverse_effect": (
        Wording("What is the most common adverse effect of {subject}?", "value"),
        Wording(
            "A {age}-year-old {person} takes {subject}. Which adverse effect is most likely?",
            "value",
        ),
        Wording("Which complaint is frequently caused by {subject}?", "value"),
    ),
    "drug": (
        Wording("Which drug was compared with placebo in the {subject} trial?", "value"),
        Wording("What did the patients in the {subject} trial receive, if not placebo?", "value"),
        Wording("Which trial compared {value} with placebo?", "subject"),
    ),
}


def split_facts(world: World, seed: int = 0) -> dict[str, list[Fact]]:
    """The facts to train questions on, to choose a state by and to test: whole families each."""
    count = len(world.diseases)
    families = Dice("split", world.seed, seed).shuffled(range(count))
    test = round(TEST * count)
    dev = test + round(DEV * count)
    sides = {"train": families[dev:], "dev": families[test:dev], "test": families[:test]}
    facts = list(world.facts())
    return {split: [f for f in facts if f.family in sides[split]] for split in SPLITS}


def questions(world: World, seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Every question about `world`: the lists of the train, dev and test split.

    A question is {"id", "question", "options": {"A": ..., "D": ...}, "answer_idx", "answer",
    "meta": {"subject", "relation"}}; exactly one option is right, and within a split every letter
    is right equally often (to within one).

    Raises:
      ValueError: a split has fewer than four families to choose wrong options from, as it happens
        in worlds of fewer than 24 diseases.
    """
    asked = {}
    for split, facts in split_facts(world, seed).items():
        dice = Dice("questions", world.seed, seed, split)
        pairs = [(fact, wording) for fact in facts for wording in WORDINGS.get(fact.relation, ())]
        letters = dice.deal(LETTERS, len(pairs))
        asked[split] = [
            _question(dice, f"{split}-{number:04d}", fact, wording, facts, letter)
            for number, ((fact, wording), letter) in enumerate(
                zip(dice.shuffled(pairs), letters, strict=True)
            )
        ]
    return asked


def write_questions(directory: str | Path, world: World, seed: int = 0) -> dict[str, int]:
    """Write train.jsonl, dev.jsonl and test.jsonl; return how many questions each has."""
    directory = Path(directory)
    asked = questions(world, seed)
    directory.mkdir(parents=True, exist_ok=True)
    for split, rows in asked.items():
        # Bytes, because a text file would get Windows' line ends on Windows.
        lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        (directory / f"{split}.jsonl").write_bytes(lines)
    return {split: len(rows) for split, rows in asked.items()}


def _question(
    dice: Dice, name: str, fact: Fact, wording: Wording, facts: Iterable[Fact], letter: str
) -> dict[str, Any]:
    options = _options(dice, fact, wording, facts, letter)
    person = dice.pick(("woman", "man"))
    text = wording.text.format(
        subject=fact.subject, value=fact.value, person=person, age=dice.between(19, 76)
    )
    return {
        "id": name,
        "question": text[0].upper() + text[1:],
        "options": options,
        "answer_idx": letter,
        "answer": options[letter],
        "meta": {"subject": fact.subject, "relation": fact.relation},
    }


def _options(
    dice: Dice, fact: Fact, wording: Wording, facts: Iterable[Fact], letter: str
) -> dict[str, str]:
    """The right answer under its letter, and others of its kind that are wrong for this fact."""
    answer = getattr(fact, wording.asks)
    # Dicts keep their order, where a set's would change from run to run.
    kind = dict.fromkeys(getattr(f, wording.asks) for f in facts if f.relation == fact.relation)
    shared = dict.fromkeys(SHARED_VALUES.get(fact.relation, ())) if wording.asks == "value" else {}
    # Its own split first, whose answers are right as often; a small one may not have them all.
    others = dice.shuffled([*kind]) + dice.shuffled(
        [value for value in shared if value not in kind]
    )
    others.remove(answer)
    if len(others) < len(LETTERS) - 1:
        raise ValueError(
            f"got {len(kind)} families in one split, and a question needs {len(LETTERS)} to choose "
            "from: make a world of at least 24 diseases"
        )
    wrong = iter(others)
    return {at: answer if at == letter else next(wrong) for at in LETTERS}
