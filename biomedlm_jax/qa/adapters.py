"""Adapters: what the fields of a row mean, in each published format.

Each raises InputError, with the name of the field, for a row that it cannot read.
"""

import string
from typing import Any

from biomedlm_jax.errors import InputError
from biomedlm_jax.qa.question_rows import Row, first_names

LETTERS = string.ascii_uppercase
MMLU_FIELDS = "question", "A", "B", "C", "D", "answer"  # of its CSV, in order


NO_ANSWER = -1  # `cop` in mirrors of MedMCQA where the answer is secret


# The content of a row: question, options, answer (an index or the name of a class) and context.
Parts = tuple[Any, list[str], int | str | None, Any]


def lettered(row: Row) -> Parts:
    """Options with an answer by letter, text or index, which must agree."""
    fields, options = row.fields, row.fields["options"]
    if isinstance(options, dict):
        if sorted(options) != list(LETTERS[: len(options)]):
            raise InputError(f"expected options A, B, C and so on, got {first_names(options)}")
        options = [options[letter] for letter in sorted(options)]
    if not isinstance(options, list) or len(options) > len(LETTERS):
        expected = "expected options as a list or an object of letters"
        raise InputError(f"{expected}, got {str(options)[:40]!r}")
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
            raise InputError(f"expected answer_idx A to {last}, got {letter!r}")
        chosen.add(LETTERS.index(letter))
    if answer is not None:
        # Blood groups: an option may be the letter of another one; label or answer_idx decides.
        plain_text(answer, "answer")
        named = {n for n, option in enumerate(options) if option.strip() == answer.strip()}
        named |= {n for n in range(len(options)) if LETTERS[n] == answer}
        if not named:
            raise InputError(f"expected an answer among {options}, got {answer!r}")
        chosen = chosen if chosen and chosen <= named else chosen | named
    if len(chosen) > 1:
        got = {name: fields[name] for name in ("label", "answer_idx", "answer") if name in fields}
        raise InputError(f"{got} names several of {options}; fix: give a label")
    return fields["question"], options, next(iter(chosen), None), fields.get("context")


def endings(row: Row) -> Parts:
    """A `sent2` begins every option, as in the original code."""
    fields = row.fields
    count = sum(name.startswith("ending") for name in fields)
    if missing := [f"ending{n}" for n in range(count) if f"ending{n}" not in fields]:
        raise InputError(
            f"expected endings counted from 0: no {missing[0]} in {first_names(fields)}"
        )
    options = _options([fields[f"ending{n}"] for n in range(count)])
    if start := plain_text(fields.get("sent2") or "", "sent2", empty=True).strip():
        options = [f"{start} {option}" for option in options]
    label = _index(fields.get("label"), options, "label", row.first)
    return fields["sent1"], options, label, fields.get("context")


def choices(row: Row) -> Parts:
    """The same, where the options are called choices."""
    return lettered(row._replace(fields={**row.fields, "options": row.fields["choices"]}))


def bigbio(row: Row) -> Parts:
    """The answer is the text of an option, never its letter."""
    options, answer = _options(row.fields["choices"]), _bigbio_answer(row)
    if answer is not None and options.count(answer) != 1:
        raise InputError(f"expected an answer that is one of {options}, got {answer!r}")
    label = None if answer is None else options.index(answer)
    return row.fields["question"], options, label, row.fields.get("context")


def bigbio_classes(row: Row) -> Parts:
    """The choices are the classes."""
    return row.fields["question"], [], _class(_bigbio_answer(row)), row.fields.get("context")


def _bigbio_answer(row: Row) -> Any:
    answers = row.fields.get("answer")
    if not isinstance(answers, list) or len(answers) > 1:
        raise InputError(f"expected answer as a list of one text, got {str(answers)[:40]!r}")
    return answers[0] if answers else None


def abcd(row: Row) -> Parts:
    """MedMCQA's: four options and the number of the right one."""
    fields, number = row.fields, row.fields.get("cop")
    options = _options([fields[name] for name in ("opa", "opb", "opc", "opd")])
    label = None if number == NO_ANSWER else _index(number, options, "cop", row.first)
    return fields["question"], options, label, fields.get("context")


def mmlu(row: Row) -> Parts:
    """A line of MMLU's CSV."""
    question, *options, letter = (row.fields[name] for name in MMLU_FIELDS)
    fields = {"question": question, "options": options, "answer_idx": letter.strip()}
    return lettered(row._replace(fields=fields))


def sentences(row: Row) -> Parts:
    """A question and its context, with the name of a class."""
    fields = row.fields
    return fields["sentence1"], [], _class(fields.get("label")), fields.get("sentence2")


def pubmedqa(row: Row) -> Parts:
    """An article of PubMedQA's JSON."""
    contexts = _joined(row.fields["CONTEXTS"], "CONTEXTS")
    return row.fields["QUESTION"], [], _class(row.fields.get("final_decision")), contexts


def pubmedqa_row(row: Row) -> Parts:
    """A row of PubMedQA on Hugging Face."""
    context = row.fields["context"]
    if not isinstance(context, dict) or "contexts" not in context:
        raise InputError(f"expected a context with contexts, got {str(context)[:40]!r}")
    contexts = _joined(context["contexts"], "context.contexts")
    return row.fields["question"], [], _class(row.fields.get("final_decision")), contexts


def _joined(texts: Any, field: str) -> str:
    if not isinstance(texts, list):
        raise InputError(f"expected {field} as a list of texts, got {type(texts).__name__}")
    return "\n".join(plain_text(text, field, empty=True) for text in texts)


def bioasq(row: Row) -> Parts:
    """Join the snippets as BLURB does, so that both sources give the same text."""
    snippets, label = row.fields.get("snippets") or [], _class(row.fields.get("exact_answer"))
    if not (isinstance(snippets, list) and all(isinstance(one, dict) for one in snippets)):
        raise InputError("expected snippets as objects with a text each")
    texts = [plain_text(snippet.get("text"), "snippet", empty=True) for snippet in snippets]
    question = plain_text(row.fields["body"], "body").replace("\n", " ")
    return question, [], label and label.lower(), " ".join(texts).replace("\n", " ")


def _class(value: Any) -> str | None:
    return None if value is None else plain_label(value, "label").strip()


def plain_label(value: Any, field: str) -> str:
    """Return a name, which may be a number, as text."""
    return str(value) if type(value) is int else plain_text(value, field)


def _options(options: Any) -> list[str]:
    if not isinstance(options, list):
        raise InputError(f"expected the options as a list, got {str(options)[:40]!r}")
    texts = [plain_text(option, f"option {LETTERS[n % 26]}") for n, option in enumerate(options)]
    if len(texts) < 2:
        raise InputError(f"expected at least two options, got {len(texts)}")
    return texts


def _index(value: Any, options: list[str], name: str, first: int = 0) -> int | None:
    if value is None:
        return None
    last = first + len(options) - 1
    if type(value) is not int or not first <= value <= last:
        raise InputError(f"expected {name} as a whole number from {first} to {last}, got {value!r}")
    return value - first


def plain_text(value: Any, field: str, *, empty: bool = False) -> str:
    """Return a text of the field; raise InputError if it is none."""
    if not isinstance(value, str):
        raise InputError(f"expected text for {field}, got {type(value).__name__}")
    if not empty and not value.strip():
        raise InputError(f"empty {field}")
    if "\0" in value:
        raise InputError(f"NUL character in {field} at {value.index(chr(0))}")
    value.encode("utf-8")  # JSON can escape half of a surrogate pair, which raises here
    return value
