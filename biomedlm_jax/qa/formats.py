"""Adapters of the published file formats: a file -> rows of fields -> `Question` records.

    questions       rows: question, options (a list, or an object of letters), label (index),
                    answer_idx (letter) or answer (letter, text, or index). MedQA's, and your own
    choices         rows: question, choices (a list), answer (index). MMLU's on Hugging Face
    bigbio          rows: question, choices, answer (a list of one text), context. BigBio's
    bigbio_classes  the same, where the choices are the classes: yes, no, maybe
    sentences       rows: sentence1 (question), sentence2 (context), label (class name).
                    BioLinkBERT's, and your own classification
    endings         rows: sent1, sent2, ending0, ending1, ..., label (index). BioMedLM's
    medmcqa         rows: question, opa to opd, cop (number of the correct option)
    mmlu            CSV without a header: question, four options, letter
    pubmedqa        JSON {pmid: {QUESTION, CONTEXTS, final_decision}}: a whole set, see folds.py
    pubmedqa_set    the same, but one split, as PubMedQA's own script writes it
    pubmedqa_rows   rows: pubid, question, context.contexts, final_decision. Hugging Face's
    bioasq          JSON {"questions": [{id, body, type, exact_answer, snippets}]}
    blurb           TSV without a header: id, question, context, yes or no. BLURB's BioASQ

Rows are JSON lines, a JSON array (.json) or parquet; all but parquet may be compressed. An index
counts from 0, a `cop` from 0 or 1: see `first_numbers`. A row may also have `METADATA`; any other
field (a misspelt `label`) is an error, but in dumps that have many (BigBio, PubMedQA, BioASQ).
"""

import contextlib
import csv
import functools
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from biomedlm_jax.errors import InputError
from biomedlm_jax.model.heads import CHOICE, CLASSIFICATION
from biomedlm_jax.qa import adapters
from biomedlm_jax.qa.adapters import NO_ANSWER, Parts, plain_label, plain_text
from biomedlm_jax.qa.question_rows import (
    Refuse,
    Row,
    first_names,
    read_cells,
    read_entries,
    read_rows,
)
from biomedlm_jax.qa.questions import Question, Skipped, repeated

METADATA = ("id", "group", "meta", "explanation", "exp", "subject", "subject_name", "topic")
METADATA += ("topic_name", "choice_type", "meta_info", "metamap_phrases")


class Format(NamedTuple):
    """How files of a format are read, and the fields that their rows must and may have."""

    kind: str  # CHOICE: every question has its own options; CLASSIFICATION: all have the same
    suffix: str
    read: Callable[[Path, Refuse], Iterable[Row]]
    parse: Callable[[Row], Parts]
    needs: tuple[str, ...]
    may: tuple[str, ...] | None  # None: a published dump, other fields are ignored


def to_questions(
    rows: Iterable[Row],
    format: str,
    classes: tuple[str, ...],
    refuse: Refuse,
    skipped: Skipped,
    *,
    twins: str = "keep",
) -> list[Question]:
    """Convert rows to questions; `classes` are the sorted class names of a classification.

    Questions with two equal options are kept and noted, or with twins="skip" left out.
    """
    questions: list[Question] = []
    places: dict[str, Row] = {}
    for row in rows:
        if format == "bioasq" and (kind := row.fields.get("type", "yesno")) != "yesno":
            skipped.leave_out(f"{kind} questions", str(row.id))
            continue
        try:
            one = _question(row, format, classes)
            if one.id in places:
                raise InputError(f"the id {one.id!r} occurs twice, first in {places[one.id]}")
            for field in ("label", "group") if questions else ():
                has = getattr(one, field) is not None
                if has != (getattr(questions[0], field) is not None):
                    got = f"has {'a' if has else 'no'} {field}"
                    raise InputError(f"{got}, unlike the rows before it")
        except ValueError as error:
            refuse(f"{row}: {error}")
        else:
            places[one.id] = row
            if twins == "skip" and _has_twins(one):
                skipped.leave_out("with two equal options", one.id)
            else:
                questions.append(one)
    skipped.note("with two equal options", (one.id for one in questions if _has_twins(one)))
    skipped.note("of the content of an earlier one", repeated(questions))
    return questions


def first_numbers(rows: Iterable[Row]) -> dict[int, Row]:
    """Return the numbers, 0 or 1, that the first option may have: each with a row that shows it.

    An answer 0 shows that the first option is 0; one that equals the number of options, that it is
    1. Both, or none, is for the caller to judge.
    """
    shown: dict[int, Row] = {}
    for row in rows:
        number = answer_number(row)
        if number == 0:
            shown.setdefault(0, row)
        elif number is not None and 1 not in shown:
            options = row.fields.get("options", row.fields.get("choices"))
            count = sum(bool(re.fullmatch(r"op[a-d]|ending\d+", str(name))) for name in row.fields)
            if number == (len(options) if isinstance(options, list | dict) else count):
                shown[1] = row
    return shown


def answer_number(row: Row) -> int | None:
    """Return the number of the right option as the row has it; None without one."""
    values = [row.fields.get(name) for name in ("cop", "label", "answer")]
    numbers = [value for value in values if type(value) is int and value != NO_ANSWER]
    return numbers[0] if numbers else None


