"""Contamination: which questions of evaluation sets have n-grams that are in a corpus."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import biomedlm_jax
from biomedlm_jax.corpus.corpus_manifest import corpora_of
from biomedlm_jax.corpus.documents import DocumentReader
from biomedlm_jax.corpus.ngram_search import Matches, UnitMatches, search_documents
from biomedlm_jax.corpus.ngrams import LENGTHS, NgramIndex, excerpt
from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.files import read_json, write_json, write_jsonl, write_text
from biomedlm_jax.outputs import atomic_directory, check_output
from biomedlm_jax.qa.exclusions import set_hash, write_exclusions
from biomedlm_jax.qa.formats import CHOICE
from biomedlm_jax.qa.presentation import JSON, cell_text, joined
from biomedlm_jax.qa.questions import Question, Skipped
from biomedlm_jax.qa.splits import read_questions
from biomedlm_jax.qa.tasks import Task, default_split, find_task

FORMAT = {"format": "biomedlm_jax contamination report", "version": 1}
PARTS = ("question", "context", "answer", "options")  # the right option, and the others
MARKDOWN, QUESTIONS = "report.md", "{}.questions.jsonl"
LIST = "{}.exclude-{}.json"
STATES = ("contaminated", "clean", "too_short")


@dataclass(frozen=True)
class QuestionSet:
    """One split of a task, from `read_set`."""

    task: Task
    split: str
    path: str
    questions: list[Question]
    skipped: Skipped

    @property
    def name(self) -> str:
        """The task and the split, for messages."""
        return f"{self.task.name}, {self.split}"


@dataclass(frozen=True)
class Rule:
    """When a question counts as contaminated: by the n-grams of one of these parts.

    At least one n-gram of the part is in the corpus, and at least a share `least` of them.
    """

    parts: tuple[str, ...] = PARTS
    least: float = 0.0

    def __post_init__(self):
        if unknown := [part for part in self.parts if part not in PARTS] or not self.parts:
            got = unknown[0] if isinstance(unknown, list) else "none"
            raise InputError(f"got the part {got!r}; expected some of {', '.join(PARTS)}")
        if not 0 <= self.least <= 1:
            raise InputError(f"got a least share of {self.least}; expected 0 to 1")

    def state(self, parts: dict[str, dict[str, Any]]) -> str:
        """Return one of STATES for the counts of a question's parts."""
        counts = [parts[part] for part in self.parts if part in parts]
        if not any(one["ngrams"] for one in counts):
            return "too_short"
        hit = any(one["matched"] and one["matched"] >= self.least * one["ngrams"] for one in counts)
        return "contaminated" if hit else "clean"


def read_set(
    task: str,
    path: str | Path | None = None,
    *,
    format: str = "",
    split: str | None = None,
    **read: Any,
) -> QuestionSet:
    """Read a split as `evaluate` does; `read` are arguments of `read_questions`."""
    chosen = find_task(task, format=format)
    split, skipped = split or default_split(chosen, path), Skipped()
    questions = read_questions(chosen, path, split=split, skipped=skipped, **read)
    return QuestionSet(chosen, split, str(path or chosen.path), questions, skipped)


def texts_of(question: Question, kind: str) -> Iterator[tuple[str, str]]:
    """Yield (part, text) of a question; classes, which all questions share, are no part of it."""
    yield "question", question.question
    if question.context:
        yield "context", question.context
    if kind == CHOICE:
        for number, option in enumerate(question.options):
            yield "answer" if number == question.label else "options", option


