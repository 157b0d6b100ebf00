"""The quickstart's invented world, written to files: abstracts to read, questions about them.

    facts.py      what is so: diseases, genes, drugs, trials, all invented
    prose.py      abstracts that say it (wording.py: in which words)
    questions.py  multiple-choice questions that ask it, split by facts

`write_world` and `write_questions` put them into directories. Nothing here is medical knowledge.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from biomedlm_jax.quickstart.facts import World, make_world
from biomedlm_jax.quickstart.prose import abstracts, prompts
from biomedlm_jax.quickstart.questions import questions, split_facts, write_questions

__all__ = [
    "World",
    "abstracts",
    "make_world",
    "prompts",
    "questions",
    "split_facts",
    "write_questions",
    "write_world",
]

ABSTRACTS, FACTS = "abstracts.jsonl", "facts.json"
PILE_SET_NAME = "PubMed Abstracts"


def write_world(
    directory: str | Path, *, seed: int = 0, documents: int = 3600, diseases: int = 60
) -> dict[str, int]:
    """Make the world of `seed` and write it; equal arguments write equal bytes.

        abstracts.jsonl   {"text": title, line break, abstract, "meta": {"pile_set_name": ...}}
        facts.json        {"seed", and the facts of each split: "train", "dev", "test"}

    Returns the numbers of documents, words and facts, and the bytes of the abstracts' file.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    world = make_world(seed, diseases=diseases)
    texts = [abstract["text"] for abstract in abstracts(world, documents, seed)]
    meta = {"pile_set_name": PILE_SET_NAME}
    _write_lines(directory / ABSTRACTS, ({"text": text, "meta": meta} for text in texts))
    splits = split_facts(world, seed)
    facts = {split: [fact._asdict() for fact in its] for split, its in splits.items()}
    _write_lines(directory / FACTS, [{"seed": seed, **facts}])
    return {
        "documents": len(texts),
        "words": sum(len(text.split()) for text in texts),
        "bytes": (directory / ABSTRACTS).stat().st_size,
        "facts": sum(map(len, splits.values())),
    }


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    # Bytes, because a text file would get Windows' line ends on Windows.
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
