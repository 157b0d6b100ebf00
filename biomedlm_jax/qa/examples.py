"""Rows -> examples: a row's fields tell its form, and nothing that is wrong with it passes.

Texts stay as they are, white space included: options that differ in a sign only are different,
and reference prompts are made of the unstripped text.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from biomedlm_jax.qa.readers import Refuse, Row

LETTERS = string.ascii_uppercase
NO_ANSWER = -1  # what mirrors of MedMCQA give for `cop` where the answer is kept secret

# What files say beside question, options and answer. Any other field is an error: a misspelt
# `label` must not turn a set with answers into one without.
METADATA = (
    *("id", "meta", "explanation", "exp", "subject", "subject_name", "topic", "topic_name"),
    *("choice_type", "meta_info", "metamap_phrases"),
)


@dataclass(frozen=True)
class Example:
    """One question with its possible answers."""

    id: str
    question: str
    options: tuple[str, ...]  # for classification the class names, sorted
    label: int | None  # index into options; None where the file has no answers
    context: str = ""  # the text that the question is about


@dataclass
class Skipped:
    """What a reading left out, and why; give one to `read_examples` and look at it afterwards."""

    bad: int = 0  # rows that could not be used, under on_error="skip"
    left_out: Counter[str] = field(default_factory=Counter)  # good rows that nobody asked for
    examples: list[str] = field(default_factory=list)  # the first five bad rows, as errors

    def __str__(self) -> str:
        """One line, "nothing" if so."""
        parts = [f"{count:,} {what}" for what, count in sorted(self.left_out.items())[:30]]
        if self.bad:
            parts.insert(0, f"{self.bad:,} bad rows, the first: {next(iter(self.examples), '')}")
        return "; ".join(parts) or "nothing"


def check_rows(
    rows: Iterable[Row], kind: str, classes: tuple[str, ...], refuse: Refuse, skipped: Skipped
) -> list[Example]:
    """Turn rows into examples; a bad one is refused, and BioASQ's other questions are left out.

    Args:
      kind: "choice" or "classification".
      classes: the class names of a classification, sorted.
    """
    examples: dict[str, Example] = {}
    places: dict[str, str] = {}
    for row in rows:
        if "body" in row.fields and row.fields.get("type", "yesno") != "yesno":
            skipped.left_out[f"{row.fields['type']} questions"] += 1
            continue
        try:
            example = _example(row, kind, classes)
            if example.id in examples:
                raise ValueError(f"got the id {example.id!r} again, after {places[example.id]}")
            first = next(iter(examples.values()), example)
            if (first.label is None) != (example.label is None):
                has = "has no answer, but rows before it have"
                hasnt = "has an answer, but rows before it have none"
                raise ValueError(f"it {has if example.label is None else hasnt}")
        except ValueError as error:
            refuse(f"{row.where}: {error}")
            continue
        examples[example.id], places[example.id] = example, row.where
    return list(examples.values())


class Parts(NamedTuple):
    """What a form says: options and an index, or for classification the name of a class."""

    question: Any
    options: list[Any]
    label: int | str | None
    context: Any


def _example(row: Row, kind: str, classes: tuple[str, ...]) -> Example:
    form = row_form(row.fields)
    if form.kind != kind:
        names = "; ".join(f"{', '.join(form.needs)}" for form in FORMS if form.kind == kind)
        raise ValueError(f"got a row of {form.kind} ({_some(row.fields)}); {kind} needs {names}")
    name = row.fields.get("id", row.name)
    name = str(name) if type(name) is int else _text(name, "id")
    parts = form.parse(row)
    label, options = parts.label, parts.options
    if kind == "classification":
        options = list(classes)
        if label is not None and label not in classes:
            raise ValueError(f"got the label {label!r}; it is one of {', '.join(classes)}")
        label = None if label is None else classes.index(label)
    question = _text(parts.question, "question")
    context = "" if parts.context is None else _text(parts.context, "context", empty=True)
    return Example(name, question, tuple(options), label, context)


def row_form(fields: dict[str, Any]) -> "Form":
    """Return the form that a row's fields tell.

    Raises:
      ValueError: a field is missing or unknown.
    """
    form = next((form for form in FORMS if form.needs[-1] in fields), None)
    if form is None or any(name not in fields for name in form.needs):
        needs = "; or ".join(", ".join(form.needs) for form in FORMS)
        raise ValueError(f"got the fields {_some(fields)}; a row needs {needs}")
    known = {*form.needs, *form.may, *METADATA}
    unknown = [
        name
        for name in fields.keys() - known
        if not (form.parse is _endings and re.fullmatch(r"ending\d+", name))
    ]
    if unknown and not form.open:
        raise ValueError(
            f"got the unknown field {', '.join(map(repr, sorted(unknown)[:10]))}; beside "
            f"{', '.join(form.needs)} a row may have {', '.join((*form.may, *METADATA))}, and "
            "what else is known goes under meta"
        )
    return form


def _lettered(row: Row) -> Parts:
    """`options` is a list, or an object of letters; the answer a letter, a text or an index."""
    fields, options = row.fields, row.fields["options"]
    if isinstance(options, dict):
        if sorted(options) != list(LETTERS[: len(options)]):
            raise ValueError(f"got options {_some(options)}; they are A, B, C and so on")
        options = [options[letter] for letter in sorted(options)]
    if not isinstance(options, list) or len(options) > len(LETTERS):
        raise ValueError(f"got options {str(options)[:40]!r}; it is a list or an object of letters")
    options = _options(options)
    letter, answer = fields.get("answer_idx"), fields.get("answer")
    index = _index(fields.get("label"), options, "label")
    found = set() if index is None else {index}
    if letter is not None:
        if letter not in list(LETTERS[: len(options)]):
            raise ValueError(f"got answer_idx {letter!r}; it is A to {LETTERS[len(options) - 1]}")
        found.add(LETTERS.index(letter))
    if answer is not None:
        # Blood groups: an option may be the letter of another one, so what is named beside decides.
        named = {n for n, option in enumerate(options) if option.strip() == str(answer).strip()}
        named |= {n for n in range(len(options)) if LETTERS[n] == answer}
        if not named:
            raise ValueError(f"got the answer {answer!r}, which is none of {_quoted(options)}")
        found = found if found and found <= named else found | named
    if len(found) > 1:
        got = {name: fields[name] for name in ("label", "answer_idx", "answer") if name in fields}
        raise ValueError(f"got {got}, which names several of {_quoted(options)}; give a label")
    return Parts(fields["question"], options, next(iter(found), None), fields.get("context"))


def _endings(row: Row) -> Parts:
    """`sent1`, `ending0`, `ending1`, ...; a `sent2` begins every option, as in the original."""
    fields = row.fields
    count = sum(name.startswith("ending") for name in fields)
    if missing := [f"ending{n}" for n in range(count) if f"ending{n}" not in fields]:
        raise ValueError(f"got no {missing[0]} but {_some(fields)}; endings count from 0")
    options = _options([fields[f"ending{n}"] for n in range(count)])
    if start := _text(fields.get("sent2") or "", "sent2", empty=True).strip():
        options = [f"{start} {option}" for option in options]
    label = _index(fields.get("label"), options, "label")
    return Parts(fields["sent1"], options, label, fields.get("context"))


def _abcd(row: Row) -> Parts:
    """MedMCQA's own: `opa` to `opd`, and `cop`, the number of the correct one."""
    fields = row.fields
    options = _options([fields[name] for name in ("opa", "opb", "opc", "opd")])
    number = fields.get("cop")
    label = None if number == NO_ANSWER else _index(number, options, "cop", first=row.first)
    return Parts(fields["question"], options, label, fields.get("context"))