def contamination(
    sets: Sequence[QuestionSet],
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    lengths: dict[str, int] | None = None,
    rule: Rule | None = None,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    reader: DocumentReader | None = None,
) -> dict[str, Any]:
    """Look for the n-grams of question sets in a corpus, and write and return the report.

    `out` gets report.json, report.md, a file of each set with each question's counts and examples,
    and one of each set and unit with the ids that `evaluate` can leave out.

    Args:
      sets: from `read_set`, each another one.
      paths: files of documents, as `read_documents` takes them.
      lengths: of the n-grams by their unit, LENGTHS by default.
      workers: processes; the report does not depend on it.
      overwrite: replace an earlier report.
      reader: how the documents are read.

    Raises InputError for bad input, before or while the corpus is read; `out` is unchanged then.
    """
    rule, lengths = rule or Rule(), lengths or LENGTHS
    if workers < 1:
        raise InputError(f"got workers={workers}; expected at least 1")
    names = _file_names(sets)
    check_output(out, replaceable=is_contamination, overwrite=overwrite)
    questions = [(number, one) for number, of in enumerate(sets) for one in of.questions]
    texts = [
        (owner, part, text)
        for owner, (number, question) in enumerate(questions)
        for part, text in texts_of(question, sets[number].task.kind)
    ]
    plain = [text for *_, text in texts]
    indexes = [NgramIndex.of(plain, unit, length) for unit, length in lengths.items()]
    owners = np.array([owner for owner, *_ in texts])
    groups = np.array([number for number, _ in questions])
    with atomic_directory(out, replaceable=is_contamination, overwrite=overwrite) as new:
        folder = new / "ngrams"
        folder.mkdir()
        options = {"workers": workers, "progress": progress, "reader": reader}
        matches = search_documents(indexes, owners, groups, paths, folder, **options)
        shutil.rmtree(folder)
        rows: list[dict[str, Any]] = [{"id": question.id, "units": {}} for _, question in questions]
        for index in indexes:
            _count(rows, texts, index, matches.units[index.unit], rule)
        summaries, start = [], 0
        for number, (one, name) in enumerate(zip(sets, names, strict=True)):
            of_set = rows[start : start + len(one.questions)]
            start += len(one.questions)
            write_jsonl(new / QUESTIONS.format(name), of_set)
            documents = {
                unit: matches.units[unit].group_documents.get(number, 0) for unit in lengths
            }
            summaries.append(_set_summary(one, name, of_set, documents))
            for unit, length in lengths.items():
                ids = [row["id"] for row in of_set if row["units"][unit]["state"] == STATES[0]]
                about = {"task": one.task.name, "split": one.split, "corpus": [*map(str, paths)]}
                text = rule_text(rule, unit, length)
                file = new / LIST.format(name, unit)
                write_exclusions(file, one.questions, ids, rule=text, about=about)
        report = {
            **FORMAT,
            "rule": {unit: rule_text(rule, unit, length) for unit, length in lengths.items()},
            "lengths": dict(lengths),
            "sets": summaries,
            "corpus": _corpus(matches, paths),
            "version_of": f"biomedlm-jax {biomedlm_jax.__version__}",
        }
        write_json(new / JSON, report)
        write_text(new / MARKDOWN, contamination_markdown(report))
    return report


def rule_text(rule: Rule, unit: str, length: int) -> str:
    """Return the rule in words."""
    parts = "any part" if rule.parts == PARTS else " or ".join(rule.parts)
    share = f"at least {100 * rule.least:g} % of them, and one," if rule.least else "at least one"
    return f"of the n-grams of {length} {unit} of {parts}, {share} is in the corpus"


def is_contamination(directory: Path) -> bool:
    """Return whether a directory is a report of `contamination`."""
    try:
        return read_json(directory / JSON).get("format") == FORMAT["format"]
    except (InputError, OSError):
        return False


def contamination_markdown(report: dict[str, Any]) -> str:
    """Return the report as tables, with what must be known to read them."""
    corpus, units = report["corpus"], report["lengths"]
    head = ["set", "n-grams of", "questions", *(one.replace("_", " ") for one in STATES)]
    lines = [[*head, *PARTS, "documents"], [":--", ":--", *["--:"] * (5 + len(PARTS))]]
    names = [f"{one['task']}, {one['split']}" for one in report["sets"]]
    for one, name in zip(report["sets"], names, strict=True):
        name += f" ({one['path']})" * (names.count(name) > 1)
        for unit, length in units.items():
            of = one["units"][unit]
            states = [f"{of[state]:,} ({of[state] / one['questions']:.1%})" for state in STATES]
            parts = [_part_text(of["parts"].get(part)) for part in PARTS]
            cells = [cell_text(name), f"{length} {unit}", f"{one['questions']:,}", *states, *parts]
            lines.append([*cells, f"{of['documents']:,}"])
    size = (
        f"{counted(corpus['documents'], 'document')}, {corpus['text_bytes'] / 1e6:,.1f} MB of text"
    )
    notes = [f"Corpus: {', '.join(corpus['paths'])}: {size}; skipped: {corpus['skipped']}."]
    notes += [f"Contaminated ({unit}): {rule}." for unit, rule in report["rule"].items()]
    notes += [
        "A question is too short if none of these parts has so many words or characters: nothing "
        "is known of it, and it does not count as clean.",
        "By part: questions with an n-gram of it in the corpus / questions with an n-gram of it, "
        "and the share of its n-grams that are in the corpus.",
    ]
    notes += [f"{one['task']}: {one['origin']}." for one in report["sets"] if one["origin"]]
    notes = [*dict.fromkeys(notes)]
    return "\n".join(["# Contamination", "", joined(lines), "", *(f"- {n}" for n in notes), ""])


