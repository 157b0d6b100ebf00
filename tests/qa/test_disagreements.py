"""disagreements.py: which questions are listed, and under which heading."""

import json

from biomedlm_jax.qa.disagreements import KINDS, LISTED, disagreements
from biomedlm_jax.qa.questions import Question
from biomedlm_jax.qa.statistics import compare


def test_every_question_with_two_answers_is_of_one_kind(questions):
    model, base = questions(200, seed=1), questions(200, share=0.5, seed=2)
    for item in base[::9]:  # another wrong answer than (gold + 1) % 3
        before, after = item["prediction"], (item["gold"] + 2) % 3
        item["prediction"] = after
        for values in (item["scores"], item["probabilities"]):
            values[before], values[after] = values[after], values[before]
    texts = [Question(one["id"], f"Is {one['id']}?", ("a", "b", "c"), 0) for one in model]
    result = json.loads(json.dumps(disagreements(model, base[::-1], texts)))
    versus = compare(model, base)
    assert result["only_model"]["n"] == versus.only_first
    assert result["only_base"]["n"] == versus.only_second
    pairs = [*zip(model, base, strict=True)]
    differ = sum(one["prediction"] != other["prediction"] for one, other in pairs)
    assert sum(of_kind["n"] for of_kind in result.values()) == differ
    assert min(of_kind["n"] for of_kind in result.values()) > 0
    assert [*result] == [*KINDS]
    wins = [one for one, b in pairs if one["gold"] == one["prediction"] != b["prediction"]]
    listed = result["only_model"]["listed"]
    assert len(listed) == LISTED < len(wins)
    assert [one["id"] for one in listed] == [one["id"] for one in wins[:LISTED]]
    first, of_base = listed[0], {item["id"]: item["prediction"] for item in base}
    assert first["question"] == f"Is {first['id']}?"
    assert first["gold"] == first["model"] != first["base"] == of_base[first["id"]]
