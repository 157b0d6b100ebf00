import pytest

from biomedlm_jax.finetuning.text_report import (
    repetition,
    rouge,
    text_report,
    unicode_words,
    unsupported_numbers,
)


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


@pytest.mark.parametrize(
    ("answer", "known", "unsupported"),
    [
        ("0.50", "0.5", 0),
        ("5.0", "5", 0),
        ("p < .05", "p < 0.05", 0),
        ("10,000", "10 000", 0),
        ("10\u202f000", "10000", 0),
        ("10'000", "10,000", 0),
        ("2 500 mg tablets", "2 tablets of 500 mg", 0),
        ("20 mg", "20mg", 0),
        ("20 mg", "20 milligrams", 0),
        ("20 µg", "20 \u03bcg", 0),
        ("20", "20 mg", 0),
        ("20 mg", "20 mL", 1),
        ("20 mg", "20 patients", 1),
        ("3 weeks", "3 days", 1),
        ("1 week", "1 weeks", 0),
        ("5 percent", "5%", 0),
        ("0.05", "0.5", 1),
        ("100", "10", 1),
        ("3,5", "3.5", 1),
        ("20 Mg", "20 mg", 0),
        ("20 men", "20 m", 0),
        ("5 mg", "5-10 mg", 0),
        ("5 mg", "5 or 10 ml", 1),
        ("5 mg/kg", "5 mg", 1),
        ("5 mg/kg", "5 mg/kg daily", 0),
    ],
)
def test_numbers_are_compared_by_value_and_unit(answer, known, unsupported):
    assert unsupported_numbers(answer, known) == (unsupported, 1)


def test_rouge_of_every_script():
    """The published ROUGE does not see Greek letters; the variant beside it does."""
    figures = text_report([""], ["IFN-\u03b3"], ["IFN-\u03b2"])
    assert figures["rouge1"]["mean"] == 100
    assert figures["unicode_rouge1"]["mean"] == 50
    assert "a-z and 0-9 only" in figures["rouge_drops"]
    assert figures["non_ascii_answers"] == 1
    figures = text_report([""], ["心筋梗塞"], ["心筋炎"])
    assert figures["rouge1"]["mean"] == 0
    assert figures["unicode_rouge1"]["mean"] == pytest.approx(100 * 2 * 2 / (4 + 3), abs=0.01)
    assert unicode_words("Entzündung, 5 µg/ml naïve") == [
        "entzündung",
        "5",
        "\u03bcg",
        "ml",
        "naïve",
    ]


def test_both_rouges_agree_on_ascii():
    references = ["The cats sat down twice in 1999", "Patients_with fever improved."]
    answers = ["a cat sat up, twice", "patient with fevers improves"]
    assert rouge(references, answers) == rouge(references, answers, every_script=True)
