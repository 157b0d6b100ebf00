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
import re
import string
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from biomedlm_jax.corpus.records import read_json_records, read_parquet_records
from biomedlm_jax.files import (
    COMPRESSIONS,
    MAX_LINE_BYTES,
    parse_object,
    read_blocks,
    read_lines,
)
from biomedlm_jax.model.heads import CHOICE, CLASSIFICATION
from biomedlm_jax.qa.questions import Question, Skipped, repeated

LETTERS = string.ascii_uppercase
NO_ANSWER = -1  # `cop` in mirrors of MedMCQA where the answer is secret
METADATA = ("id", "group", "meta", "explanation", "exp", "subject", "subject_name", "topic")
METADATA += ("topic_name", "choice_type", "meta_info", "metamap_phrases")

Refuse = Callable[[str], None]  # takes the message of a bad row: raises, or counts it


class Row(NamedTuple):
    """One row of a file before it is checked; printed as "file:line"."""

    path: Path
    place: int | str  # the line, or the entry where the file is one object
    fields: dict[str, Any]
    first: int = 0  # the number that an answer gives to the first option

    def __str__(self) -> str:
        return f"{self.path}:{self.place}"

    @property
    def id(self) -> Any:
        """The row's own id, or its file and place."""
        number = f"{self.path.name}:{self.place}"
        return self.fields.get("id", self.fields.get("pubid", number))


# The content of a row: question, options, answer (an index or the name of a class) and context.
Parts = tuple[Any, list[str], int | str | None, Any]


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
                raise ValueError(f"the id {one.id!r} occurs twice, first in {places[one.id]}")
            for field in ("label", "group") if questions else ():
                has = getattr(one, field) is not None
                if has != (getattr(questions[0], field) is not None):
                    got = f"has {'a' if has else 'no'} {field}"
                    raise ValueError(f"{got}, unlike the rows before it")
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
        number, options = answer_number(row), row.fields.get("options", row.fields.get("choices"))
        count = sum(bool(re.fullmatch(r"op[a-d]|ending\d+", str(name))) for name in row.fields)
        if isinstance(options, list | dict):
            count = len(options)
        if number == 0:
            shown.setdefault(0, row)
        elif number == count:
            shown.setdefault(1, row)
    return shown


def answer_number(row: Row) -> int | None:
    """Return the number of the right option as the row has it; None without one."""
    values = [row.fields.get(name) for name in ("cop", "label", "answer")]
    numbers = [value for value in values if type(value) is int and value != NO_ANSWER]
    return numbers[0] if numbers else None


def plain_name(path: Path) -> str:
    """Return the name of a file in lower case, without the suffix of a compression."""
    name = path.name.lower()
    suffix = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    return name.removesuffix(suffix)


def class_names(rows: Iterable[Row], format: str) -> set[str]:
    """Return the class names that occur in `rows`; bad rows are passed over."""
    names = set()
    for row in rows:
        with contextlib.suppress(ValueError):
            names.add(str(_parts(row, format)[2]))
    return names - {"None"}


def _question(row: Row, format: str, classes: tuple[str, ...]) -> Question:
    question, options, answer, context = _parts(row, format)
    if FORMATS[format].kind == CLASSIFICATION:
        options = list(classes)
        if answer is not None and answer not in options:
            raise ValueError(f"expected a label among {', '.join(classes)}, got {answer!r}")
        answer = None if answer is None else options.index(str(answer))
    assert not isinstance(answer, str)
    group = row.fields.get("group")
    return Question(
        _name(row.id, "id"),
        _text(question, "question"),
        tuple(options),
        answer,
        "" if context is None else _text(context, "context", empty=True),
        None if group is None else _name(group, "group"),
        str(row.fields.get("subject") or ""),
    )


