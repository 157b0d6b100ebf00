import json

import numpy as np
import pytest
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import f1_score as label_f1
from sklearn.metrics import precision_recall_fscore_support

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_jsonl
from biomedlm_jax.finetuning.answer_scores import (
    parse_label,
    parse_spans,
    parse_tags,
    read_answers,
    read_references,
    score_answers,
)
from biomedlm_jax.finetuning.instructions import Layout, build_instructions
from biomedlm_jax.finetuning.spans import OUTSIDE

KINDS = ("Gene", "Disease")
TAGS = (OUTSIDE, OUTSIDE, *(f"{prefix}-{kind}" for prefix in "BI" for kind in KINDS))


def instructions(tmp_path, text, name="gold.tsv", **layout):
    """Rows after a way through their file, which checks them."""
    (tmp_path / name).write_text(text)
    rows, _ = build_instructions([tmp_path / name], Layout(**layout))
    write_jsonl(tmp_path / "rows.jsonl", rows)
    return read_references(tmp_path / "rows.jsonl")


def value(figures, name):
    return figures[name]["value"]


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """Rows of random IOB2 sentences, random tags as answers, and the tags of both."""
    rng = np.random.default_rng(0)
    text, lengths = "", rng.integers(1, 9, 120)
    for length in lengths:
        before = OUTSIDE
        for place in range(length):
            tag = rng.choice(TAGS)
            if tag[0] == "I" and before[1:] != tag[1:]:
                tag = "B" + tag[1:]
            text, before = text + f"w{place} {tag}\n", tag
        text += "\n"
    rows = instructions(tmp_path_factory.mktemp("a"), text, task="ner", answer="tags")
    predicted = [
        [tag if rng.random() < 0.7 else str(rng.choice(TAGS)) for tag in row["tags"]]
        for row in rows
    ]
    return rows, predicted


def lines(row, tags):
    return "\n".join(f"{token} : {tag}" for token, tag in zip(row["tokens"], tags, strict=True))


def test_tags_are_scored_as_by_seqeval(tagged):
    rows, predicted = tagged
    answers = {row["id"]: lines(row, tags) for row, tags in zip(rows, predicted, strict=True)}
    by_dataset, items = score_answers(rows, answers)
    figures = by_dataset["ner"]
    gold = [row["tags"] for row in rows]
    assert value(figures, "precision") == pytest.approx(precision_score(gold, predicted))
    assert value(figures, "recall") == pytest.approx(recall_score(gold, predicted))
    assert value(figures, "micro_f1") == pytest.approx(f1_score(gold, predicted))
    assert value(figures, "macro_f1") == pytest.approx(f1_score(gold, predicted, average="macro"))
    by_type = f1_score(gold, predicted, average=None)  # in the order of the alphabet
    assert [figures["by_label"][kind]["f1"] for kind in sorted(KINDS)] == pytest.approx(by_type)
    assert figures["unread"] == 0
    assert figures["tags_against_iob2"] > 0
    assert value(figures, "exact_match") == np.mean(
        [g == p for g, p in zip(gold, predicted, strict=True)]
    )
    for name in ("precision", "recall", "micro_f1", "macro_f1", "sentence_accuracy"):
        one = figures[name]
        assert one["low"] < one["value"] < one["high"]
    assert figures["resampled"] == "120 examples"
    assert [item["id"] for item in items] == [row["id"] for row in rows]
    missed = sum(len(item["missed"]) for item in items)
    of_gold = sum(one["gold"] for one in figures["by_label"].values())
    assert missed == pytest.approx(of_gold * (1 - value(figures, "recall")))


def test_the_interval_is_that_of_resampled_sentences(tagged):
    """Beside a plain bootstrap of the sentences with seqeval's own counts of each."""
    rows, predicted = tagged
    answers = {row["id"]: lines(row, tags) for row, tags in zip(rows, predicted, strict=True)}
    (figures,) = score_answers(rows, answers)[0].values()
    pairs = [
        ({*get_entities(r["tags"])}, {*get_entities(p)})
        for r, p in zip(rows, predicted, strict=True)
    ]
    counts_Nx2 = np.array([(2 * len(g & p), len(g) + len(p)) for g, p in pairs])
    sample_RxN = np.random.default_rng(1).integers(0, len(rows), (4000, len(rows)))
    sums_Rx2 = counts_Nx2[sample_RxN].sum(1)
    low, high = np.quantile(sums_Rx2[:, 0] / sums_Rx2[:, 1], [0.025, 0.975])
    assert figures["micro_f1"]["low"] == pytest.approx(low, abs=0.006)
    assert figures["micro_f1"]["high"] == pytest.approx(high, abs=0.006)


