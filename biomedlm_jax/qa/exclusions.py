"""Lists of questions to leave out of a second score, such as those that a corpus contains."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.files import content_hash, read_json, write_json
from biomedlm_jax.qa import statistics
from biomedlm_jax.qa.identity import question_hash
from biomedlm_jax.qa.questions import Question
from biomedlm_jax.qa.statistics import Item

FORMAT = {"format": "biomedlm_jax exclusion list", "version": 1}


@dataclass(frozen=True)
class Exclusions:
    """The ids of the questions that a list leaves out of a set, and why."""

    path: str
    ids: frozenset[str]
    rule: str


def set_hash(questions: Iterable[Question]) -> str:
    """Return the SHA-256 of what a set of questions asks: ids and texts in any order, no labels."""
    return content_hash(sorted([question.id, question_hash(question)] for question in questions))


def write_exclusions(
    path: str | Path,
    questions: Sequence[Question],
    ids: Sequence[str],
    *,
    rule: str,
    about: Mapping[str, Any],
) -> None:
    """Write a list of ids of `questions`, which are a whole split; `about` says whose they are."""
    identified = {"count": len(questions), "hash": set_hash(questions)}
    write_json(path, {**FORMAT, **about, "questions": identified, "rule": rule, "ids": [*ids]})


def read_exclusions(path: str | Path, questions: Sequence[Question]) -> Exclusions:
    """Read the list of a set of questions.

    Raises InputError for another file, a list of other questions, and an id that none of them has.
    """
    if not Path(path).is_file():
        raise InputError(
            f"no such file: {path}; fix: name a list that biomedlm contamination wrote"
        )
    content = read_json(path)
    ids, of = content.get("ids"), content.get("questions")
    if {key: content.get(key) for key in FORMAT} != FORMAT or not isinstance(of, Mapping):
        got = f"{path} is no exclusion list of version {FORMAT['version']}"
        raise InputError(f"{got}; fix: name a list that biomedlm contamination wrote")
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise InputError(f"{path}: expected ids to be a list of strings")
    if of.get("hash") != set_hash(questions):
        whose = f"{content.get('task')}, {content.get('split')}, {of.get('count')} questions"
        got = f"{path} is of other questions ({whose}), not of these {len(questions):,}"
        fix = "run biomedlm contamination on this split with the same flags"
        raise InputError(f"{got}; fix: {fix}")
    if unknown := sorted({*ids} - {question.id for question in questions}):
        got = f"{path} has {counted(len(unknown), 'id')} of no question, as {unknown[0]!r}"
        raise InputError(f"{got}; fix: write the list again")
    return Exclusions(str(path), frozenset(ids), str(content.get("rule") or "not stated"))


def score_without(
    seeds: Sequence[Sequence[Item]], exclusions: Exclusions, *, with_macro_f1: bool, seed: int
) -> dict[str, Any]:
    """Return the scores of the questions that stay, and of those that are left out.

    `seeds` are the labelled results of every seed. A score of no questions is None.
    """
    kept = [[one for one in items if one["id"] not in exclusions.ids] for items in seeds]
    left_out = [[one for one in items if one["id"] in exclusions.ids] for items in seeds]

    def accuracy(items: Sequence[Sequence[Item]]) -> dict[str, float] | None:
        if not items[0]:
            return None
        return statistics.accuracy(*map(statistics.columns, items), seed=seed)._asdict()

    f1 = None
    if with_macro_f1 and kept[0]:
        f1 = statistics.macro_f1(*map(statistics.columns, kept), seed=seed)._asdict()
    return {
        "name": exclusions.path,
        "rule": exclusions.rule,
        "ids": [one["id"] for one in left_out[0]],
        "excluded": len(left_out[0]),
        "kept": len(kept[0]),
        "accuracy": accuracy(kept),
        "macro_f1": f1,
        "accuracy_of_excluded": accuracy(left_out),
    }
