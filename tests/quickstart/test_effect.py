import pytest

from biomedlm_jax.interop.finetuned import load_finetuned
from biomedlm_jax.qa.report import read_items
from biomedlm_jax.qa.statistics import compare
from biomedlm_jax.quickstart.effect import as_text


@pytest.mark.slow
def test_the_paired_test_is_the_one_on_the_written_answers(finished):
    figures, out = finished
    pretrained, random = figures["effect"]
    assert pretrained["n"] == random["n"] == figures["questions"]["test"]
    assert pretrained["groups"] == 20
    assert pretrained["chance"] == 0.25
    first, second = (read_items(out / "effect" / name) for name in ("report", "report-random"))
    comparison = compare(first, second)
    assert comparison.p_value == pretrained["baseline"]["p_value"]
    assert comparison.difference.value == pytest.approx(
        pretrained["accuracy"]["value"] - random["accuracy"]["value"]
    )


@pytest.mark.slow
def test_both_finetuned_models_can_be_loaded(finished):
    _, out = finished
    for name in ("finetuned", "finetuned-random"):
        model, _, head = load_finetuned(out / "effect" / name)
        assert (model.kind, head.row_format) == ("choice", "keep_end")


@pytest.mark.slow
def test_the_text_states_both_accuracies_and_their_difference(finished):
    summaries = finished[0]["effect"]
    text = as_text(summaries)
    accuracies = [100 * summary["accuracy"]["value"] for summary in summaries]
    assert all(f" {accuracy:.1f} [" in text for accuracy in accuracies)
    assert f"{accuracies[0] - accuracies[1]:+.1f} [" in text
    assert "20 families" in text
