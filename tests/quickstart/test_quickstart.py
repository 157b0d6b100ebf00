import json

import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.qa.splits import read_questions
from biomedlm_jax.qa.tasks import find_task
from biomedlm_jax.quickstart.quickstart import CONTENTS, run_quickstart


@pytest.mark.slow
def test_the_quickstart_writes_what_it_lists_and_a_summary(finished):
    figures, out = finished
    assert json.loads((out / "summary.json").read_text()) == figures
    assert figures["logits_equal"]
    assert {path.name for path in out.iterdir()} == {*CONTENTS, "summary.json"}
    task = find_task(f"jsonl:{out / 'questions'}")
    for split, count in figures["questions"].items():
        assert len(read_questions(task, split=split)) == count


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="not empty"):
        run_quickstart(tmp_path, steps=20, documents=240)
