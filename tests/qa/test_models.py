"""models.py: which ways of scoring fit which models; test_evaluation.py has whole directories."""

import pytest

from biomedlm_jax.corpus.tokenizer import save_tokenizer, train_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.finetuned import KEEP_END, Head
from biomedlm_jax.model.heads import CHOICE, CLASSIFICATION
from biomedlm_jax.qa.models import check_head, check_model, choose_modes, read_chat_prompt
from biomedlm_jax.qa.tasks import find_task

MEDQA = find_task("medqa")


def head(kind=CHOICE, classes=()):
    return Head(kind=kind, task="t", row_format=KEEP_END, max_length=64, classes=classes)


@pytest.mark.parametrize(
    ("mode", "heads", "modes"),
    [
        ("auto", [None], ["letter", "option"]),
        ("auto", [head(), head()], ["classifier"]),
        ("letter", [None, None], ["letter"]),
        ("classifier", [head()], ["classifier"]),
    ],
)
def test_modes_fit_the_models(mode, heads, modes):
    assert choose_modes(mode, ["m", "n"][: len(heads)], heads, MEDQA) == modes


@pytest.mark.parametrize(
    ("mode", "heads", "message"),
    [
        ("auto", [head(), None], "m is fine-tuned and n is not; evaluate them one at a time"),
        ("letters", [None], "got mode='letters'; choose one of auto, letter, option, classifier"),
        ("letter", [head()], "mode=letter does not fit m, which has a fine-tuned head"),
        ("classifier", [None], "mode=classifier does not fit m, which is a language model"),
    ],
)
def test_other_modes_are_refused(mode, heads, message):
    with pytest.raises(ValueError, match=message):
        choose_modes(mode, ["m", "n"][: len(heads)], heads, MEDQA)


def test_a_head_has_the_classes_of_the_task():
    classes = ("maybe", "no", "yes")
    check_head(head(CLASSIFICATION, classes), find_task("pubmedqa"), where="m", fix="f")
    for other in (head(CLASSIFICATION, classes[::-1]), head()):
        with pytest.raises(ValueError, match=r"m has a .* head .*, and pubmedqa needs class.*; f$"):
            check_head(other, find_task("pubmedqa"), where="m", fix="f")


def test_a_directory_of_no_model_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        check_model(tmp_path / "none", None)


@pytest.mark.parametrize(
    ("header", "between"),
    [("<|assistant|>\n", ""), ("[/INST]", " "), ("<|assistant|>\n", "<think>\n\n</think>\n\n")],
)
def test_a_chat_prompt_ends_where_the_template_puts_an_answer(tmp_path, header, between):
    tests = f"{{% if message.role == 'user' %}}{{{{ message.content }}}}{header}{{% else %}}"
    whole = f"{between}{{{{ message.content }}}}</s>{{% endif %}}"
    text = f"{{% for message in messages %}}{tests}{whole}{{% endfor %}}"
    save_tokenizer(train_tokenizer(["renin"] * 9, vocab_size=260), tmp_path)
    (tmp_path / "chat_template.jinja").write_text(text)
    chat = read_chat_prompt(tmp_path, date="2026-02-03")
    assert chat is not None
    assert chat.wrap("Which?") == f"Which?{header}{between}"
    assert (chat.template, chat.date) == (text, None)


def test_a_template_that_prints_the_date_is_given_one(tmp_path):
    save_tokenizer(train_tokenizer(["renin"] * 9, vocab_size=260), tmp_path)
    text = "{{ strftime_now('%d %b %Y') }} {{ messages[-1].content }}"
    (tmp_path / "chat_template.jinja").write_text(text)
    chat = read_chat_prompt(tmp_path, date="2026-02-03")
    assert chat is not None
    assert (chat.wrap("Which?"), chat.date) == ("03 Feb 2026 Which?", "2026-02-03")


def test_a_template_whose_header_its_answers_lack_is_used_as_it_is(tmp_path):
    save_tokenizer(train_tokenizer(["renin"] * 9, vocab_size=260), tmp_path)
    assert read_chat_prompt(tmp_path, date="2026-02-03") is None
    text = "{{ messages[-1].content }}{% if add_generation_prompt %}<|think|>{% endif %}"
    (tmp_path / "chat_template.jinja").write_text(text)
    chat = read_chat_prompt(tmp_path, date="2026-02-03")
    assert chat is not None
    assert chat.wrap("Which?") == "Which?<|think|>"
