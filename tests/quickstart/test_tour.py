import json

import pytest

from biomedlm_jax.qa.report import read_items
from biomedlm_jax.qa.statistics import compare
from biomedlm_jax.qa.tasks import find_task, read_examples
from biomedlm_jax.qa.tuned import load_tuned
from biomedlm_jax.quickstart.tour import take_tour


def test_the_whole_tour_with_hardly_any_steps(tmp_path):
    out = tmp_path / "quickstart"
    figures = take_tour(out, steps=80, documents=240, epochs=1)
    assert json.loads((out / "summary.json").read_text()) == figures
    assert figures["logits_equal"]

    task = find_task(f"jsonl:{out / 'questions'}")
    for split, count in figures["questions"].items():
        assert len(read_examples(task, split=split)) == count

    # Both models answered the same questions, and the table's test is the one on their answers.
    pretrained, random = figures["answers"]
    assert pretrained["n"] == random["n"] == figures["questions"]["test"]
    assert pretrained["chance"] == 0.25
    first, second = (read_items(out / "thesis" / f"{n}.jsonl") for n in ("tuned", "tuned-random"))
    found = compare(first, second)
    assert found.p_value == pretrained["baseline"]["p_value"]
    assert found.difference.value == pytest.approx(
        pretrained["accuracy"]["value"] - random["accuracy"]["value"]
    )
    for name in ("tuned", "tuned-random"):
        tuned, _, head = load_tuned(out / "thesis" / name)
        assert (tuned.kind, head.row_format) == ("choice", "paper")


def test_it_does_not_write_over_anything(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="not empty"):
        take_tour(tmp_path, steps=80, documents=240)
