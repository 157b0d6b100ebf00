"""Abstracts about the invented world: its facts in varied wording, in the manner of PubMed."""

import re
import tomllib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import islice

from biomedlm_jax.quickstart.world import Family, SeededRandom, facts

WORDING = tomllib.loads(files(__package__).joinpath("wording.toml").read_text(encoding="utf-8"))
LABELLED = 3  # one abstract of so many has section labels

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def abstracts(world: Sequence[Family], count: int, seed: int = 0) -> Iterator[str]:
    """Write `count` abstracts, each about one family: the title, a line break, the body.

    Families and kinds of abstract take turns, so that every fact is stated about equally often.
    """
    rng = SeededRandom("abstracts", seed)
    plans = WORDING["plans"]
    kinds = rng.balanced(range(len(plans)), count)
    sizes = [plans[kind]["families"] for kind in kinds]
    order = iter(rng.balanced(world, sum(sizes)))
    for kind, size in zip(kinds, sizes, strict=True):
        yield _abstract(rng, plans[kind], list(islice(order, size)))


def prompts(world: Sequence[Family], count: int = 6) -> list[dict[str, str]]:
    """Return `count` beginnings of sentences: {"prompt", "completion"}.

    The sentences are wordings of the abstracts; the completion is the value of the fact.
    """
    every = facts(world)
    made = []
    for fact in every[:: max(1, len(every) // count - 1)][:count]:
        wording = _CHOICE.sub(lambda m: m[1].split("|")[0], WORDING["statements"][fact.relation][0])
        sentence = capitalised(wording.format_map(vars(world[fact.family])))
        completion = f" {fact.value}"
        made.append({"prompt": sentence.removesuffix(f"{completion}."), "completion": completion})
    return made


def _abstract(rng: SeededRandom, plan: dict, families: Sequence[Family]) -> str:
    details = {
        "person": rng.choice(("woman", "man")),
        "age": rng.integer(19, 76),
        "count": rng.integer(11, 99),
        "years": rng.integer(2, 9),
    }

    def write(wordings: Sequence[str]) -> str:
        chosen = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), rng.choice(wordings))
        return capitalised(chosen.format_map({**vars(rng.choice(families)), **details}))

    title, labelled = write(plan["titles"]), rng.integer(1, LABELLED) == 1
    sentences = []
    for label, names in plan["sections"].items():
        written = [
            write(WORDING["statements"].get(name) or WORDING["fillers"][name])
            for name in rng.shuffled(names)
        ]
        sentences += [f"{label}: {written[0]}" if labelled else written[0], *written[1:]]
    return f"{title}\n{' '.join(sentences)}"


def capitalised(sentence: str) -> str:
    """Return the sentence with a capital first letter."""
    return sentence[0].upper() + sentence[1:]
