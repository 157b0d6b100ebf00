"""Synthetic abstracts that state the facts of the invented world in varied wording."""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from biomedlm_jax.files import write_json, write_jsonl
from biomedlm_jax.quickstart.world import Family, SeededRandom, facts, make_world

_FILE = files("biomedlm_jax.quickstart").joinpath("wording.toml")
WORDING = tomllib.loads(_FILE.read_text(encoding="utf-8"))
LABELLED = 3  # one abstract in three has section labels
ABSTRACTS, FACTS = "abstracts.jsonl", "facts.json"

_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def abstracts(world: Sequence[Family], count: int, seed: int = 0) -> Iterator[str]:
    """Yield `count` abstracts: the title, a line break and the body, as in The Pile.

    One in five is a review of four families, in which only the name in a sentence identifies the
    family of its fact; the others are about one. Kinds of abstract and families are balanced.
    """
    rng = SeededRandom("abstracts", seed)
    kinds = [plan for plan in WORDING["plans"] for _ in range(plan["weight"])]
    plans = rng.balanced(kinds, count)
    families = iter(rng.balanced(world, sum(plan["families"] for plan in plans)))
    for plan in plans:
        yield _abstract(rng, plan, list(islice(families, plan["families"])))


def write_world(
    directory: str | Path, *, families: int, documents: int, seed: int = 0
) -> tuple[Family, ...]:
    """Make a world, write its abstracts and facts, and return it.

    Equal arguments write equal bytes.

    abstracts.jsonl   {"text", "meta": {"pile_set_name": "PubMed Abstracts"}}, one per line
    facts.json        {"seed", "facts": [{"subject", "relation", "value", "family"}]}
    """
    directory, world = Path(directory), make_world(seed, families=families)
    directory.mkdir(parents=True, exist_ok=True)
    meta = {"pile_set_name": "PubMed Abstracts"}
    rows = [{"text": text, "meta": meta} for text in abstracts(world, documents, seed)]
    write_jsonl(directory / ABSTRACTS, rows)
    write_json(
        directory / FACTS, {"seed": seed, "facts": [fact._asdict() for fact in facts(world)]}
    )
    return world


def fact_prompts(world: Sequence[Family], count: int = 6) -> list[dict[str, str]]:
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


def _abstract(rng: SeededRandom, plan: Mapping[str, Any], families: Sequence[Family]) -> str:
    details = {
        "person": rng.choice(("woman", "man")),
        "age": rng.integer(19, 76),
        "count": rng.integer(11, 99),
        "years": rng.integer(2, 9),
    }

    def write(wordings: Sequence[str]) -> str:
        chosen = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), rng.choice(wordings))
        return capitalised(chosen.format_map({**vars(next(turns)), **details}))

    turns = cycle(families)
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
