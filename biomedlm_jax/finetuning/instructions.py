"""Annotated files as instructions: entities, relations, inference and classification.

A row has `instruction`, `input` and `output`, and what `answer_scores` needs: `id` ("file:line"),
`dataset`, `task`, `labels`, and of entities `answer`, `entities`, `tokens` and `tags`.
"""

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.conll import Sentence, read_sentences
from biomedlm_jax.finetuning.labelled import FIELDS, MARKS, Labelled, read_labelled
from biomedlm_jax.finetuning.spans import SCHEMES, Entity, iob2_tags

NER = "ner"
TASKS = (NER, *FIELDS)
ANSWERS = ("spans", "tags")
NO_ENTITY = "None"  # the output where a sentence has no entity
_SPANS = "Write one entity a line as `type: text`, in the order of the text, or None."
_TAGS = (
    "The tokens are separated by spaces. Write one token a line as `token : tag`, where the tag is "
    "B and the type for the first token of an entity, I and the type for its others, and O for "
    "all other tokens, as in B-{first}, I-{first}, O."
)
WORDINGS = {
    "spans": (
        f"List the entities of these types in the sentence: {{labels}}. {_SPANS}",
        f"Which words of this sentence name one of the following? Types: {{labels}}. {_SPANS}",
        f"Extract every mention of these types from the text: {{labels}}. {_SPANS}",
        f"Read the sentence and find all its named entities. Known types: {{labels}}. {_SPANS}",
    ),
    "tags": (
        f"Tag the entities of these types in the sentence: {{labels}}. {_TAGS}",
        f"Label each token of this sentence. Types of entities: {{labels}}. {_TAGS}",
        f"Mark every mention of these types, token by token: {{labels}}. {_TAGS}",
        f"Read the sentence and give each token a tag. Known types: {{labels}}. {_TAGS}",
    ),
    "relation": (
        "Which relation do the marked entities of the sentence have? Answer with one of: {labels}.",
        "Name the relation between the entities that are marked in this text. Choose from: "
        "{labels}.",
        "Two entities are marked in the text. Classify their relation as one of: {labels}.",
        "Decide how the marked entities are related. The allowed answers are: {labels}.",
    ),
    "nli": (
        "How does the hypothesis relate to the premise? Answer with one of: {labels}.",
        "Decide what follows for the hypothesis if the premise is true. Choose from: {labels}.",
        "Compare the hypothesis with the premise and answer with one of: {labels}.",
        "Read both sentences and classify the hypothesis, given the premise, as one of: {labels}.",
    ),
    "classification": (
        "Classify the text. Answer with one of: {labels}.",
        "Which of these classes does the text belong to: {labels}? Answer with the class only.",
        "Read the text and choose its label from: {labels}.",
        "Assign one label to the following text. The allowed labels are: {labels}.",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How files are read and worded; InputError for values that do not fit together.

    `columns` to `marks` are those of `read_sentences` and `read_labelled`.
    """

    task: str
    dataset: str = ""  # name in the scores; default: the task
    answer: str = "spans"  # or "tags"; of ner
    scheme: str = "iob2"
    columns: Sequence[str] = ()
    entity_type: str = ""
    text_field: str = ""
    label_field: str = ""
    marks: str = MARKS
    labels: Sequence[str] = ()  # all that may occur, in the order of the instruction
    label_names: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of the file -> ours
    negative: str = ""  # the label (ours) that F1 leaves out
    paraphrases: bool = False  # choose a wording for each example
    seed: int = 0  # of that choice

    def __post_init__(self):
        for name, allowed in (("task", TASKS), ("answer", ANSWERS), ("scheme", SCHEMES)):
            if getattr(self, name) not in allowed:
                got = f"got {name}={getattr(self, name)!r}"
                raise InputError(f"{got}; expected one of {', '.join(allowed)}")
        idle = ("text_field", "label_field", "negative") if self.task == NER else ("entity_type",)
        if given := [name for name in idle if getattr(self, name)]:
            raise InputError(f"got {given[0]} with {self.task}, where it has no effect")
        if self.answer == "tags" and "start" in self.columns:
            got = "got answer=tags and the column start: tags need tokens with one space between"
            raise InputError(f"{got}; fix: give start and end other names")
        try:
            re.compile(self.marks)
        except re.error as error:
            raise InputError(f"got marks={self.marks!r}, no regular expression: {error}") from None
        names = Counter(self.label_names.values())
        if names and (name := names.most_common(1)[0])[1] > 1:
            raise InputError(f"got the name {name[0]!r} for two labels; expected different names")


def build_instructions(
    inputs: Sequence[str | Path], layout: Layout
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row for each example of the files, in their order, and figures of them.

    The same files and layout give the same rows. The figures are `examples`, `labels` (entities, or
    examples, of each), `left_out` by "file: reason", `contradictory` (examples whose input occurs
    with another output, too), and `without_entity` of ner.

    Raises InputError for a bad line, for a label outside `labels`, for two files of one name (the
    ids would be equal), and if there is no example.
    """
    inputs, left_out = [Path(path) for path in inputs], Counter()
    name, count = Counter(path.name for path in inputs).most_common(1)[0]
    if count > 1:
        raise InputError(f"two files have the name {name}; ids use it: convert them apart")
    drafts = [(path, one) for path in inputs for one in _drafts(path, layout, left_out)]
    if not drafts:
        raise InputError(f"no example in {', '.join(map(str, inputs))}")
    counts: Counter[str] = Counter()
    for path, one in drafts:
        kinds = [e.type for e in one.entities] if isinstance(one, Sentence) else [one.label]
        counts.update(kinds)
        if layout.labels and (other := [kind for kind in kinds if kind not in layout.labels]):
            place = one.line if isinstance(one, Sentence) else one.place
            got = f"{path}:{place}: got the label {other[0]!r}"
            raise InputError(f"{got}; expected one of {', '.join(layout.labels)}")
    if unused := {*layout.label_names.values()} - {*counts, *layout.labels}:
        raise InputError(f"no example has the label that is to be named {min(unused)!r}")
    labels = list(layout.labels) or sorted(counts)
    check_labels(labels, layout.answer if layout.task == NER else None)
    if layout.negative and layout.negative not in labels:
        raise InputError(f"got negative={layout.negative!r}; expected one of {', '.join(labels)}")
    rows = [_row(path, one, labels, layout) for path, one in drafts]
    if any(isinstance(one, Sentence) and one.document for _, one in drafts):
        for row, (path, one) in zip(rows, drafts, strict=True):
            row["group"] = f"{path.name}#{one.document if isinstance(one, Sentence) else 0}"
    outputs: dict[str, set[str]] = {}
    for row in rows:
        outputs.setdefault(row["input"], set()).add(row["output"])
    figures = {"examples": len(rows), "labels": {one: counts[one] for one in labels}}
    figures["contradictory"] = sum(len(outputs[row["input"]]) > 1 for row in rows)
    if layout.task == NER:
        figures["without_entity"] = sum(not row["entities"] for row in rows)
    return rows, {**figures, "left_out": dict(left_out)}


def check_labels(labels: Sequence[str], answer: str | None) -> None:
    """Raise InputError for labels that an answer could not be read back to.

    Labels that differ in case or a final dot only; types with white space in "tags", or with ": "
    in "spans". `answer` is None for other tasks than ner.
    """
    if not labels:
        raise InputError("no example has an entity; fix: name the types with --labels")
    plain = Counter(plain_label(label) for label in labels)
    name, count = plain.most_common(1)[0]
    if "" in plain:
        raise InputError(f"got a label without a character in {', '.join(map(repr, labels))}")
    if count > 1:
        equal = ", ".join(repr(label) for label in labels if plain_label(label) == name)
        raise InputError(f"got the labels {equal}; expected labels that differ in more than case")
    for label in labels:
        bad = any(char.isspace() for char in label) if answer == "tags" else ": " in label
        if answer in ANSWERS and (bad or label != label.strip() or "\n" in label):
            raise InputError(f"got the type {label!r}; expected one without white space or ': '")


def plain_label(text: str) -> str:
    """Return a label as answers are compared: without case, outer white space and one final dot."""
    return text.strip().removesuffix(".").rstrip().casefold()


def _drafts(path: Path, layout: Layout, left_out: Counter[str]) -> Iterator[Sentence | Labelled]:
    """Yield the examples of a file, their labels renamed."""
    names = layout.label_names

    def named(label: str, place: int | str) -> str:
        if label in names.values() and names.get(label) != label:
            got = f"{path}:{place}: got the label {label!r}, the new name of another one"
            raise InputError(f"{got}; fix: choose another name")
        return names.get(label, label)

    if layout.task == NER:
        options = {"scheme": layout.scheme, "columns": layout.columns}
        for one in read_sentences(path, entity_type=layout.entity_type, **options):
            marked = [e._replace(type=named(e.type, one.line)) for e in one.entities]
            yield one._replace(entities=marked)
        return
    options = {n: getattr(layout, n) for n in ("columns", "text_field", "label_field", "marks")}
    for one in read_labelled(path, layout.task, left_out=left_out, **options):
        yield one._replace(label=named(one.label, one.place))


def _row(
    path: Path, one: Sentence | Labelled, labels: Sequence[str], layout: Layout
) -> dict[str, Any]:
    sentence = isinstance(one, Sentence)
    identity = f"{path.name}:{one.line if sentence else one.place}"
    wordings = WORDINGS[layout.answer if sentence else layout.task]
    number = 0
    if layout.paraphrases:
        digest = hashlib.blake2b(f"{layout.seed}\n{identity}".encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "big") % len(wordings)
    # No str.format: a label may have braces.
    wording = wordings[number].replace("{first}", labels[0])
    row: dict[str, Any] = {"id": identity, "dataset": layout.dataset or layout.task}
    row |= {"task": layout.task, "instruction": wording.replace("{labels}", ", ".join(labels))}
    if isinstance(one, Labelled):
        row |= {"input": _input(one), "output": one.label, "labels": [*labels]}
        if layout.negative:
            row["negative"] = layout.negative
        return row | ({"source_id": one.source_id} if one.source_id is not None else {})
    marked = [_marked(one, entity) for entity in one.entities]
    tags = iob2_tags(one.entities, len(one.tokens))
    row["input"] = one.text
    if layout.answer == "tags":
        row["output"] = "\n".join(f"{t} : {tag}" for t, tag in zip(one.tokens, tags, strict=True))
    else:
        row["output"] = "\n".join(f"{e['type']}: {e['text']}" for e in marked) or NO_ENTITY
    row |= {"labels": [*labels], "answer": layout.answer, "entities": marked}
    row |= {"tokens": one.tokens, "tags": tags} if layout.answer == "tags" else {}
    return row | ({"offset": one.offset} if one.offset is not None else {})


def _marked(sentence: Sentence, entity: Entity) -> dict[str, Any]:
    start, end = sentence.span(entity)
    text = sentence.text[start:end]
    return {"type": entity.type, "start": start, "end": end, "text": text}


def _input(one: Labelled) -> str:
    if len(one.texts) == 1:
        return next(iter(one.texts.values()))
    return "Premise: {sentence1}\nHypothesis: {sentence2}".format(**one.texts)
