"""Multiple-choice questions about an invented world, in MedQA's shape, split by facts.

A family of facts (a disease, its gene, drug and trial) is held out whole, and the wrong options of
a question come from its own side of the split. So no held-out name occurs in any training question:
neither elimination ("that gene belongs to another disease") nor a chain of facts leads from there
to a held-out answer. Only the abstracts do.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from biomedlm_jax.quickstart.facts import SHARED_VALUES, Dice, Fact, World

LETTERS = "ABCD"
HELD_OUT = 0.25  # the share of families
TRAIN, TEST = "train", "test"


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


def split_facts(world: World, seed: int = 0) -> tuple[list[Fact], list[Fact]]:
    """The facts to train questions on and the held-out ones: whole families, a quarter of them."""
    families = Dice("split", world.seed, seed).shuffled(range(len(world.diseases)))
    held_out = set(families[: round(HELD_OUT * len(families))])
    facts = list(world.facts())
    return (
        [fact for fact in facts if fact.family not in held_out],
        [fact for fact in facts if fact.family in held_out],
    )


def questions(world: World, seed: int = 0) -> list[dict[str, Any]]:
    """Every question about `world`, first those of the training facts, in a random order each.

    A question is {"id", "question", "options": {"A": ..., "D": ...}, "answer_idx", "answer",
    "subject", "relation", "split"}; exactly one option is right, and on each side of the split
    every letter is right equally often (to within one).

    Raises:
      ValueError: a side of the split has fewer than four families to choose wrong options from,
        as it happens in worlds of fewer than 14 diseases.
    """
    asked = []
    for split, facts in zip((TRAIN, TEST), split_facts(world, seed), strict=True):
        dice = Dice("questions", world.seed, seed, split)
        pairs = [(fact, wording) for fact in facts for wording in WORDINGS.get(fact.relation, ())]
        letters = dice.deal(LETTERS, len(pairs))
        for (fact, wording), letter in zip(dice.shuffled(pairs), letters, strict=True):
            options = _options(dice, fact, wording, facts, letter)
            person = dice.pick(("woman", "man"))
            text = wording.text.format(
                subject=fact.subject, value=fact.value, person=person, age=dice.between(19, 76)
            )
            asked.append(
                {
                    "id": f"Q{len(asked):05d}",
                    "question": text[0].upper() + text[1:],
                    "options": options,
                    "answer_idx": letter,
                    "answer": options[letter],
                    "subject": fact.subject,
                    "relation": fact.relation,
                    "split": split,
                }
            )
    return asked


def split_questions(
    asked: Iterable[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The training and the held-out ones of `questions`."""
    asked = list(asked)
    return (
        [question for question in asked if question["split"] == TRAIN],
        [question for question in asked if question["split"] == TEST],
    )


def _options(
    dice: Dice, fact: Fact, wording: Wording, facts: Iterable[Fact], letter: str
) -> dict[str, str]:
    """The right answer under its letter, and others of its kind that are wrong for this fact."""
    answer = getattr(fact, wording.asks)
    # Dicts keep their order, where a set's would change from run to run.
    kind = dict.fromkeys(getattr(f, wording.asks) for f in facts if f.relation == fact.relation)
    shared = dict.fromkeys(SHARED_VALUES.get(fact.relation, ())) if wording.asks == "value" else {}
    # Its own side first, whose answers are right as often; a small side may not have them all.
    others = dice.shuffled([*kind]) + dice.shuffled(
        [value for value in shared if value not in kind]
    )
    others.remove(answer)
    if len(others) < len(LETTERS) - 1:
        raise ValueError(
            f"got {len(kind)} families on one side of the split, and a question needs "
            f"{len(LETTERS)} to choose from: make a world of at least 14 diseases"
        )
    wrong = iter(others)
    return {at: answer if at == letter else next(wrong) for at in LETTERS}
