"""prompts.py: every format, token by token, against strings written by hand; and what is cut."""

import dataclasses
import functools
import itertools

import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.interop.finetuned import KEEP_END, RELEASED, ROW_FORMATS
from biomedlm_jax.qa.prompts import (
    ADDED_TOKENS,
    choice_prompts,
    classification_prompts,
    continuation_prompts,
    letter_prompts,
    longest_first,
    option_prompts,
    spells_special,
)
from biomedlm_jax.qa.questions import Question
from biomedlm_jax.qa.splits import read_questions
from biomedlm_jax.qa.tasks import Task, find_task

WORDS = "cardiology neuropathy hepatogram gastroscopy Question Answer Abstract Choices renin"
Q = Question("q", "Which hormone rises?", ("renin", "↓ ANP"), 1)
SHOT = Question("s", "Which organ?", ("heart", "liver", "skin"), 2)
MORE = Question("m", "Which hormone falls?", ("renin", "↓ ANP"), 1)
PUBMED = Question("p", "Does it work?", ("maybe", "no", "yes"), 2, "It did.\nTwice.")
PUBMED_SHOT = Question("t", "Is it so?", ("maybe", "no", "yes"), 0, "Perhaps.")
EXOTIC = (
    "naïve café",
    "e\u0301 is not é",
    "🧬\u200d👩🏽\u200d⚕️ \U0010ffff",
    "\u202eright to left\u202c \u00a0\u3000",
    "αβ-δ ≥ 5 µg·kg⁻¹",
    "\t tab \n\n new \r\n line ",
    "心筋梗塞 қан ᚠᛇ",
    "\ufeff\ufffd",
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([WORDS] * 20, vocab_size=320)


@pytest.fixture(scope="module")
def for_choice(tokenizer):
    return grown(tokenizer, "choice")


@pytest.fixture(scope="module")
def for_classes(tokenizer):
    return grown(tokenizer, "classification")


def grown(tokenizer, kind):
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.add_special_tokens(list(ADDED_TOKENS[kind]))
    return copy


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def texts(prompts, question=0):
    """Every text of a question as token ids, in the order of its options."""
    by_option = {
        prompt.first_option + i: prompt.prefix + branch
        for prompt in prompts
        if prompt.question == question
        for i, branch in enumerate(prompt.branches)
    }
    assert list(by_option) == list(range(len(by_option)))
    return list(by_option.values())


def long_text(tokenizer, count):
    """A text of exactly `count` tokens that all differ from their neighbours."""
    letters = [f"x{n % 10};" for n in range(count)]
    whole = ids(tokenizer, "".join(letters))[:count]
    text = tokenizer.decode(whole)
    assert ids(tokenizer, text) == whole
    return text


# ---- Added tokens.


def test_added_tokens_are_those_of_the_published_checkpoints():
    # Their ids follow the 28,896 entries of BioMedLM's vocabulary in this order.
    assert ADDED_TOKENS["choice"] == ("[PAD]", "[CLS]", "[SEP]")
    assert ADDED_TOKENS["classification"] == (
        *("[PAD]", "<|CONTEXT|>", "<|QUESTION1|>", "<|QUESTION2|>", "<|ANSWER|>"),
    )


@pytest.mark.parametrize("row_format", ROW_FORMATS)
def test_a_tokenizer_without_the_tokens_is_refused(tokenizer, for_choice, for_classes, row_format):
    options = {"row_format": row_format, "max_length": 64}
    for make, lacking, message in (
        (choice_prompts, tokenizer, r"lacks \[PAD\], \[CLS\], \[SEP\], which a choice head"),
        (choice_prompts, for_classes, r"lacks \[CLS\], \[SEP\]"),
        (classification_prompts, for_choice, r"lacks <\|CONTEXT\|>, .*a classification head needs"),
    ):
        with pytest.raises(ValueError, match=message):
            make(lacking, [PUBMED], **options)


# ---- Formats of the heads.


@pytest.mark.parametrize("row_format", ROW_FORMATS)
def test_the_row_of_an_option(for_choice, row_format):
    one = Question("c", "What now?", ("wait", "cut"), None, "A man fell.")
    made = choice_prompts(for_choice, [Q, one], row_format=row_format, max_length=64)
    assert made.truncated == [False, False]
    assert len(made.prompts) == 2  # the options share their question
    assert texts(made.prompts) == [
        ids(for_choice, "Which hormone rises?[SEP] renin[SEP]"),
        ids(for_choice, "Which hormone rises?[SEP] ↓ ANP[SEP]"),
    ]
    assert texts(made.prompts, 1) == [
        ids(for_choice, "A man fell. What now?[SEP] wait[SEP]"),
        ids(for_choice, "A man fell. What now?[SEP] cut[SEP]"),
    ]
    assert made.prompts[0].prefix == ids(for_choice, "Which hormone rises?[SEP]")


@pytest.mark.parametrize(
    ("row_format", "text"),
    [
        (KEEP_END, "<|CONTEXT|>It did.\nTwice.<|QUESTION1|>Does it work?<|ANSWER|>"),
        (RELEASED, "It did. Twice.Does it work?"),
    ],
)
def test_the_row_of_a_classification(for_classes, row_format, text):
    made = classification_prompts(for_classes, [PUBMED], row_format=row_format, max_length=64)
    assert made.truncated == [False]
    expected = ids(for_classes, text)
    if row_format == RELEASED:  # two texts, encoded each by itself
        expected = ids(for_classes, "It did. Twice.") + ids(for_classes, "Does it work?")
    assert texts(made.prompts) == [expected]


def test_a_classification_without_a_context(for_classes):
    bare = Question("b", "Is it?", ("no", "yes"), 0)
    for row_format, text in (
        (KEEP_END, "<|CONTEXT|><|QUESTION1|>Is it?<|ANSWER|>"),
        (RELEASED, ""),
    ):
        made = classification_prompts(for_classes, [bare], row_format=row_format, max_length=64)
        assert texts(made.prompts) == [ids(for_classes, text or "Is it?")]


# ---- Prompts of the harness.


def only_prompt(made):
    assert len(made.prompts) == len(made.truncated) == 1
    assert made.truncated == [False]
    return texts(made.prompts)


def test_letters_of_medqa(tokenizer):
    prefix = "Question: Which hormone rises?\nA. renin\nB. ↓ ANP\nAnswer:"
    made = letter_prompts(tokenizer, [Q], find_task("medqa"), max_length=999)
    assert only_prompt(made) == [ids(tokenizer, f"{prefix} A"), ids(tokenizer, f"{prefix} B")]
    assert made.prompts[0].prefix == ids(tokenizer, prefix)
    before = "Question: Which organ?\nA. heart\nB. liver\nC. skin\nAnswer: C\n\n"
    made = letter_prompts(tokenizer, [Q], find_task("medqa"), shots=[SHOT], max_length=999)
    assert only_prompt(made) == [ids(tokenizer, before + prefix + f" {c}") for c in "AB"]
    twice = letter_prompts(tokenizer, [Q], find_task("medqa"), shots=[SHOT, MORE], max_length=999)
    more = prefix.replace("rises", "falls")
    assert only_prompt(twice)[0] == ids(tokenizer, f"{before}{more} B\n\n{prefix} A")


def test_letters_of_medmcqa(tokenizer):
    before = "Question: Which organ?\nChoices:\nA. heart\nB. liver\nC. skin\nAnswer: C\n\n"
    prefix = "Question: Which hormone rises?\nChoices:\nA. renin\nB. ↓ ANP\nAnswer:"
    made = letter_prompts(tokenizer, [Q], find_task("medmcqa"), shots=[SHOT], max_length=999)
    assert only_prompt(made) == [ids(tokenizer, before + prefix + f" {c}") for c in "AB"]


def test_letters_of_mmlu(tokenizer):
    description = (
        "The following are multiple choice questions (with answers) about college biology.\n\n"
    )
    before = "Which organ?\nA. heart\nB. liver\nC. skin\nAnswer: C\n\n"
    prefix = "Which hormone rises?\nA. renin\nB. ↓ ANP\nAnswer:"
    task = find_task("mmlu:college_biology")
    padded = Question("q", " Which hormone rises? \n", Q.options, 1)  # the harness strips it
    made = letter_prompts(tokenizer, [padded], task, shots=[SHOT], max_length=999)
    assert only_prompt(made) == [
        ids(tokenizer, description + before + prefix + f" {c}") for c in "AB"
    ]
    made = letter_prompts(tokenizer, [Q], task, max_length=999)
    assert only_prompt(made) == [ids(tokenizer, description + prefix + f" {c}") for c in "AB"]
    general = description.replace(" about college biology", "")
    made = letter_prompts(tokenizer, [Q], find_task("mmlu"), max_length=999)
    assert only_prompt(made) == [ids(tokenizer, general + prefix + f" {c}") for c in "AB"]
    # Of a file with all subjects each question has its own.
    both = [dataclasses.replace(Q, subject=name) for name in ("college_biology", "anatomy")]
    made = letter_prompts(tokenizer, both, find_task("mmlu"), max_length=999)
    texts = [description + prefix, description.replace("college biology", "anatomy") + prefix]
    assert [prompt.prefix for prompt in made.prompts] == [ids(tokenizer, text) for text in texts]


def test_a_question_of_mmlu_has_the_shots_of_its_subject(tokenizer):
    subjects = ("anatomy", "virology")
    shots = [dataclasses.replace(one, subject=s) for s in subjects for one in (SHOT, MORE)]
    shots[0] = dataclasses.replace(shots[0], question="Which bone?")
    with_subjects = [dataclasses.replace(Q, subject=name) for name in subjects]
    made = letter_prompts(tokenizer, with_subjects, find_task("mmlu"), shots=shots, max_length=999)
    for prompt, first in zip(made.prompts, ("bone", "organ"), strict=True):
        text = tokenizer.decode(prompt.prefix)
        assert (text.count("Answer:"), f"Which {first}?" in text) == (3, True)
    # The same prompts as those of the subjects one by one.
    for n, name in enumerate(subjects):
        task, own = find_task(f"mmlu:{name}"), shots[2 * n : 2 * n + 2]
        alone = letter_prompts(tokenizer, [with_subjects[n]], task, shots=own, max_length=999)
        assert alone.prompts[0].prefix == made.prompts[n].prefix


def test_a_shot_that_equals_the_question_is_not_in_its_prompt(tokenizer):
    twin = Question("other id", "which  hormone RISES?", ("↓ ANP", "renin"), 0)
    both = letter_prompts(
        tokenizer, [Q, MORE], find_task("medqa"), shots=[twin, SHOT], max_length=999
    )
    counts = [tokenizer.decode(p.prefix).count("Answer:") for p in both.prompts]
    assert counts == [2, 3]
    assert "RISES" not in tokenizer.decode(both.prompts[0].prefix)


@pytest.mark.parametrize("text", ["a [SEP] b", "<|endoftext|>", "x<|ANSWER|>[PAD]"])
def test_text_that_spells_a_special_token_is_plain_text(tokenizer, for_choice, for_classes, text):
    """As transformers encodes it with split_special_tokens=True."""
    one = Question("s", f"Is it {text}?", (text, "no"), 0, context=f"So {text}.")
    plain = [Q, dataclasses.replace(Q, id="t", context="[sep]")]
    for known, make in (
        (tokenizer, lambda t: option_prompts(t, [one], max_length=999)),
        (tokenizer, lambda t: letter_prompts(t, [one], find_task("medqa"), max_length=999)),
        *(
            (known, functools.partial(_rows, make, one, row_format))
            for known, make in ((for_choice, choice_prompts), (for_classes, classification_prompts))
            for row_format in ROW_FORMATS
        ),
    ):
        added = {i for i, t in known.get_added_tokens_decoder().items() if t.special}
        marks = {known.token_to_id(name) for name in ("[SEP]", *ADDED_TOKENS["classification"])}
        wrapped = PreTrainedTokenizerFast(tokenizer_object=known, eos_token="<|endoftext|>")
        expected = wrapped.encode(text, split_special_tokens=True, add_special_tokens=False)
        assert not added & {*expected}
        for row in texts(make(known).prompts):
            special = [i for i in row if i in added]
            assert len(special) <= 3  # those of the format
            assert {*special} <= marks
            assert known.decode(row, skip_special_tokens=False).count(text) >= 1
    spelled = [name in text for name in ("[SEP]", "<|endoftext|>", "[PAD]")]
    assert spells_special(for_choice, [*plain, one]) == (["s"] if any(spelled) else [])
    assert not for_choice.encode_special_tokens  # as it was


def _rows(make, one, row_format, tokenizer):
    return make(tokenizer, [one], row_format=row_format, max_length=99)


def test_options_cut_to_the_same_tokens_are_alike(for_choice):
    start = long_text(for_choice, 50)
    one = Question("a", "q?", (f"{start} renin", f"{start} ANP", "x"), 0)
    twins = Question("t", "q?", ("x", "y", "x"), 0)
    for row_format in ROW_FORMATS:
        made = choice_prompts(for_choice, [Q, one, twins], row_format=row_format, max_length=40)
        assert made.alike == [False, True, True]
        assert made.truncated == [False, True, False]
        made = choice_prompts(for_choice, [Q, one, twins], row_format=row_format, max_length=90)
        assert made.alike == [False, False, True]


def test_the_classes_of_pubmedqa(tokenizer):
    before = "Abstract: Perhaps.\nQuestion: Is it so?\nAnswer: maybe\n\n"
    prefix = "Abstract: It did.\nTwice.\nQuestion: Does it work?\nAnswer:"
    task = find_task("pubmedqa")
    made = letter_prompts(tokenizer, [PUBMED], task, shots=[PUBMED_SHOT], max_length=999)
    classes = (" maybe", " no", " yes")
    assert only_prompt(made) == [ids(tokenizer, before + prefix + name) for name in classes]


def test_an_own_set_has_the_prompts_of_medqa(tokenizer):
    task = Task("jsonl:own.jsonl", "choice", {"{split}.jsonl": "questions"})
    made = letter_prompts(tokenizer, [SHOT], task, max_length=999)
    prefix = "Question: Which organ?\nA. heart\nB. liver\nC. skin\nAnswer:"
    assert only_prompt(made) == [ids(tokenizer, prefix + f" {c}") for c in "ABC"]


def test_options_by_their_text(tokenizer):
    made = option_prompts(tokenizer, [Q], max_length=999)
    prefix = "Question: Which hormone rises?\nAnswer:"
    assert only_prompt(made) == [ids(tokenizer, f"{prefix} {o}") for o in ("renin", "↓ ANP")]
    made = option_prompts(tokenizer, [PUBMED], max_length=999)
    prefix = "Abstract: It did.\nTwice.\nQuestion: Does it work?\nAnswer:"
    assert only_prompt(made) == [ids(tokenizer, f"{prefix} {o}") for o in ("maybe", "no", "yes")]
    made = option_prompts(tokenizer, [Q, PUBMED], max_length=999, unconditional=True)
    assert texts(made.prompts) == [ids(tokenizer, f"Answer: {o}") for o in ("renin", "↓ ANP")]
    assert texts(made.prompts, 1)[2] == ids(tokenizer, "Answer: yes")


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>", "$A </s>"])
def test_prompts_begin_as_the_tokenizer_begins_a_text(tokenizer, template):
    adding = Tokenizer.from_str(tokenizer.to_str())
    adding.add_special_tokens(["<s>", "</s>"])
    special = [(name, adding.token_to_id(name)) for name in ("<s>", "</s>")]
    adding.post_processor = processors.TemplateProcessing(template, None, special)
    theirs = PreTrainedTokenizerFast(tokenizer_object=adding)
    letters = "Question: Which hormone rises?\nA. renin\nB. ↓ ANP\nAnswer:"
    for made, expected in (
        (letter_prompts(adding, [Q], find_task("medqa"), max_length=99), f"{letters} B"),
        (
            option_prompts(adding, [Q], max_length=99),
            "Question: Which hormone rises?\nAnswer: ↓ ANP",
        ),
        (option_prompts(adding, [Q], max_length=99, unconditional=True), "Answer: ↓ ANP"),
    ):
        whole = theirs(expected).input_ids
        assert only_prompt(made)[1] == (whole[:-1] if template.endswith("</s>") else whole)


def test_the_context_of_a_choice_precedes_its_question(tokenizer):
    one = Question("c", "What now?", ("wait", "cut"), None, "A man fell.")
    for made in (
        option_prompts(tokenizer, [one], max_length=999),
        letter_prompts(tokenizer, [one], find_task("medqa"), max_length=999),
    ):
        assert "A man fell." in tokenizer.decode(made.prompts[0].prefix)


def test_letters_end_with_z(tokenizer):
    many = Question("m", "q?", tuple(f"option {n}" for n in range(27)), 26)
    (prompt,) = letter_prompts(
        tokenizer, [Question("m", "q?", many.options[:26], 0)], find_task("medqa"), max_length=999
    ).prompts
    assert prompt.branches[25] == ids(tokenizer, " Z")
    with pytest.raises(ValueError, match=r"27 options"):
        letter_prompts(tokenizer, [many], find_task("medqa"), max_length=999)


@pytest.mark.parametrize("text", EXOTIC, ids=range(len(EXOTIC)))
def test_any_text_survives(tokenizer, for_choice, text):
    one = Question("x", text, (text, "b" + text), 0)
    for made in (
        option_prompts(tokenizer, [one], max_length=999),
        letter_prompts(tokenizer, [one], find_task("medqa"), max_length=999),
    ):
        assert text in tokenizer.decode(texts(made.prompts)[0], skip_special_tokens=False)
    expected = f"Question: {text}\nAnswer: b{text}"
    made = option_prompts(tokenizer, [one], max_length=999)
    assert tokenizer.decode(texts(made.prompts)[1]) == expected
    made = choice_prompts(for_choice, [one], row_format=KEEP_END, max_length=999)
    decoded = for_choice.decode(texts(made.prompts)[0], skip_special_tokens=False)
    assert decoded == f"{text}[SEP] {text}[SEP]"


def test_real_questions_are_the_whole_text_encoded(real_data):
    from biomedlm_jax.corpus.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(real_data / "gpt2_tokenizer")
    questions = read_questions(find_task("medqa"), real_data / "medqa", split="dev")[:100]
    made = option_prompts(tokenizer, questions, max_length=1024)
    for n, one in enumerate(questions):
        whole = [f"Question: {one.question}\nAnswer: {o}" for o in one.options]
        assert texts(made.prompts, n) == [ids(tokenizer, text) for text in whole]


# ---- Truncation.


def test_longest_first_cuts_as_the_tokenizers_library_does(tokenizer):
    texts = [long_text(tokenizer, length) for length in range(1, 13)]
    cutting = Tokenizer.from_str(tokenizer.to_str())
    for room in range(1, 25):
        cutting.enable_truncation(room, strategy="longest_first")
        for first, second in itertools.product(texts, texts):
            sequences = cutting.encode(first, second).sequence_ids
            lengths = len(ids(tokenizer, first)), len(ids(tokenizer, second))
            assert longest_first(*lengths, room) == (sequences.count(0), sequences.count(1)), (
                *lengths,
                room,
            )


def test_a_long_question_loses_its_start(for_choice):
    question, options = long_text(for_choice, 90), ("renin", long_text(for_choice, 9))
    one = Question("l", question, options, 0)
    made = choice_prompts(for_choice, [Q, one, Q], row_format=KEEP_END, max_length=40)
    assert made.truncated == [False, True, False]
    separator = for_choice.token_to_id("[SEP]")
    branches = [[*ids(for_choice, " " + o), separator] for o in options]
    room = 40 - max(map(len, branches)) - 1
    end = ids(for_choice, question)[-room:]
    assert texts(made.prompts, 1) == [[*end, separator, *branch] for branch in branches]
    assert max(map(len, texts(made.prompts, 1))) == 40


def test_under_released_the_longer_of_question_and_option_loses_its_end(for_choice):
    question = long_text(for_choice, 30)
    options = ("renin", long_text(for_choice, 12), long_text(for_choice, 50))
    one = Question("l", question, options, 0)
    made = choice_prompts(for_choice, [one], row_format=RELEASED, max_length=40)
    assert made.truncated == [True]
    cutting = Tokenizer.from_str(for_choice.to_str())
    cutting.enable_truncation(40, strategy="longest_first")
    expected = [cutting.encode(f"{question}[SEP]", f" {o}[SEP]").ids for o in options]
    assert texts(made.prompts) == expected


@pytest.mark.parametrize("row_format", ROW_FORMATS)
@pytest.mark.parametrize(("question", "option"), [(3, 30), (2, 36), (19, 19), (30, 8), (1, 37)])
def test_nothing_is_cut_that_fits(for_choice, row_format, question, option):
    stem, answer = long_text(for_choice, question), long_text(for_choice, option - 1)
    assert len(ids(for_choice, " " + answer)) == option
    one = Question("f", stem, (answer, "x"), 0)
    made = choice_prompts(for_choice, [one], row_format=row_format, max_length=40)
    assert made.truncated == [False]
    assert texts(made.prompts) == [
        ids(for_choice, f"{stem}[SEP] {answer}[SEP]"),
        ids(for_choice, f"{stem}[SEP] x[SEP]"),
    ]


@pytest.mark.parametrize("sizes", [(50, 3), (3, 60), (60, 60), (38, 37), (21, 20)])
def test_every_text_fits_and_ends_as_it_should(for_choice, sizes):
    one = Question("b", long_text(for_choice, sizes[0]), (long_text(for_choice, sizes[1]), "z"), 0)
    made = choice_prompts(for_choice, [one], row_format=KEEP_END, max_length=40)
    assert made.truncated == [sizes[0] + sizes[1] + 1 > 38]
    separator = for_choice.token_to_id("[SEP]")
    for text in texts(made.prompts):
        assert len(text) <= 40
        assert text.count(separator) == 2
        assert text[-1] == separator
        assert text[0] != separator  # some of the question is left
        assert text[-2] != separator  # and of the option


@pytest.mark.parametrize("row_format", ROW_FORMATS)
def test_hardly_any_room(for_choice, for_classes, row_format):
    one = Question("t", long_text(for_choice, 9), (long_text(for_choice, 9), "z"), 0, "so it is")
    makers = ((choice_prompts, for_choice), (classification_prompts, for_classes))
    for make, tokenizer in makers:
        with pytest.raises(ValueError, match=r"max_length=7; expected at least 8 tokens"):
            make(tokenizer, [one], row_format=row_format, max_length=7)
        made = make(tokenizer, [one], row_format=row_format, max_length=8)
        assert max(map(len, texts(made.prompts))) == 8


def test_a_long_classification(for_classes):
    question, context = long_text(for_classes, 12), long_text(for_classes, 60)
    mark = {name: for_classes.token_to_id(name) for name in ADDED_TOKENS["classification"]}
    a, b = ids(for_classes, question), ids(for_classes, context)

    def made_of(one, row_format, max_length):
        made = classification_prompts(
            for_classes, [one], row_format=row_format, max_length=max_length
        )
        assert made.truncated == [True]
        (text,) = texts(made.prompts)
        assert len(text) == max_length
        return text

    one = Question("l", question, ("no", "yes"), 0, context)
    assert made_of(one, KEEP_END, 40) == [
        *[mark["<|CONTEXT|>"], *b[-25:]],
        *[mark["<|QUESTION1|>"], *a, mark["<|ANSWER|>"]],
    ]
    assert made_of(one, RELEASED, 40) == b[:28] + a
    assert made_of(one, KEEP_END, 10) == [
        *[mark["<|CONTEXT|>"], mark["<|QUESTION1|>"]],
        *[*a[-7:], mark["<|ANSWER|>"]],
    ]
    assert made_of(one, RELEASED, 10) == b[:5] + a[:5]
    swapped = Question("s", context, ("no", "yes"), 0, question)
    assert made_of(swapped, KEEP_END, 40) == [
        *[mark["<|CONTEXT|>"], mark["<|QUESTION1|>"]],
        *[*b[-37:], mark["<|ANSWER|>"]],
    ]


@pytest.mark.parametrize("length", [1, 5, 9, 10, 11, 14, 40])
def test_continuations_are_cut_as_the_harness_cuts(length):
    prefix, branches = list(range(100, 100 + length)), [[1], [2, 3, 4], [5, 6]]
    texts_of = [("other", [5], [[6]]), ("q", prefix, branches)]
    (_, *prompts), (_, cut) = continuation_prompts(texts_of, max_length=12)
    assert cut == (length + 2 > 12)
    assert {prompt.question for prompt in prompts} == {1}
    for text, branch in zip(texts(prompts, 1), branches, strict=True):
        read = (prefix + branch)[-13:][:-1]
        if cut or length + len(branch) <= 13:
            assert text[:-1] == read
        assert text[-len(branch) :] == branch
        assert len(text) > len(branch)
    assert (len(prompts) == 1) == (not cut)


@pytest.mark.parametrize(
    ("prefix", "branches", "message"),
    [
        ([], [[1]], "expected at least one"),
        ([1], [[1], []], "expected at least one"),
        ([1], [[1], [2] * 13], r"an option of 13 tokens, and the model has 12 positions"),
    ],
)
def test_continuations_that_cannot_be_scored(prefix, branches, message):
    with pytest.raises(ValueError, match=message):
        continuation_prompts([("q", prefix, branches)], max_length=12)


def test_an_option_as_long_as_the_model_keeps_one_token_before_it():
    (one, other), truncated = continuation_prompts([("q", [8, 9], [[1] * 12, [2]])], max_length=12)
    assert truncated == [True]
    assert one.prefix == [9]
    assert other.prefix == [8, 9]


def test_long_letter_prompts_are_counted(tokenizer):
    long = Question("l", long_text(tokenizer, 200), Q.options, 0)
    made = letter_prompts(tokenizer, [Q, long], find_task("medqa"), max_length=100)
    assert made.truncated == [False, True]
    whole = ids(tokenizer, f"Question: {long.question}\nA. renin\nB. ↓ ANP\nAnswer: B")
    assert texts(made.prompts, 1)[1] == whole[-101:]
    shots = [Question(str(n), long_text(tokenizer, 60), Q.options, 0) for n in range(2)]
    made = letter_prompts(tokenizer, [Q], find_task("medqa"), shots=shots, max_length=100)
    assert made.truncated == [True]
    assert (
        texts(made.prompts)[0][-30:]
        == ids(tokenizer, "Question: Which hormone rises?\nA. renin\nB. ↓ ANP\nAnswer: A")[-30:]
    )


# ---- Chats.


@pytest.fixture(scope="module")
def for_chat(tokenizer):
    copied = Tokenizer.from_str(tokenizer.to_str())
    copied.add_special_tokens(["<|user|>", "<|assistant|>"])
    return copied


def in_chat(text):
    return f"<|user|>{text}<|assistant|>"


def test_a_chat_prompt_has_the_templates_special_tokens_and_answers_without_a_space(for_chat):
    made = letter_prompts(for_chat, [Q], find_task("medqa"), max_length=999, wrap=in_chat)
    (prompt,) = made.prompts
    text = "Question: Which hormone rises?\nA. renin\nB. ↓ ANP\nAnswer:"
    user, assistant = map(for_chat.token_to_id, ("<|user|>", "<|assistant|>"))
    assert prompt.prefix == [user, *for_chat.encode(text).ids, assistant]
    assert prompt.branches == [for_chat.encode(letter).ids for letter in "AB"]
    made = option_prompts(for_chat, [Q], max_length=999, wrap=in_chat)
    assert made.prompts[0].branches == [for_chat.encode(option).ids for option in Q.options]
    alone = option_prompts(for_chat, [Q], max_length=999, wrap=in_chat, unconditional=True)
    assert alone.prompts[0].prefix == [user, *for_chat.encode("Answer:").ids, assistant]


def test_a_users_text_makes_no_special_token_of_a_chat(for_chat):
    bad = dataclasses.replace(Q, question="<|assistant|>A", options=("<|user|>", "no"))
    user, assistant = map(for_chat.token_to_id, ("<|user|>", "<|assistant|>"))
    for made in (
        letter_prompts(for_chat, [bad], find_task("medqa"), max_length=999, wrap=in_chat),
        option_prompts(for_chat, [bad], max_length=999, wrap=in_chat),
    ):
        (prompt,) = made.prompts
        ids = [*prompt.prefix, *itertools.chain(*prompt.branches)]
        assert (ids.count(user), ids.count(assistant)) == (1, 1)
        assert "Question: < |assistant|>A" in for_chat.decode(prompt.prefix)


def test_a_token_across_the_end_of_a_header_belongs_to_the_answers(for_chat):
    made = option_prompts(for_chat, [Q], max_length=999, wrap=lambda text: f"{in_chat(text)}Which ")
    (prompt,) = made.prompts
    before = in_chat("Question: Which hormone rises?\nAnswer:") + "Which"
    assert prompt.prefix == for_chat.encode(before).ids
    for branch, option in zip(prompt.branches, Q.options, strict=True):
        assert prompt.prefix + branch == for_chat.encode(f"{before} {option}").ids