def _parts(row: Row, format: str) -> Parts:
    one, names = FORMATS[format], row.fields.keys()
    if not {*one.needs} <= names:
        alike = {name: other for name, other in FORMATS.items() if other.suffix == one.suffix}
        fits = [name for name, other in alike.items() if {*other.needs} <= names]
        fix = f"; fix: --format={' or '.join(fits)}" if fits else ""
        needs = ", ".join(one.needs)
        raise ValueError(f"format {format} needs the fields {needs}, got {_some(names)}{fix}")
    known = (*one.needs, *(one.may or ()), *METADATA)
    unknown = [] if one.may is None else sorted(names - {*known})
    if one.parse is _endings:
        unknown = [name for name in unknown if not re.fullmatch(r"ending\d+", name)]
    if unknown:
        got = f"unknown field {', '.join(map(repr, unknown[:10]))}"
        raise ValueError(f"{got}; expected {', '.join(known)}; fix: put other facts under meta")
    return one.parse(row)


# ---- Rows: the lines, cells or entries of a file.


def _rows(path: Path, refuse: Refuse) -> Iterator[Row]:
    if plain_name(path).endswith(".parquet"):
        for number, fields in read_parquet_records(path):
            yield Row(path, number, fields)
        return
    lines = read_lines(path)
    if plain_name(path).endswith(".json"):
        lines = read_json_records(path, limit=MAX_LINE_BYTES, on_long=None)
    for line, raw in lines:
        if raw.strip():
            try:
                fields = parse_object(raw, f"{path}:{line}")
            except ValueError as error:
                refuse(str(error))
            else:
                yield Row(path, line, fields)


def _entries(path: Path, refuse: Refuse, *, key: str = "") -> Iterator[Row]:
    """The entries of one JSON object by their ids, or of its list `key`."""
    try:
        content = parse_object(b"".join(read_blocks(path)), str(path))
    except ValueError as error:
        return refuse(str(error))
    if not key:
        entries = [(f"id {name}", name, entry) for name, entry in content.items()]
    elif isinstance(content.get(key), list):
        entries = [(f"entry {n}", None, entry) for n, entry in enumerate(content[key], 1)]
    else:
        return refuse(f"{path}: expected a list named {key}, got {_some(content)}")
    for place, name, entry in entries:
        if isinstance(entry, dict):
            yield Row(path, place, entry if name is None else {**entry, "id": name})
        else:
            refuse(f"{path}:{place}: expected an object, got {type(entry).__name__}")


def _cells(
    path: Path, refuse: Refuse, *, columns: tuple[str, ...], least: int, **dialect: Any
) -> Iterator[Row]:
    lines = (raw.decode("utf-8-sig" if n == 1 else "utf-8") for n, raw in read_lines(path))
    reader, line = csv.reader(lines, **dialect), 1
    try:
        for cells in reader:
            if least <= len(cells) <= len(columns):
                yield Row(path, line, dict(zip(columns, cells, strict=False)))
            elif "".join(cells).strip():
                names = ", ".join(columns)
                refuse(f"{path}:{line}: expected the columns {names}, got {len(cells)} columns")
            line = reader.line_num + 1  # a quoted cell may span lines
    except csv.Error as error:
        refuse(f"{path}:{line}: {error}")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{line}: expected UTF-8 ({error.reason})") from None


# ---- Parts: what the fields of a row mean.


def _lettered(row: Row) -> Parts:
    fields, options = row.fields, row.fields["options"]
    if isinstance(options, dict):
        if sorted(options) != list(LETTERS[: len(options)]):
            raise ValueError(f"expected options A, B, C and so on, got {_some(options)}")
        options = [options[letter] for letter in sorted(options)]
    if not isinstance(options, list) or len(options) > len(LETTERS):
        expected = "expected options as a list or an object of letters"
        raise ValueError(f"{expected}, got {str(options)[:40]!r}")
    options = _options(options)
    letter, answer = fields.get("answer_idx"), fields.get("answer")
    chosen = {_index(fields.get("label"), options, "label", row.first)}
    if type(answer) is int:  # an option may be a number too, but then its text is the answer
        chosen.add(_index(answer, options, "answer", row.first))
        answer = None
    chosen.discard(None)
    if letter is not None:
        if letter not in list(LETTERS[: len(options)]):
            last = LETTERS[len(options) - 1]
            raise ValueError(f"expected answer_idx A to {last}, got {letter!r}")
        chosen.add(LETTERS.index(letter))
    if answer is not None:
        # Blood groups: an option may be the letter of another one; label or answer_idx decides.
        _text(answer, "answer")
        named = {n for n, option in enumerate(options) if option.strip() == answer.strip()}
        named |= {n for n in range(len(options)) if LETTERS[n] == answer}
        if not named:
            raise ValueError(f"expected an answer among {options}, got {answer!r}")
        chosen = chosen if chosen and chosen <= named else chosen | named
    if len(chosen) > 1:
        got = {name: fields[name] for name in ("label", "answer_idx", "answer") if name in fields}
        raise ValueError(f"{got} names several of {options}; fix: give a label")
    return fields["question"], options, next(iter(chosen), None), fields.get("context")