def test_an_answer_that_cannot_be_read_is_wrong(tagged):
    rows, _ = tagged
    rows = rows[:6]
    perfect = {row["id"]: row["output"] for row in rows}
    (figures,) = score_answers(rows, perfect)[0].values()
    assert value(figures, "micro_f1") == value(figures, "exact_match") == 1
    entities = sum(len(row["entities"]) for row in rows)
    of_first = len(rows[0]["entities"])
    for bad in ("", "I cannot help with that.", lines(rows[0], rows[0]["tags"]) + "\nw9 : O"):
        answers = {**perfect, rows[0]["id"]: bad}
        figures_of_all, items = score_answers(rows, answers)
        (figures,) = figures_of_all.values()
        assert figures["unread"] == 1
        assert value(figures, "recall") == pytest.approx((entities - of_first) / entities)
        right = entities - of_first
        assert value(figures, "precision") == pytest.approx(right / (right + 1))
        assert value(figures, "sentence_accuracy") == pytest.approx(5 / 6)
        assert (items[0]["read"], items[0]["right"], items[0]["answer"]) == (False, False, bad)


def test_spans_are_a_multiset_of_type_and_text(tmp_path):
    text = (
        "p53 B-Gene\nand O\np53 B-Gene\nin O\nlung B-Disease\ncancer I-Disease\n\n"
        "none O\n\nbreast B-Disease\ncancer I-Disease\n. O\n"
    )
    first, second, third = instructions(tmp_path, text, task="ner")

    def figures(*answers):
        named = dict(zip((first["id"], second["id"], third["id"]), answers, strict=True))
        return score_answers([first, second, third], named)[0]["ner"]

    perfect = figures("Disease: lung  cancer\nGene: p53\n\nGene: p53\n", "none.", third["output"])
    assert value(perfect, "micro_f1") == value(perfect, "sentence_accuracy") == 1
    assert value(perfect, "exact_match") == pytest.approx(1 / 3)
    # p53 once of twice, a third time in another answer; lung cancer with another type.
    some = figures("Gene: p53\nGene: lung cancer", "Gene: p53", "Disease: breast cancer")
    assert (value(some, "precision"), value(some, "recall")) == (2 / 4, 2 / 4)
    assert some["by_label"]["Gene"] == {
        "precision": 1 / 3,
        "recall": 1 / 2,
        "f1": 2 / 5,
        "gold": 2,
        "predicted": 3,
    }
    assert value(some, "macro_f1") == pytest.approx((2 / 5 + 2 / 3) / 2)
    # Without an entity to miss, an answer that cannot be read is wrong, too.
    unread = figures(first["output"], "There are no entities here.", third["output"])
    assert unread["unread"] == 1
    assert value(unread, "precision") == 4 / 5


def test_no_character_of_an_entity_is_removed():
    """MedS-Bench's scorer drops the last one of an answer: `text[:-1]` after its dot is gone."""
    labels = ["Disease", "Species"]
    assert parse_spans("Disease: breast cancer", labels) == [("Disease", "breast cancer")]
    assert parse_spans("Species: S. aureus sp.", labels) == [("Species", "S. aureus sp.")]
    assert parse_spans("Disease: cancer.", labels) == [("Disease", "cancer.")]
    assert parse_spans("Disease: cance", labels) != parse_spans("Disease: cancer", labels)
    assert parse_label("entailment", ["entailment", "neutral"]) == "entailment"
    assert parse_label("entailment.", ["entailment", "neutral"]) == "entailment"
    assert parse_label("entailmen", ["entailment", "neutral"]) is None
    assert parse_tags("a : B-Disease", ["a"], labels) == ["B-Disease"]
    assert parse_tags("a : B-Diseas", ["a"], labels) is None


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (" Neutral.\n", "neutral"),
        ("NEUTRAL", "neutral"),
        ("neutral..", None),
        ("The answer is neutral", None),
        ("neutral, entailment", None),
        ("", None),
        (".", None),
        ("no. 1", "No. 1."),
    ],
)
def test_labels_of_answers(answer, label):
    assert parse_label(answer, ["neutral", "entailment", "No. 1."]) == label


