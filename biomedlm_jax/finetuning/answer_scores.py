"""Scores of generated answers to the rows of `instructions`, with intervals.

An answer is read whole: nothing but white space around it is removed, and of a label one final dot.
One that cannot be read is wrong in every figure: its gold labels are missed, and it counts as one
prediction of no label.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.files import read_jsonl
from biomedlm_jax.finetuning.instructions import (
    ANSWERS,
    NER,
    NO_ENTITY,
    TASKS,
    check_labels,
    plain_label,
)
from biomedlm_jax.finetuning.spans import entities, scheme_fault, split_tag
from biomedlm_jax.qa.statistics import Interval, bootstrap, mean

RESAMPLE = ("example", "group")
DEFINITIONS = {
    "spans": "an entity is right if its type and text occur in the gold answer, as often as there",
    "tags": "an entity is right if type, first and last token are (seqeval, default mode)",
    "label": "F1 of labels; micro-F1 is the accuracy if no label is left out",
}
SAME = ("task", "answer", "labels", "negative")  # in all rows of a dataset


class Judged(NamedTuple):
    """An answer beside its gold one, each as counted labels or entities."""

    id: str
    gold: Counter
    predicted: Counter | None  # None: it could not be read
    exact: bool  # the text is the gold one
    scheme_kept: bool = True

    @property
    def right(self) -> bool:
        """Whether all of the answer is."""
        return self.predicted == self.gold


def read_references(path: str | Path) -> list[dict[str, Any]]:
    """Return the checked rows of `build_instructions`; InputError with file and line for others."""
    rows: dict[str, dict[str, Any]] = {}
    first: dict[str, dict[str, Any]] = {}
    for where, row in read_jsonl(path):
        for name in ("id", "dataset", "task", "output"):
            if not isinstance(row.get(name), str):
                raise InputError(f"{where}: expected the text {name!r} of an instruction")
        if row["task"] not in TASKS:
            raise InputError(f"{where}: got task {row['task']!r}; expected {', '.join(TASKS)}")
        _check_gold(row, where)
        if row["id"] in rows:
            raise InputError(f"{where}: a second row with the id {row['id']!r}")
        rows[row["id"]] = row
        other = first.setdefault(row["dataset"], row)
        if differing := [name for name in SAME if row.get(name) != other.get(name)]:
            got = f"{where}: dataset {row['dataset']!r} has another {differing[0]} than before"
            raise InputError(f"{got}; fix: give its files different --dataset names")
    if not rows:
        raise InputError(f"{path} has no rows")
    return [*rows.values()]


def _check_gold(row: Mapping[str, Any], where: str) -> None:
    labels = row.get("labels")
    if not _texts(labels):
        raise InputError(f"{where}: expected labels, a list of texts")
    try:
        check_labels(labels, row.get("answer") if row["task"] == NER else None)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if row["task"] != NER:
        if row["output"] not in labels or row.get("negative", labels[0]) not in labels:
            raise InputError(f"{where}: expected output and negative to be of {', '.join(labels)}")
        return
    marked = row.get("entities")
    if row.get("answer") not in ANSWERS or not isinstance(marked, list):
        raise InputError(f"{where}: expected entities, and answer one of {', '.join(ANSWERS)}")
    for one in marked:
        pair = [one.get("type"), one.get("text")] if isinstance(one, dict) else []
        if not (_texts(pair) and len(pair) == 2 and pair[0] in labels):
            raise InputError(f"{where}: expected entities with a type of labels and a text")
    if row["answer"] == "tags":
        tokens, tags = row.get("tokens"), row.get("tags")
        if not (_texts(tokens) and _texts(tags) and len(tokens) == len(tags)):
            raise InputError(f"{where}: expected tokens and as many tags")
        if not all(_known(tag, labels) for tag in tags):
            raise InputError(f"{where}: expected tags O, B-TYPE and I-TYPE of its labels")


def _texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def read_answers(path: str | Path, *, field: str = "answers") -> dict[str, str]:
    """Return the answers of JSON lines by `id`: a text, or a list of one, as `generate` writes.

    Raises InputError with file and line for several answers to one row, and for lines of one id.
    """
    answers: dict[str, str] = {}
    for where, row in read_jsonl(path):
        identity, answer = row.get("id"), row.get(field)
        if not isinstance(identity, str):
            raise InputError(f"{where}: expected the id of a row of the instructions, got none")
        if isinstance(answer, list) and len(answer) > 1:
            raise InputError(f"{where}: got {len(answer)} answers; expected one: pass --samples=1")
        answer = answer[0] if isinstance(answer, list) and answer else answer
        if not isinstance(answer, str):
            got = "no such field" if field not in row else f"type {type(answer).__name__}"
            raise InputError(f"{where}: expected the text {field!r}, got {got}; name it by --field")
        if identity in answers:
            raise InputError(f"{where}: a second answer with the id {identity!r}")
        answers[identity] = answer
    return answers


def score_answers(
    references: Sequence[Mapping[str, Any]],
    answers: Mapping[str, str],
    *,
    resample: str = "example",
    seed: int = 0,
) -> tuple[dict[str, dict], list[dict[str, Any]]]:
    """Return the figures of each dataset, and an item for each example, in order.

    Figures are shares of 1 with 95 % bootstrap intervals, which resample examples, or with
    `resample="group"` their groups (documents). `references` are those of `read_references`.

    Raises InputError if an example has no answer, an answer no example, or an example no group.
    """
    if resample not in RESAMPLE:
        raise InputError(f"got resample={resample!r}; expected one of {', '.join(RESAMPLE)}")
    ids = [row["id"] for row in references]
    missing, extra = [one for one in ids if one not in answers], [*(answers.keys() - {*ids})]
    if missing or extra:
        without = counted(len(missing), "example has no answer", "examples have no answer")
        beyond = counted(len(extra), "answer has no example", "answers have no example")
        raise InputError(f"{without}, {beyond}; such as {min(missing or extra)!r}")
    by_dataset: dict[str, list[Mapping[str, Any]]] = {}
    for row in references:
        by_dataset.setdefault(row["dataset"], []).append(row)
    figures, items = {}, {}
    for name, rows in by_dataset.items():
        judged = [judge(row, answers[row["id"]]) for row in rows]
        group_N = None
        if resample == "group":
            if lacking := [row["id"] for row in rows if not isinstance(row.get("group"), str)]:
                raise InputError(f"{lacking[0]!r} has no group; fix: leave out --resample")
            group_N = np.unique([row["group"] for row in rows], return_inverse=True)[1]
        figures[name] = _figures(rows[0], judged, group_N, seed)
        items |= {one.id: _item(name, one, answers[one.id]) for one in judged}
    return figures, [items[one] for one in ids]


def judge(row: Mapping[str, Any], answer: str) -> Judged:
    """Return one answer beside the gold one of its row."""
    exact, kept = answer.strip() == row["output"].strip(), True
    if row["task"] != NER:
        gold, label = Counter([row["output"]]), parse_label(answer, row["labels"])
        predicted = None if label is None else Counter([label])
    elif row["answer"] == "tags":
        gold = Counter(entities(row["tags"]))
        tags = parse_tags(answer, row["tokens"], row["labels"])
        predicted = None if tags is None else Counter(entities(tags))
        kept = tags is None or scheme_fault(tags, "iob2") is None
    else:
        gold = Counter((one["type"], _plain(one["text"])) for one in row["entities"])
        spans = parse_spans(answer, row["labels"])
        predicted = None if spans is None else Counter(spans)
    return Judged(row["id"], gold, predicted, exact, kept)


def parse_label(answer: str, labels: Sequence[str]) -> str | None:
    """Return the label that the whole answer is, whatever its case; None if it is none."""
    return {plain_label(label): label for label in labels}.get(plain_label(answer))


def parse_spans(answer: str, labels: Sequence[str]) -> list[tuple[str, str]] | None:
    """Return (type, text) of each line `type: text`; None if a line is another one, or none is.

    A text is kept to its last character; runs of white space in it become one space.
    """
    if plain_label(answer) == NO_ENTITY.casefold():
        return []
    spans = []
    for line in filter(None, map(str.strip, answer.split("\n"))):
        kinds = [label for label in labels if line.startswith(f"{label}:")]
        kind = max(kinds, key=len, default="")
        text = _plain(line[len(kind) + 1 :])
        if not (kind and text):
            return None
        spans.append((kind, text))
    return spans or None


def parse_tags(answer: str, tokens: Sequence[str], labels: Sequence[str]) -> list[str] | None:
    """Return a tag for each token; None unless all have one, in order.

    Lines are `token : tag` or `token tag`, where the token must be the sentence's; or the answer
    consists of tags only.
    """
    words = answer.split()
    if len(words) == len(tokens) and all(_known(word, labels) for word in words):
        return words
    lines = [line for line in answer.split("\n") if line.strip()]
    if len(lines) != len(tokens):
        return None
    tags = []
    for line, token in zip(lines, tokens, strict=True):
        *before, tag = line.split()
        plain = " ".join(before)
        if _plain(token) not in (plain, plain.removesuffix(":").rstrip()):
            return None
        if not _known(tag, labels):
            return None
        tags.append(tag)
    return tags


def _known(tag: str, labels: Sequence[str]) -> bool:
    prefix, kind = split_tag(tag)
    return prefix == "O" or (prefix in ("B", "I") and kind in labels)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _figures(
    first: Mapping[str, Any], judged: Sequence[Judged], group_N: np.ndarray | None, seed: int
) -> dict[str, Any]:
    """Return the figures of one dataset; `first` is one of its rows."""
    labels, negative = first["labels"], first.get("negative")
    counts_Nx3xC = np.stack([_counts(one, labels) for one in judged])  # C: labels, unread
    counted_C = np.array([*(label != negative for label in labels), True])
    options = {"group_N": group_N, "seed": seed}
    named = {"task": first["task"], "answer": first["answer"] if first["task"] == NER else "label"}
    figures: dict[str, Any] = named | {"definition": DEFINITIONS[named["answer"]]}
    figures |= {"examples": len(judged), "unread": sum(one.predicted is None for one in judged)}
    if named["answer"] == "tags":
        figures["tags_against_iob2"] = sum(not one.scheme_kept for one in judged)
    if negative is not None:
        figures["left_out_of_f1"] = negative
    units = int(group_N.max()) + 1 if group_N is not None else len(judged)
    figures["resampled"] = f"{units} {'groups' if group_N is not None else 'examples'}"
    right = "sentence_accuracy" if first["task"] == NER else "accuracy"
    for name, values in (
        ("exact_match", [one.exact for one in judged]),
        (right, [one.right for one in judged]),
    ):
        figures[name] = mean(np.array(values, float), **options)._asdict()
    micro_Nx3 = counts_Nx3xC[:, :, counted_C].sum(2)
    for name, over in (("precision", [1]), ("recall", [2]), ("micro_f1", [1, 2])):
        figures[name] = _ratio(micro_Nx3, over, **options)._asdict()
    figures["macro_f1"] = _macro(counts_Nx3xC[:, :, :-1][:, :, counted_C[:-1]], **options)._asdict()
    total_3xC = counts_Nx3xC.sum(0)
    figures["by_label"] = {
        label: _of_label(*map(int, total_3xC[:, place])) for place, label in enumerate(labels)
    }
    return figures


def _counts(one: Judged, labels: Sequence[str]) -> np.ndarray:
    """Return how many are right, predicted and gold [3, C] of each label; last, of no label."""
    place = {label: number for number, label in enumerate(labels)}
    counts_3xC = np.zeros((3, len(labels) + 1), int)
    predicted = Counter() if one.predicted is None else one.predicted
    for row, items in enumerate((predicted & one.gold, predicted, one.gold)):
        for item, count in items.items():
            counts_3xC[row, place[item if isinstance(item, str) else item[0]]] += count
    counts_3xC[1, -1] = one.predicted is None
    return counts_3xC


def _ratio(counts_Nx3: np.ndarray, over: list[int], *, group_N, seed: int) -> Interval:
    """Right ones by predicted or gold ones, or F1 by both; 0 where there is none, as in seqeval."""

    def ratio(sums_Rx3: np.ndarray, n_R: np.ndarray) -> np.ndarray:
        return len(over) * sums_Rx3[:, 0] / np.maximum(sums_Rx3[:, over].sum(1), 1)

    return bootstrap(counts_Nx3, ratio, group_N, seed)


def _macro(counts_Nx3xC: np.ndarray, *, group_N, seed: int) -> Interval:
    """Mean F1 of the labels that occur in gold or predicted ones."""

    def macro(sums_RxF: np.ndarray, n_R: np.ndarray) -> np.ndarray:
        right_RxC, predicted_RxC, gold_RxC = np.split(sums_RxF, 3, axis=1)
        both_RxC = predicted_RxC + gold_RxC
        f1_RxC = 2 * right_RxC / np.maximum(both_RxC, 1)
        return f1_RxC.sum(1) / np.maximum((both_RxC > 0).sum(1), 1)

    examples, _, labels = counts_Nx3xC.shape
    return bootstrap(counts_Nx3xC.reshape(examples, 3 * labels), macro, group_N, seed)


def _of_label(right: int, predicted: int, gold: int) -> dict[str, float | int]:
    return {
        "precision": right / max(predicted, 1),
        "recall": right / max(gold, 1),
        "f1": 2 * right / max(predicted + gold, 1),
        "gold": gold,
        "predicted": predicted,
    }


def _item(dataset: str, one: Judged, answer: str) -> dict[str, Any]:
    item: dict[str, Any] = {"id": one.id, "dataset": dataset, "right": one.right}
    item |= {"exact": one.exact, "read": one.predicted is not None, "answer": answer}
    listed = {"gold": one.gold, "predicted": one.predicted or Counter()}
    missed, spurious = one.gold - listed["predicted"], listed["predicted"] - one.gold
    return item | {"missed": _listed(missed), "spurious": _listed(spurious)}


def _listed(items: Counter) -> list:
    return [one if isinstance(one, str) else [*one] for one in items.elements()]
