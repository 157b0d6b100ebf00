"""Multiple-choice questions about an invented world, in MedQA's format, split by family.

All facts of a family are in one split, and the wrong options of a question come from its own
split. So no held-out name occurs in any training question: neither elimination ("that gene belongs
to another disease") nor a chain of facts leads from there to a held-out answer. Only the abstracts
do. Questions about one family are not independent, so each names its family as its `group`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biomedlm_jax.files import write_text
from biomedlm_jax.quickstart.abstracts import WORDING, capitalised
from biomedlm_jax.quickstart.world import SHARED_VALUES, Fact, Family, SeededRandom, facts

LETTERS = "ABCD"
DEV, TEST = 0.1, 1 / 3  # shares of families


def split_facts(world: Sequence[Family]) -> dict[str, list[Fact]]:
    """Return the facts to train on, to choose a model by and to test: whole families each.

    Each split is a run of families, so that the values that families share are balanced in it.
    """
    test = round(TEST * len(world))
    dev = test + round(DEV * len(world))
    members = {"train": range(dev, len(world)), "dev": range(test, dev), "test": range(test)}
    return {
        split: [fact for fact in facts(world) if fact.family in of] for split, of in members.items()
    }


def questions(world: Sequence[Family], seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Return every question about `world`, by split.

    A question is {"id", "question", "options": {"A": ..., "D": ...}, "answer_idx", "group"}.
    Exactly one option is right, within a split every letter equally often (to within one), and
    `group` is the family's disease.

    Raises:
      ValueError: a split has fewer families than a question has options.
    """
    return {
        split: _ask(split_of, world, SeededRandom("questions", seed, split), split)
        for split, split_of in split_facts(world).items()
    }


def write_questions(
    directory: str | Path, world: Sequence[Family], seed: int = 0
) -> dict[str, int]:
    """Write train.jsonl, dev.jsonl and test.jsonl; return the number of questions of each."""
    (directory := Path(directory)).mkdir(parents=True, exist_ok=True)
    splits = questions(world, seed)
    for split, rows in splits.items():
        write_text(directory / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return {split: len(rows) for split, rows in splits.items()}


def _ask(
    split_of: Sequence[Fact], world: Sequence[Family], rng: SeededRandom, split: str
) -> list[dict[str, Any]]:
    families = len({fact.family for fact in split_of})
    if families < len(LETTERS):
        raise ValueError(
            f"expected at least {len(LETTERS)} families in the {split} split, got {families}; fix: "
            f"make a world of at least {round(len(LETTERS) / DEV)} families"
        )
    pairs = [
        (fact, asks, text)
        for fact in split_of
        for asks, texts in WORDING["questions"][fact.relation].items()
        for text in texts
    ]
    made = []
    for number, ((fact, asks, text), letter) in enumerate(
        zip(rng.shuffled(pairs), rng.balanced(LETTERS, len(pairs)), strict=True)
    ):
        options = _wrong_options(rng, fact, asks, split_of)
        options.insert(LETTERS.index(letter), getattr(fact, asks))
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


def _wrong_options(rng: SeededRandom, fact: Fact, asks: str, split_of: Sequence[Fact]) -> list[str]:
    """Return three answers to questions of the same kind that are wrong for this fact."""
    # Answers of the same split first, since they are right equally often. A small split may lack
    # some of the shared values.
    own = {getattr(other, asks) for other in split_of if other.relation == fact.relation}
    shared = SHARED_VALUES.get(fact.relation, ()) if asks == "value" else ()
    others = rng.shuffled(sorted(own - {getattr(fact, asks)}))
    others += rng.shuffled([value for value in shared if value not in own])
    return others[: len(LETTERS) - 1]
