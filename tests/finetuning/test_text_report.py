import pytest

from biomedlm_jax.finetuning.text_report import numbers_in, repetition, rouge, text_report


def test_rouge_counts_shared_words_by_their_stems():
    scores = rouge(["the cats sat down"], ["the cat sat up"])
    assert scores["rouge1"][0] == pytest.approx(75)  # the, cat, sat of 4 and 4
    assert scores["rouge2"][0] == pytest.approx(200 / 3)  # the cat, cat sat of 3 and 3
    assert scores["rougeL"][0] == pytest.approx(75)


def test_unsupported_numbers():
    figures = text_report(
        ["take 20 mg for 3 days", "how much?"],
        ["1,000 patients", "two"],
        ["20 mg, 1000 times, 47 mg", "5.5 or 3"],
    )
    assert figures["numbers"] == 5
    assert figures["unsupported_numbers"] == pytest.approx(3 / 5)  # 47, 5.5 and the second 3
    assert numbers_in("1,000,000 or 0.5 or 3,5") == {"1000000", "0.5", "3,5"}


def test_repetition_is_the_share_of_repeated_ngrams():
    assert repetition("a b c d e f") == 0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("short") == 0


def test_intervals_enclose_the_mean_and_figures_repeat():
    references = [f"patient {i} has fever" for i in range(30)]
    answers = [f"patient {i} has {'fever' if i % 3 else 'cough'}" for i in range(30)]
    figures = text_report([""] * 30, references, answers)
    assert figures["rouge1"]["low"] < figures["rouge1"]["mean"] < figures["rouge1"]["high"]
    assert figures["rouge1"]["mean"] == pytest.approx((20 * 100 + 10 * 75) / 30, abs=0.01)
    assert figures == text_report([""] * 30, references, answers)
    assert figures["words"] == 4
    assert figures["empty"] == 0


def test_lists_that_do_not_match():
    with pytest.raises(ValueError, match="1 sources, 2 references"):
        text_report(["a"], ["b", "c"], ["d"])


def test_intervals_resample_groups():
    references = [f"patient {i} has fever" for i in range(30)]
    answers = [f"patient {i} has {'fever' if i % 3 else 'cough'}" for i in range(30)]

    def width(groups):
        figures = text_report([""] * 30, references, answers, groups=groups)
        return figures["rouge1"]["high"] - figures["rouge1"]["low"], figures["groups"]

    alone, count = width(None)
    assert count == 30
    assert width([f"g{i}" for i in range(30)]) == (alone, 30)
    wide, count = width([f"g{i % 3}" for i in range(30)])  # all of a group are right, or none
    assert count == 3
    assert wide > 1.5 * alone
