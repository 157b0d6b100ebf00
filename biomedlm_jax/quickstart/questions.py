"""Multiple-choice questions about an invented world, in MedQA's format, split by family.

All facts of a family are in one split, and the wrong options of a question come from its own
split. So no held-out name occurs in any training question: neither elimination ("that gene belongs
to another disease") nor a chain of facts leads from there to a held-out answer. Only the abstracts
do. Questions about one family are not independent, so each names its family as its `group`.
"""

from collections.abc import Sequence
from typing import Any

from biomedlm_jax.quickstart.abstracts import WORDING, capitalised
from biomedlm_jax.quickstart.world import SHARED_VALUES, Fact, Family, SeededRandom, facts

LETTERS = "ABCD"
DEV, TEST = 0.1, 0.3  # shares of families


def split_facts(world: Sequence[Family], seed: int = 0) -> dict[str, list[Fact]]:
    """Return the facts to train on, to choose a checkpoint by and to test: whole families each."""
    order = range(len(world))
    test = round(TEST * len(world))
    dev = test + round(DEV * len(world))
    members = {"train": order[dev:], "dev": order[test:dev], "test": order[:test]}
    return {
        split: [fact for fact in facts(world) if fact.family in of] for split, of in members.items()
    }


def questions(world: Sequence[Family], seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Return every question about `world`, by split.

    A question is {"id", "question", "options": {"A": ..., "D": ...}, "answer_idx", "group"}.
    Exactly one option is right. Within a split all letters are right equally often (to within
    one), and `group` is the family's disease.

    Raises:
      ValueError: a split has fewer than four families to take wrong options from.
    """
    return {
        split: _of_split(of, split, SeededRandom("questions", seed, split), world)
        for split, of in split_facts(world, seed).items()
    }


def _of_split(
    known: list[Fact], split: str, rng: SeededRandom, world: Sequence[Family]
) -> list[dict[str, Any]]:
    if len({fact.family for fact in known}) < len(LETTERS):
        raise ValueError(
            f"expected at least {len(LETTERS)} families in each split, got fewer in {split}; "
            "fix: make a larger world"
        )
    pairs = [
        (fact, asks, text)
        for fact in known
        for asks, texts in WORDING["questions"][fact.relation].items()
        for text in texts
    ]
    letters = rng.balanced(LETTERS, len(pairs))
    made = []
    for number, (fact, asks, text) in enumerate(rng.shuffled(pairs)):
        answer = getattr(fact, asks)
        # Wrong options are answers of the same split first, which are right equally often; a small
        # split may not have all the shared values. Dicts keep their order, sets do not.
        own = {getattr(other, asks) for other in known if other.relation == fact.relation}
        shared = SHARED_VALUES.get(fact.relation, ()) if asks == "value" else ()
        more = [value for value in shared if value not in own]
        wrong = [*rng.shuffled(sorted(own - {answer})), *rng.shuffled(more)]
        options = wrong[: len(LETTERS) - 1]
        options.insert(LETTERS.index(letters[number]), answer)
        question = text.format(
            subject=fact.subject,
            value=fact.value,
            person=rng.choice(("woman", "man")),
            age=rng.integer(19, 76),
        )
        made.append(
            {
                "id": f"{split}-{number:04d}",
                "question": capitalised(question),
                "options": dict(zip(LETTERS, options, strict=True)),
                "answer_idx": letters[number],
                "group": world[fact.family].disease,
            }
        )
    return made