def class_names(rows: Iterable[Row], format: str, refuse: Refuse) -> set[str]:
    """Return the class names that occur in `rows`; `refuse` takes the problems of bad rows."""
    names = set()
    for row in rows:
        try:
            names.add(str(_parts(row, format)[2]))
        except ValueError as error:
            refuse(f"{row}: {error}")
    return names - {"None"}


def formats_that_read(parquet: Path, kind: str) -> list[str]:
    """Return the formats of this kind that can read the first row of a file of rows."""
    fits = []
    for row in itertools.islice(read_rows(parquet, lambda problem: None), 1):
        for name, one in FORMATS.items():
            if one.kind == kind and one.read is read_rows:
                with contextlib.suppress(ValueError):
                    _parts(row, name)
                    fits.append(name)
    return fits


def _question(row: Row, format: str, classes: tuple[str, ...]) -> Question:
    question, options, answer, context = _parts(row, format)
    if FORMATS[format].kind == CLASSIFICATION:
        options = list(classes)
        if answer is not None and answer not in options:
            raise InputError(f"expected a label among {', '.join(classes)}, got {answer!r}")
        answer = None if answer is None else options.index(str(answer))
    assert not isinstance(answer, str)
    group = row.fields.get("group")
    return Question(
        plain_label(row.id, "id"),
        plain_text(question, "question"),
        tuple(options),
        answer,
        "" if context is None else plain_text(context, "context", empty=True),
        None if group is None else plain_label(group, "group"),
        str(row.fields.get("subject") or row.fields.get("subject_name") or ""),
    )


def _parts(row: Row, format: str) -> Parts:
    one, names = FORMATS[format], row.fields.keys()
    if not {*one.needs} <= names:
        alike = {name: other for name, other in FORMATS.items() if other.suffix == one.suffix}
        fits = [name for name, other in alike.items() if {*other.needs} <= names]
        known = f"--format={' or '.join(fits)} (config.task.format)"
        fix = known if fits else "name the fields so"
        lacks = ", ".join(name for name in one.needs if name not in names)
        got = f"format {format} needs the fields {lacks}, got {first_names(names)}"
        raise InputError(f"{got}; fix: {fix}")
    known = (*one.needs, *(one.may or ()), *METADATA)
    unknown = [] if one.may is None else sorted(names - {*known})
    if one.parse is adapters.endings:
        unknown = [name for name in unknown if not re.fullmatch(r"ending\d+", name)]
    if unknown:
        got = f"unknown field {', '.join(map(repr, unknown[:10]))}"
        raise InputError(f"{got}; expected {', '.join(known)}; fix: put other facts under meta")
    return one.parse(row)


def _has_twins(question: Question) -> bool:
    return len({*map(str.strip, question.options)}) < len(question.options)


_LETTERED = adapters.lettered, ("question", "options"), ("answer_idx", "answer", "label", "context")
_CHOICES = adapters.choices, ("question", "choices"), ("answer", "answer_idx", "label", "context")
_BIGBIO_NEEDS = ("question", "choices", "answer"), None
_SENTENCES = adapters.sentences, ("sentence1",), ("sentence2", "label")
_ENDINGS = adapters.endings, ("sent1", "ending0"), ("sent2", "label", "context")
_ABCD = adapters.abcd, ("question", "opa", "opb", "opc", "opd"), ("cop", "context")
_MMLU = adapters.mmlu, adapters.MMLU_FIELDS, ()
_ARTICLES = read_entries, adapters.pubmedqa, ("QUESTION", "CONTEXTS"), None
_ARTICLE_ROWS = adapters.pubmedqa_row, ("pubid", "question", "context"), None
_BIOASQ = functools.partial(read_entries, key="questions"), adapters.bioasq, ("body",), None
_CSV = functools.partial(read_cells, columns=adapters.MMLU_FIELDS, least=6)
_BLURB = {"columns": ("id", "sentence1", "sentence2", "label"), "least": 3}
_TSV = functools.partial(read_cells, **_BLURB, delimiter="\t", quoting=csv.QUOTE_NONE)
FORMATS = {
    "questions": Format(CHOICE, ".jsonl", read_rows, *_LETTERED),
    "choices": Format(CHOICE, ".jsonl", read_rows, *_CHOICES),
    "bigbio": Format(CHOICE, ".jsonl", read_rows, adapters.bigbio, *_BIGBIO_NEEDS),
    "bigbio_classes": Format(
        CLASSIFICATION, ".jsonl", read_rows, adapters.bigbio_classes, *_BIGBIO_NEEDS
    ),
    "sentences": Format(CLASSIFICATION, ".jsonl", read_rows, *_SENTENCES),
    "endings": Format(CHOICE, ".jsonl", read_rows, *_ENDINGS),
    "medmcqa": Format(CHOICE, ".jsonl", read_rows, *_ABCD),
    "mmlu": Format(CHOICE, ".csv", _CSV, *_MMLU),
    "pubmedqa": Format(CLASSIFICATION, ".json", *_ARTICLES),
    "pubmedqa_set": Format(CLASSIFICATION, ".json", *_ARTICLES),
    "pubmedqa_rows": Format(CLASSIFICATION, ".jsonl", read_rows, *_ARTICLE_ROWS),
    "bioasq": Format(CLASSIFICATION, ".json", *_BIOASQ),
    "blurb": Format(CLASSIFICATION, ".tsv", _TSV, *_SENTENCES),
}