@pytest.mark.parametrize(
    ("answer", "spans"),
    [
        ("None", []),
        (" none.\n", []),
        ("A:x", [("A", "x")]),
        ("A: B: x", [("A", "B: x")]),
        ("A-B: x\n\n A: y ", [("A-B", "x"), ("A", "y")]),
        ("None: x", None),
        ("A: x\nC: y", None),
        ("A: x\nand more", None),
        ("A:", None),
        ("a: x", None),
        ("", None),
        ("- A: x", None),
    ],
)
def test_spans_of_answers(answer, spans):
    assert parse_spans(answer, ["A", "A-B", "B"]) == spans


@pytest.mark.parametrize(
    ("answer", "tags"),
    [
        ("x : B-A\n: : O", ["B-A", "O"]),
        ("x: B-A\n\n:  O\n", ["B-A", "O"]),
        ("x\tB-A\n:\tO", ["B-A", "O"]),
        ("B-A O", ["B-A", "O"]),
        ("O\nI-A", ["O", "I-A"]),
        ("x : B-A", None),
        ("x : B-A\n: : O\ny : O", None),
        ("y : B-A\n: : O", None),
        ("x : B-C\n: : O", None),
        ("x : S-A\n: : O", None),
        ("x : B\n: : O", None),
        ("x\n:", None),
        ("", None),
    ],
)
def test_tags_of_answers(answer, tags):
    assert parse_tags(answer, ["x", ":"], ["A"]) == tags


@pytest.mark.parametrize("negative", ["", "none"])
def test_labels_are_scored_as_by_scikit_learn(tmp_path, negative):
    rng = np.random.default_rng(3)
    labels = ["inhibitor", "activator", "substrate", "none"]
    gold = rng.choice(labels, 200)
    text = "".join(f"@GENE$ {n}\t{label}\n" for n, label in enumerate(gold))
    layout = {"task": "relation", "negative": negative, "labels": [*labels, "never"]}
    rows = instructions(tmp_path, text, **layout)
    predicted = np.where(rng.random(200) < 0.6, gold, rng.choice([*labels, "unread"], 200))
    answers = {row["id"]: str(one) for row, one in zip(rows, predicted, strict=True)}
    figures = score_answers(rows, answers)[0]["relation"]
    counted = [label for label in labels if label != negative]
    micro = {"labels": [*counted, "unread"], "average": "micro", "zero_division": 0}
    expected = precision_recall_fscore_support(gold, predicted, **micro)[:3]
    values = [value(figures, name) for name in ("precision", "recall", "micro_f1")]
    assert values == pytest.approx(expected)
    macro = label_f1(gold, predicted, labels=counted, average="macro")
    assert value(figures, "macro_f1") == pytest.approx(macro)
    accuracy = np.mean(gold == predicted)
    assert value(figures, "accuracy") == value(figures, "exact_match") == pytest.approx(accuracy)
    assert figures["unread"] == (predicted == "unread").sum() > 0
    if negative:
        assert figures["left_out_of_f1"] == "none"
    else:
        assert value(figures, "micro_f1") == pytest.approx(accuracy)
    assert figures["by_label"]["never"]["f1"] == 0


def test_only_the_label_that_f1_leaves_out(tmp_path):
    rows = instructions(tmp_path, "@GENE$\tno\n", task="relation", negative="no")
    figures = score_answers(rows, {"gold.tsv:1": "no"})[0]["relation"]
    assert (value(figures, "accuracy"), value(figures, "micro_f1")) == (1, 0)
    assert value(figures, "macro_f1") == 0  # as in seqeval and scikit-learn, 0 of nothing