def _sentences(row: Row) -> Parts:
    fields = row.fields
    label = class_name(fields.get("label"))
    return Parts(fields["sentence1"], [], label, fields.get("sentence2"))


def _pubmedqa(row: Row) -> Parts:
    contexts = row.fields["CONTEXTS"]
    if not isinstance(contexts, list):
        raise ValueError(f"got CONTEXTS of type {type(contexts).__name__}; it is a list of texts")
    context = "\n".join(_text(text, "CONTEXTS", empty=True) for text in contexts)
    return Parts(row.fields["QUESTION"], [], class_name(row.fields.get("final_decision")), context)


def _bioasq(row: Row) -> Parts:
    """Joined as BLURB does it, so that both sources give the same text."""
    snippets = row.fields.get("snippets") or []
    if not all(isinstance(snippet, dict) for snippet in snippets):
        raise ValueError("got snippets that are no objects; each has its text under text")
    texts = [_text(snippet.get("text"), "snippet", empty=True) for snippet in snippets]
    question = _text(row.fields["body"], "body").replace("\n", " ")
    context = " ".join(text.replace("\n", " ") for text in texts)
    label = class_name(row.fields.get("exact_answer"))
    return Parts(question, [], None if label is None else label.lower(), context)


class Form(NamedTuple):
    """A way to write a row: the fields it needs (the last one tells the form) and may have."""

    kind: str
    needs: tuple[str, ...]
    may: tuple[str, ...]
    parse: Callable[[Row], Parts]
    open: bool = False  # a published dump: what else it says is its own business


FORMS = (
    Form(
        "choice", ("question", "options"), ("answer_idx", "answer", "label", "context"), _lettered
    ),
    Form("choice", ("sent1", "ending0"), ("sent2", "label", "context"), _endings),
    Form("choice", ("question", "opb", "opc", "opd", "opa"), ("cop", "context"), _abcd),
    Form("classification", ("sentence1",), ("sentence2", "label"), _sentences),
    Form("classification", ("CONTEXTS", "QUESTION"), ("final_decision",), _pubmedqa, open=True),
    Form("classification", ("body",), ("exact_answer", "snippets"), _bioasq, open=True),
)


def class_name(value: Any) -> str | None:
    """The name of a class, which files give as a text or a number; None where there is none."""
    if value is None:
        return None
    return str(value) if type(value) is int else _text(value, "label").strip()


def _options(options: list[Any]) -> list[str]:
    texts = [_text(option, f"option {LETTERS[n % 26]}") for n, option in enumerate(options)]
    if len(texts) < 2:
        raise ValueError(f"got {len(texts)} option; a question has at least two")
    twins = [text for text, n in Counter(text.strip() for text in texts).items() if n > 1]
    if twins:
        raise ValueError(f"got the option {twins[0]!r} twice")
    return texts


def _index(value: Any, options: list[str], what: str, first: int = 0) -> int | None:
    if value is None:
        return None
    last = first + len(options) - 1
    if type(value) is not int or not first <= value <= last:
        raise ValueError(f"got {what} {value!r}; it is a whole number from {first} to {last}")
    return value - first


def _text(value: Any, what: str, *, empty: bool = False) -> str:
    if not isinstance(value, str):
        raise ValueError(f"got {type(value).__name__} for {what}; it is a text")
    if not empty and not value.strip():
        raise ValueError(f"got an empty {what}")
    if "\0" in value:
        raise ValueError(f"got a NUL character in {what} at {value.index(chr(0))}")
    value.encode("utf-8")  # JSON can escape half of a surrogate pair, which raises here
    return value


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:20]) + (" and more" if len(names) > 20 else "")


def _quoted(texts: Iterable[str]) -> str:
    return ", ".join(repr(text) for text in texts)