def _endings(row: Row) -> Parts:
    """A `sent2` begins every option, as in the original code."""
    fields = row.fields
    count = sum(name.startswith("ending") for name in fields)
    if missing := [f"ending{n}" for n in range(count) if f"ending{n}" not in fields]:
        raise ValueError(f"expected endings counted from 0: no {missing[0]} in {_some(fields)}")
    options = _options([fields[f"ending{n}"] for n in range(count)])
    if start := _text(fields.get("sent2") or "", "sent2", empty=True).strip():
        options = [f"{start} {option}" for option in options]
    label = _index(fields.get("label"), options, "label", row.first)
    return fields["sent1"], options, label, fields.get("context")


def _choices(row: Row) -> Parts:
    return _lettered(row._replace(fields={**row.fields, "options": row.fields["choices"]}))


def _bigbio(row: Row) -> Parts:
    """The answer is the text of an option, never its letter."""
    options, answer = _options(row.fields["choices"]), _bigbio_answer(row)
    if answer is not None and options.count(answer) != 1:
        raise ValueError(f"expected an answer that is one of {options}, got {answer!r}")
    label = None if answer is None else options.index(answer)
    return row.fields["question"], options, label, row.fields.get("context")


def _bigbio_classes(row: Row) -> Parts:
    return row.fields["question"], [], _class(_bigbio_answer(row)), row.fields.get("context")


def _bigbio_answer(row: Row) -> Any:
    answers = row.fields.get("answer")
    if not isinstance(answers, list) or len(answers) > 1:
        raise ValueError(f"expected answer as a list of one text, got {str(answers)[:40]!r}")
    return answers[0] if answers else None


def _abcd(row: Row) -> Parts:
    fields, number = row.fields, row.fields.get("cop")
    options = _options([fields[name] for name in ("opa", "opb", "opc", "opd")])
    label = None if number == NO_ANSWER else _index(number, options, "cop", row.first)
    return fields["question"], options, label, fields.get("context")


def _mmlu(row: Row) -> Parts:
    question, *options, letter = (row.fields[name] for name in _MMLU[1])
    fields = {"question": question, "options": options, "answer_idx": letter.strip()}
    return _lettered(row._replace(fields=fields))


def _sentences(row: Row) -> Parts:
    fields = row.fields
    return fields["sentence1"], [], _class(fields.get("label")), fields.get("sentence2")


def _pubmedqa(row: Row) -> Parts:
    contexts = _joined(row.fields["CONTEXTS"], "CONTEXTS")
    return row.fields["QUESTION"], [], _class(row.fields.get("final_decision")), contexts


def _pubmedqa_row(row: Row) -> Parts:
    context = row.fields["context"]
    if not isinstance(context, dict) or "contexts" not in context:
        raise ValueError(f"expected a context with contexts, got {str(context)[:40]!r}")
    contexts = _joined(context["contexts"], "context.contexts")
    return row.fields["question"], [], _class(row.fields.get("final_decision")), contexts


def _joined(texts: Any, field: str) -> str:
    if not isinstance(texts, list):
        raise ValueError(f"expected {field} as a list of texts, got {type(texts).__name__}")
    return "\n".join(_text(text, field, empty=True) for text in texts)


def _bioasq(row: Row) -> Parts:
    """Join the snippets as BLURB does, so that both sources give the same text."""
    snippets, label = row.fields.get("snippets") or [], _class(row.fields.get("exact_answer"))
    if not all(isinstance(snippet, dict) for snippet in snippets):
        raise ValueError("expected snippets as objects with a text each")
    texts = [_text(snippet.get("text"), "snippet", empty=True) for snippet in snippets]
    question = _text(row.fields["body"], "body").replace("\n", " ")
    return question, [], label and label.lower(), " ".join(texts).replace("\n", " ")


