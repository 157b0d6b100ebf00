"""folds.py: parts of equal size and equal shares, and on the real file the official test ids."""

import json
from collections import Counter
from pathlib import Path

import pytest

from biomedlm_jax.qa.folds import FOLDS, LABELLED, pubmedqa_folds, pubmedqa_split
from biomedlm_jax.qa.formats import Row


def rows_of(counts: dict[str, int]) -> list[Row]:
    answers = [answer for answer, count in counts.items() for _ in range(count)]
    return [
        Row(Path("f"), f"id {n}", {"id": str(n), "final_decision": answer})
        for n, answer in enumerate(answers)
    ]


def names(rows: list[Row]) -> list[str]:
    return [row.fields["id"] for row in rows]


def test_the_parts_are_stratified_disjoint_and_complete(tmp_path):
    rows = rows_of({"yes": 552, "no": 338, "maybe": 110})
    seen = Counter()
    tests = set()
    for fold in range(FOLDS):
        parts = pubmedqa_folds(rows, tmp_path / "ori_pqal.json", fold)
        assert {split: len(part) for split, part in parts.items()} == {
            "train": 450,
            "dev": 50,
            "test": 500,
        }
        assert sorted((n for part in parts.values() for n in names(part)), key=int) == names(rows)
        assert Counter(row.fields["final_decision"] for row in parts["test"]) == {
            "yes": 276,
            "no": 169,
            "maybe": 55,
        }
        seen.update(names(parts["dev"]))
        tests.add(tuple(names(parts["test"])))
    assert len(tests) == 1  # the folds divide what is for training only
    assert set(seen) == set(names(rows)) - set(*tests)
    assert set(seen.values()) == {1}


def test_the_official_ids_are_compared(tmp_path):
    rows, file = rows_of({"yes": 40, "no": 20, "maybe": 20}), tmp_path / "ori_pqal.json"
    test = pubmedqa_folds(rows, file, 0)["test"]
    official = {row.fields["id"]: row.fields["final_decision"] for row in test}
    (tmp_path / "test_ground_truth.json").write_text(json.dumps(official))
    assert pubmedqa_folds(rows, file, 0)["test"] == test
    with pytest.raises(ValueError, match=r"does not divide into the test ids of .*published file"):
        pubmedqa_folds(rows[::-1], file, 0)
    official[next(iter(official))] = "maybe"
    (tmp_path / "test_ground_truth.json").write_text(json.dumps(official))
    with pytest.raises(ValueError, match="does not divide into the test ids"):
        pubmedqa_folds(rows, file, 0)


def test_an_answer_that_is_none_of_the_three(tmp_path):
    rows = rows_of({"yes": 3, "perhaps": 1})
    with pytest.raises(
        ValueError, match=r"id 3: expected a final_decision yes, no or maybe.*got 'perhaps'"
    ):
        pubmedqa_folds(rows, tmp_path / "a.json", 0)


def test_the_draws_are_those_of_the_published_test_set(real_data):
    folder = real_data / "pubmedqa"
    articles = json.loads((folder / "ori_pqal.json").read_text(encoding="utf-8"))
    official = json.loads((folder / "test_ground_truth.json").read_text(encoding="utf-8"))
    rows = [Row(folder, name, {**article, "id": name}) for name, article in articles.items()]
    elsewhere = folder.parent / "ori_pqal.json"  # with no official ids to compare with
    assert set(names(pubmedqa_folds(rows, elsewhere, 0)["test"])) == set(official)


def test_the_labelled_set_is_divided_whatever_its_file(tmp_path):
    rows, file = rows_of(LABELLED), tmp_path / "train-00000-of-00001.parquet"
    for split in ("train", "dev", "test"):
        assert pubmedqa_split(rows, file, split, 3) == pubmedqa_folds(rows, file, 3)[split]


def test_the_artificial_set_is_for_training_only():
    rows = rows_of({"yes": 12, "no": 3})
    assert pubmedqa_split(rows, Path("ori_pqaa.json"), "train", 0) == rows
    for split in ("dev", "test"):
        with pytest.raises(ValueError, match=f"artificial set, which is for tr.* no {split} split"):
            pubmedqa_split(rows, Path("ori_pqaa.json"), split, 0)


def test_the_unlabelled_set_has_no_splits():
    rows = [row._replace(fields={"id": "1"}) for row in rows_of({"yes": 3})]
    for split in ("train", "dev", "test"):
        with pytest.raises(
            ValueError, match=r"unlabelled set, which has no splits; .*pubmedqa_set"
        ):
            pubmedqa_split(rows, Path("ori_pqau.json"), split, 0)


def test_a_part_of_the_labelled_set_is_not_divided():
    rows = rows_of({"yes": 551, "no": 338, "maybe": 110})
    with pytest.raises(ValueError, match=r"551 yes, 338 no, 110 maybe, not those .*552 yes, 338 n"):
        pubmedqa_split(rows, Path("ori_pqal.json"), "test", 0)
