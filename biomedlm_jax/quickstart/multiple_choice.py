"""Multiple-choice questions about an invented world, in MedQA's format, split by family.

All facts of a family are in one split, and the wrong options of a question come from its own
split. So no held-out name occurs in any training question: a held-out answer follows from no
training question, not by elimination ("that gene belongs to another disease") and not by a chain
of facts. It is stated in the abstracts only. Questions about one family are not independent, so
each names its family as its `group`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_jsonl
from biomedlm_jax.quickstart.abstracts import WORDING, capitalised
from biomedlm_jax.quickstart.world import SHARED_VALUES, Fact, Family, SeededRandom, facts

LETTERS = "ABCD"
DEV, TEST = 0.1, 1 / 3  # shares of families


def split_facts(world: Sequence[Family]) -> dict[str, list[Fact]]:
    """Return the facts of the splits train, dev and test; a family is in one split.

    Each split is a range of families, so that the values that families share are balanced in it.
    """
    test = round(TEST * len(world))
    dev = test + round(DEV * len(world))
    members = {"train": range(dev, len(world)), "dev": range(test, dev), "test": range(test)}
    return {
        split: [fact for fact in facts(world) if fact.family in families]
        for split, families in members.items()
    }


def questions(world: Sequence[Family], seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Return every question about `world`, by split.

    A question is {"id", "question", "options": {"A": ..., "D": ...}, "answer_idx", "group"}.
    Exactly one option is right, within a split every letter equally often (to within one), and
    `group` is the family's disease.

    Raises:
      InputError: a split has fewer families than a question has options.
    """
    return {
        split: _make_questions(members, world, SeededRandom("questions", seed, split), split)
        for split, members in split_facts(world).items()
    }


def write_questions(
    directory: str | Path, world: Sequence[Family], seed: int = 0
) -> dict[str, int]:
    """Write train.jsonl, dev.jsonl and test.jsonl; return the number of questions of each."""
    (directory := Path(directory)).mkdir(parents=True, exist_ok=True)
    splits = questions(world, seed)
    for split, rows in splits.items():
        write_jsonl(directory / f"{split}.jsonl", rows)
    return {split: len(rows) for split, rows in splits.items()}


def _make_questions(
    members: Sequence[Fact], world: Sequence[Family], rng: SeededRandom, split: str
) -> list[dict[str, Any]]:
    families = len({fact.family for fact in members})
    if families < len(LETTERS):
        raise InputError(
            f"expected at least {len(LETTERS)} families in the {split} split, got {families}; fix: "
            f"make a world of at least {round(len(LETTERS) / DEV)} families"
        )
    pairs = [
        (fact, field, text)
        for fact in members
        for field, texts in WORDING["questions"][fact.relation].items()
        for text in texts
    ]
    made = []
    for number, ((fact, field, text), letter) in enumerate(
        zip(rng.shuffled(pairs), rng.balanced(LETTERS, len(pairs)), strict=True)
    ):
        options = _wrong_options(rng, fact, field, members)
        options.insert(LETTERS.index(letter), getattr(fact, field))
        details = {"person": rng.choice(("woman", "man")), "age": rng.integer(19, 76)}
        question = text.format(subject=fact.subject, value=fact.value, **details)
        made.append(
            {
                "id": f"{split}-{number:04d}",
                "question": capitalised(question),
                "options": dict(zip(LETTERS, options, strict=True)),
                "answer_idx": letter,
                "group": world[fact.family].disease,
            }
        )
    return made


def _wrong_options(rng: SeededRandom, fact: Fact, field: str, members: Sequence[Fact]) -> list[str]:
    """Return three answers to questions of the same kind that are wrong for this fact."""
    # Answers of the same split first, since they are right equally often. A small split may lack
    # some of the shared values.
    own = {getattr(other, field) for other in members if other.relation == fact.relation}
    shared = SHARED_VALUES.get(fact.relation, ()) if field == "value" else ()
    others = rng.shuffled(sorted(own - {getattr(fact, field)}))
    others += rng.shuffled([value for value in shared if value not in own])
    return others[: len(LETTERS) - 1]