# ---- Values: each raises ValueError with the name of the field.


def _class(value: Any) -> str | None:
    return None if value is None else _name(value, "label").strip()


def _name(value: Any, field: str) -> str:
    return str(value) if type(value) is int else _text(value, field)


def _has_twins(question: Question) -> bool:
    return len({*map(str.strip, question.options)}) < len(question.options)


def _options(options: Any) -> list[str]:
    if not isinstance(options, list):
        raise ValueError(f"expected the options as a list, got {str(options)[:40]!r}")
    texts = [_text(option, f"option {LETTERS[n % 26]}") for n, option in enumerate(options)]
    if len(texts) < 2:
        raise ValueError(f"expected at least two options, got {len(texts)}")
    return texts


def _index(value: Any, options: list[str], name: str, first: int = 0) -> int | None:
    if value is None:
        return None
    last = first + len(options) - 1
    if type(value) is not int or not first <= value <= last:
        raise ValueError(f"expected {name} as a whole number from {first} to {last}, got {value!r}")
    return value - first


def _text(value: Any, field: str, *, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text for {field}, got {type(value).__name__}")
    if not empty and not value.strip():
        raise ValueError(f"empty {field}")
    if "\0" in value:
        raise ValueError(f"NUL character in {field} at {value.index(chr(0))}")
    value.encode("utf-8")  # JSON can escape half of a surrogate pair, which raises here
    return value


def _some(names: Iterable[str]) -> str:
    return ", ".join([*names][:20])


_LETTERED = _lettered, ("question", "options"), ("answer_idx", "answer", "label", "context")
_CHOICES = _choices, ("question", "choices"), ("answer", "answer_idx", "label", "context")
_BIGBIO_NEEDS = ("question", "choices", "answer"), None
_SENTENCES = _sentences, ("sentence1",), ("sentence2", "label")
_ENDINGS = _endings, ("sent1", "ending0"), ("sent2", "label", "context")
_ABCD = _abcd, ("question", "opa", "opb", "opc", "opd"), ("cop", "context")
_MMLU = _mmlu, ("question", "A", "B", "C", "D", "answer"), ()
_ARTICLES = _entries, _pubmedqa, ("QUESTION", "CONTEXTS"), None
_ARTICLE_ROWS = _pubmedqa_row, ("pubid", "question", "context"), None
_BIOASQ = functools.partial(_entries, key="questions"), _bioasq, ("body",), None
_CSV = functools.partial(_cells, columns=_MMLU[1], least=6)
_BLURB = {"columns": ("id", "sentence1", "sentence2", "label"), "least": 3}
_TSV = functools.partial(_cells, **_BLURB, delimiter="\t", quoting=csv.QUOTE_NONE)
FORMATS = {
    "questions": Format(CHOICE, ".jsonl", _rows, *_LETTERED),
    "choices": Format(CHOICE, ".jsonl", _rows, *_CHOICES),
    "bigbio": Format(CHOICE, ".jsonl", _rows, _bigbio, *_BIGBIO_NEEDS),
    "bigbio_classes": Format(CLASSIFICATION, ".jsonl", _rows, _bigbio_classes, *_BIGBIO_NEEDS),
    "sentences": Format(CLASSIFICATION, ".jsonl", _rows, *_SENTENCES),
    "endings": Format(CHOICE, ".jsonl", _rows, *_ENDINGS),
    "medmcqa": Format(CHOICE, ".jsonl", _rows, *_ABCD),
    "mmlu": Format(CHOICE, ".csv", _CSV, *_MMLU),
    "pubmedqa": Format(CLASSIFICATION, ".json", *_ARTICLES),
    "pubmedqa_set": Format(CLASSIFICATION, ".json", *_ARTICLES),
    "pubmedqa_rows": Format(CLASSIFICATION, ".jsonl", _rows, *_ARTICLE_ROWS),
    "bioasq": Format(CLASSIFICATION, ".json", *_BIOASQ),
    "blurb": Format(CLASSIFICATION, ".tsv", _TSV, *_SENTENCES),
}
