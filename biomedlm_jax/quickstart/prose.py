"""Abstracts about an invented world: its facts, in the manner of PubMed, in ever other words."""

import re
from collections.abc import Iterator, Sequence
from itertools import islice

from biomedlm_jax.quickstart.facts import Dice, World
from biomedlm_jax.quickstart.plans import PLANS, Plan
from biomedlm_jax.quickstart.wording import FILLERS, FINDINGS, STATEMENTS

LABELLED = 1 / 3  # the share of abstracts with section labels
SMALL_NUMBERS = ("three", "four", "five", "six", "seven", "eight", "nine")
ANAPHORS = ("the disease", "the disorder", "this condition")
PROMPTED = ("treatment", "gene", "symptom", "organ", "target", "adverse_effect")

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def abstracts(world: World, count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Write `count` abstracts {"id", "title", "text"}, each about one family of the world.

    Families and kinds of abstract take turns, so that every fact is stated about equally often;
    `text` is the title, a line break and the abstract, as in The Pile.
    """
    dice = Dice("abstracts", world.seed, seed)
    turns = _turns(dice, range(len(world.diseases)))
    for number, (family, plan) in enumerate(islice(turns, count)):
        title, body = _abstract(dice, plan, _slots(world, family))
        yield {"id": f"W{number:07d}", "title": title, "text": f"{title}\n{body}"}


def prompts(world: World, count: int = 6) -> list[dict[str, str]]:
    """`count` beginnings of sentences, {"prompt", "completion", "subject", "relation"}.

    The sentences are wordings of the abstracts, and the completion is what the world says.
    """
    facts = {(fact.family, fact.relation): fact for fact in world.facts()}
    asked = []
    for number in range(count):
        fact = facts[number * len(world.diseases) // count, PROMPTED[number % len(PROMPTED)]]
        wording = _CHOICE.sub(lambda match: match[1].split("|")[0], STATEMENTS[fact.relation][0])
        sentence = _fill(wording, _slots(world, fact.family))
        asked.append(
            {
                "prompt": sentence.removesuffix(f" {fact.value}."),
                "completion": f" {fact.value}",
                "subject": fact.subject,
                "relation": fact.relation,
            }
        )
    return asked


def _turns(dice: Dice, families: Sequence[int]) -> Iterator[tuple[int, Plan]]:
    """Pairs of a family and a plan without end: every family once a round, its plans in turn."""
    turns = [dice.between(0, len(PLANS) - 1) for _ in families]
    while True:
        for family in dice.shuffled(families):
            turns[family] = (turns[family] + 1) % len(PLANS)
            yield family, PLANS[turns[family]]


def _slots(world: World, family: int) -> dict[str, str]:
    """What the wording may say of a family: every field of its entities, and their names."""
    disease, gene, drug, trial = world.family(family)
    article = "an" if drug.drug_class[0] in "aeiou" else "a"
    return {
        **vars(trial),
        **vars(drug),
        **vars(gene),
        **vars(disease),
        "disease": disease.name,
        "gene": gene.name,
        "drug": drug.name,
        "trial": trial.name,
        "a_drug_class": f"{article} {drug.drug_class}",
    }


def _abstract(dice: Dice, plan: Plan, slots: dict[str, str]) -> tuple[str, str]:
    """A title and a body; the body's first sentence names the disease, and none comes twice."""
    person, pronoun = dice.pick((("woman", "She"), ("man", "He")))
    slots = slots | {  # what the title and the text must agree on
        "person": person,
        "pronoun": pronoun,
        "age": str(dice.between(19, 76)),
        "families": dice.pick(SMALL_NUMBERS),
        "cohort": str(dice.between(45, 190)),
        "it": slots["disease"],
    }
    title = _sentence(dice, dice.pick(plan.titles), slots)
    labelled = dice.chance(LABELLED)
    said: set[str] = set()  # wordings, and the lists they are of
    sections = []
    for label, draws in plan.sections.items():
        sentences = []
        for count, names in draws:
            new = [name for name in names if name not in said] or names
            # More draws than lists: the same list again.
            for name in (dice.shuffled(new) * count)[:count]:
                wording = dice.pick([s for s in _bank(name, label) if s not in said])
                sentences.append(_sentence(dice, wording, slots))
                said |= {wording, name}
                # The name as often as not: a pronoun all along would hide whose fact it is.
                slots["it"] = slots["disease"] if dice.chance(0.5) else dice.pick(ANAPHORS)
        sections.append((f"{label}: " if labelled else "") + " ".join(sentences))
    return title, " ".join(sections)


def _bank(name: str, label: str) -> tuple[str, ...]:
    """The wordings of a list that fit the section."""
    if name in FILLERS:
        return FILLERS[name]
    return STATEMENTS[name] + (FINDINGS.get(name, ()) if label == "RESULTS" else ())


def _sentence(dice: Dice, wording: str, slots: dict[str, str]) -> str:
    """One wording with its choices made, its slots filled and details of its own."""
    chosen = _CHOICE.sub(lambda match: dice.pick(match[1].split("|")), wording)
    details = {
        "few": dice.pick(SMALL_NUMBERS),
        "years": dice.pick(SMALL_NUMBERS),
        "some": str(dice.between(11, 40)),
        "many": str(dice.between(45, 190)),
    }
    return _fill(chosen, details | slots)


def _fill(wording: str, slots: dict[str, str]) -> str:
    sentence = wording.format_map(slots)
    return sentence[0].upper() + sentence[1:]