def _part_text(counts: dict[str, int] | None) -> str:
    if not counts or not counts["ngrams"]:
        return "-"
    share = counts["matched"] / counts["ngrams"]
    return f"{counts['questions_matched']:,} / {counts['questions']:,}, {share:.2%}"


def _file_names(sets: Sequence[QuestionSet]) -> list[str]:
    """Return a name for the files of each set; raise InputError for one set twice, or none."""
    if not sets:
        raise InputError("expected at least one set of questions, got none")
    names: list[str] = []
    for one in sets:
        name = one.task.path.stem if one.task.path else one.task.name.replace(":", "-")
        name = name.partition(".")[0] if one.task.path else name
        name = f"{name}-{one.split.replace(' ', '_')}"
        names.append(f"{name}-{len(names) + 1}" if name in names else name)
    of_hash: dict[str, str] = {}
    for one in sets:
        digest = set_hash(one.questions)
        if digest in of_hash:
            got = f"{of_hash[digest]} and {one.path} have the same questions"
            raise InputError(f"{got}; fix: leave one out")
        of_hash[digest] = one.path
    return names


def _count(
    rows: list[dict[str, Any]],
    texts: Sequence[tuple[int, str, str]],
    index: NgramIndex,
    matches: UnitMatches,
    rule: Rule,
) -> None:
    """Add the counts, the state and the examples of one unit to the row of each question."""
    of_start = np.searchsorted(index.offsets, matches.starts, side="right") - 1
    matched = np.bincount(of_start, minlength=len(texts))
    for row in rows:
        row["units"][index.unit] = {"state": "", "parts": {}, "documents": 0, "examples": []}
    for (owner, part, _), ngrams, here in zip(texts, index.ngrams(), matched, strict=True):
        parts = rows[owner]["units"][index.unit]["parts"]
        counts = parts.setdefault(part, {"ngrams": 0, "matched": 0})
        counts["ngrams"] += int(ngrams)
        counts["matched"] += int(here)
    for owner, row in enumerate(rows):
        one = row["units"][index.unit]
        one["state"] = rule.state(one["parts"])
        one["documents"] = matches.documents.get(owner, 0)
        for example in matches.examples.get(owner, ()):
            _, part, text = texts[example.text]
            start = example.start - int(index.offsets[example.text])
            count = example.ngrams + index.length - 1
            shown = excerpt(text, index.unit, start, count)
            about = {"document": dict(example.names), "place": example.place, "part": part}
            one["examples"].append({**about, index.unit: count, "text": shown})


def _set_summary(
    one: QuestionSet, name: str, rows: Sequence[dict[str, Any]], documents: dict[str, int]
) -> dict[str, Any]:
    units = {}
    for unit in documents:
        of_unit = [row["units"][unit] for row in rows]
        states = [row["state"] for row in of_unit]
        parts = {}
        for part in PARTS:
            with_ngrams = [c for row in of_unit if (c := row["parts"].get(part)) and c["ngrams"]]
            parts[part] = {
                "questions": len(with_ngrams),
                "questions_matched": sum(c["matched"] > 0 for c in with_ngrams),
                "ngrams": sum(c["ngrams"] for c in with_ngrams),
                "matched": sum(c["matched"] for c in with_ngrams),
            }
        counts = {state: states.count(state) for state in STATES}
        units[unit] = {**counts, "parts": parts, "documents": documents[unit]}
    return {
        "task": one.task.name,
        "split": one.split,
        "path": one.path,
        "questions": len(one.questions),
        "hash": set_hash(one.questions),
        "skipped": one.skipped.tables(),
        "origin": one.task.origin,
        "units": units,
        "files": [QUESTIONS.format(name), *(LIST.format(name, unit) for unit in units)],
    }


def _corpus(matches: Matches, paths: Sequence[str | Path]) -> dict[str, Any]:
    return {
        "paths": [*map(str, paths)],
        "documents": matches.documents,
        "text_bytes": matches.text_bytes,
        "skipped": str(matches.skipped),
        "inputs": matches.inputs,
        "corpora": corpora_of(matches.inputs),
    }


def print_line(one: QuestionSet) -> str:
    """Return a line about what was read of a set."""
    return f"{one.name}: {counted(len(one.questions), 'question')}; skipped: {one.skipped}"