def test_groups_are_resampled_together(tmp_path):
    text = "".join(
        "-DOCSTART- O\n\n" + "".join(f"w{d} B-X\n\n" for _ in range(10)) for d in range(12)
    )
    rows = instructions(tmp_path, text, task="ner")
    answers = {row["id"]: row["output"] if "1" in row["group"][-1] else "None" for row in rows}
    single, grouped = (
        score_answers(rows, answers, resample=unit)[0]["ner"] for unit in ("example", "group")
    )
    assert grouped["resampled"] == "12 groups"

    def width(figures):
        return figures["micro_f1"]["high"] - figures["micro_f1"]["low"]

    assert width(grouped) > 1.5 * width(single)
    assert value(grouped, "micro_f1") == value(single, "micro_f1")
    rows = instructions(tmp_path, "w B-X\n", task="ner")
    with pytest.raises(InputError, match=r"'gold.tsv:1' has no group"):
        score_answers(rows, {"gold.tsv:1": "None"}, resample="group")
    with pytest.raises(InputError, match="got resample='x'"):
        score_answers(rows, {"gold.tsv:1": "None"}, resample="x")


def test_datasets_are_scored_apart(tmp_path):
    ner = instructions(tmp_path, "w B-X\n", task="ner", dataset="ncbi")
    nli = json.dumps({"sentence1": "a", "sentence2": "b", "gold_label": "neutral"})
    nli = instructions(tmp_path, nli, name="a.jsonl", task="nli", labels=["neutral", "entailment"])
    figures, items = score_answers(nli + ner, {"gold.tsv:1": "X: w", "a.jsonl:1": "entailment"})
    assert value(figures["ncbi"], "micro_f1") == 1
    assert value(figures["nli"], "micro_f1") == 0
    assert [item["dataset"] for item in items] == ["nli", "ncbi"]
    assert (items[0]["missed"], items[0]["spurious"]) == (["neutral"], ["entailment"])


def test_answers_and_references_must_match(tmp_path):
    rows = instructions(tmp_path, "w B-X\n\nw O\n", task="ner")
    for answers in ({}, {"gold.tsv:1": "None"}, {row["id"]: "" for row in rows} | {"x": ""}):
        with pytest.raises(InputError, match=r"ha(s|ve) no answer, . answers? ha"):
            score_answers(rows, answers)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"answers": ["x"]}], "a.jsonl:1: expected the id"),
        ([{"id": "a", "answers": ["x", "y"]}], "a.jsonl:1: got 2 answers; expected one"),
        ([{"id": "a", "answers": []}], "a.jsonl:1: expected the text 'answers', got type list"),
        ([{"id": "a", "text": "x"}], "expected the text 'answers', got no such field"),
        ([{"id": "a", "answers": "x"}] * 2, "a.jsonl:2: a second answer with the id 'a'"),
    ],
)
def test_bad_answer_files(tmp_path, lines, message):
    write_jsonl(tmp_path / "a.jsonl", lines)
    with pytest.raises(InputError, match=message):
        read_answers(tmp_path / "a.jsonl")


def test_answer_files(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"id": "a", "answers": ["x"]}, {"id": "b", "answers": "y"}])
    assert read_answers(tmp_path / "a.jsonl") == {"a": "x", "b": "y"}
    write_jsonl(tmp_path / "a.jsonl", [{"id": "a", "output": "x"}])
    assert read_answers(tmp_path / "a.jsonl", field="output") == {"a": "x"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 1}, "expected the text 'id'"),
        ({"task": "qa"}, "got task 'qa'"),
        ({"labels": "X"}, "expected labels, a list"),
        ({"labels": ["X", "x"]}, "expected labels that differ"),
        ({"answer": "json"}, "expected entities, and answer one of spans, tags"),
        ({"entities": [{"type": "Y", "text": "w"}]}, "expected entities with a type of labels"),
        ({"tags": []}, "expected tokens and as many tags"),
        ({"tags": ["B-Y"]}, "expected tags O, B-TYPE and I-TYPE"),
        ({"task": "nli"}, "expected output and negative to be of X"),
        ({}, "a second row with the id"),
        ({"id": "b", "labels": ["X", "Y"]}, "dataset 'ner' has another labels than before"),
    ],
)
def test_bad_references(tmp_path, change, message):
    (row,) = instructions(tmp_path, "w B-X\n", task="ner", answer="tags")
    write_jsonl(tmp_path / "a.jsonl", [row, {**row, **change}])
    with pytest.raises(InputError, match=rf"a.jsonl:2: .*{message}"):
        read_references(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(InputError, match="has no rows"):
        read_references(tmp_path / "a.jsonl")
