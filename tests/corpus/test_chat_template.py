import datetime
import json

import pytest
from chats import CHAT, MARKED, save
from transformers import AutoTokenizer

from biomedlm_jax.corpus import chat_template as module
from biomedlm_jax.corpus.chat_template import (
    BUILT_IN,
    FILE,
    ChatTemplate,
    chat_template,
    fixed_date,
    read_chat_template,
    special_tokens,
    templates_of,
    with_template,
)
from biomedlm_jax.corpus.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from biomedlm_jax.errors import InputError

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
# What templates of released models use of Jinja.
EACH = "{% for m in messages %}"
FEATURES = [
    "  {%- for m in messages %}\n  {% if loop.first %}\n{{ m.role|upper }}\n{% endif %}\n\n"
    "{% endfor %}",
    EACH + "{% if loop.index > 2 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}",
    "{{ messages | tojson(indent=2) }}{{ {'b': 'é<', 'a': 1} | tojson(sort_keys=true) }}",
    "{% set ns = namespace(n=0) %}" + EACH + "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{{ bos_token ~ eos_token }}{{ pad_token is defined }}{{ tools is none }}{{ documents }}",
    "{{ messages[0]['content'].strip() }}{{ messages[-1].content[:3] }}{{ strftime_now('%Y') }}",
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{{ rest }}{% endif %}",
    "{{ dict(a=1) | tojson }}{{ messages | map(attribute='role') | join(', ') }}",
    "{% macro one(m) %}[{{ m.role }}]{% endmacro %}" + EACH + "{{ one(m) }}{% endfor %}",
    "{{- 'a' if add_generation_prompt else 'b' -}}\n\n",
    "{{ messages[1].get('name', 'none') }}{{ messages[1].name }}",
    MARKED,
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save(tmp_path_factory.mktemp("tokenizer") / "plain")


@pytest.fixture(scope="module")
def theirs(directory):
    return AutoTokenizer.from_pretrained(directory)


def both(directory, theirs, text, messages, prompt):
    ours = ChatTemplate(text, special_tokens(load_tokenizer(directory)), where="x")
    shown = theirs.apply_chat_template(
        messages, chat_template=text, tokenize=False, add_generation_prompt=prompt
    )
    return ours.render(messages, prompt), shown


@pytest.mark.parametrize("number", range(len(FEATURES)))
def test_a_text_is_that_of_transformers(directory, theirs, number):
    for messages in (CHAT, CHAT[:2]):
        for prompt in (False, True):
            ours, shown = both(directory, theirs, FEATURES[number], messages, prompt)
            assert ours == shown


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_template_of_the_package_is_rendered_and_encoded_as_by_transformers(
    directory, name, tmp_path
):
    tokenizer = load_tokenizer(directory)
    template = chat_template(tokenizer, name)
    save_tokenizer(with_template(tokenizer, template.text), tmp_path)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), read_chat_template(tmp_path)
    assert ours is not None
    empty = [{**CHAT[1], "name": None}]
    for messages in (CHAT, CHAT[1:], CHAT[:2], CHAT[1:2], empty):
        for prompt in (False, True):
            text = ours.render(messages, prompt)
            options = {"add_generation_prompt": prompt}
            assert text == theirs.apply_chat_template(messages, tokenize=False, **options)
            ids = theirs.apply_chat_template(messages, return_dict=False, **options)
            assert tokenizer.encode(text, add_special_tokens=False).ids == ids
    assert templates_of(load_tokenizer(tmp_path)) == {"default": template.text}


def test_the_published_texts():
    chat = [*CHAT[1:3], {"role": "user", "content": "Why?"}]
    expected = {
        "chatml": "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\nThe kinase."
        "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "llama2": "<s>[INST] What is it? [/INST] The kinase. </s><s>[INST] Why? [/INST]",
        "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\nWhat is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nThe kinase.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "zephyr": "<|user|>\nWhat is it?</s>\n<|assistant|>\nThe kinase.</s>\n<|user|>\nWhy?</s>\n"
        "<|assistant|>\n",
        "human": "<s>### Human: What is it? ### Assistant: The kinase.</s> ### Human: Why? "
        "### Assistant:",
    }
    tokenizer = train_tokenizer(["a b"] * 9, vocab_size=257)
    for name, text in expected.items():
        template = ChatTemplate(chat_template(tokenizer, name).text, TOKENS, where=name)
        assert template.render(chat) == text
    alpaca = ChatTemplate(chat_template(tokenizer, "alpaca").text, TOKENS, where="alpaca")
    apart = {"role": "user", "content": "Do it.\n\nthis", "instruction": "Do it.", "input": "this"}
    assert alpaca.render([apart]) == (
        "<s>Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo it.\n\n### Input:\nthis\n\n### Response:\n"
    )
    assert alpaca.render(chat[:1]) == (
        "<s>Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nWhat is it?\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": "plain {{ messages[0].role }}"},
        {
            "tokenizer_config.json": [
                {"name": "default", "template": "d"},
                {"name": "rag", "template": "r {{ eos_token }}"},
            ]
        },
        {FILE: "file\r\n{{ bos_token }}\n", "tokenizer_config.json": "config"},
        {FILE: "file", "additional_chat_templates/rag.jinja": "r", "tokenizer_config.json": "c"},
        {"additional_chat_templates/rag.jinja": "r\n"},
    ],
)
def test_templates_are_those_that_transformers_reads(directory, files, tmp_path):
    save_tokenizer(load_tokenizer(directory), tmp_path)
    for name, text in files.items():
        file = tmp_path / name
        if file.suffix == ".json":
            file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": text}))
        else:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(text.encode())
    tokenizer, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.chat_template
    expected = {"default": expected} if isinstance(expected, str) else expected
    assert templates_of(tokenizer) == expected
    for name in expected:
        ours = chat_template(tokenizer, "" if name == "default" else name).render(CHAT)
        assert ours == theirs.apply_chat_template(
            CHAT, chat_template=expected[name], tokenize=False
        )
    assert (read_chat_template(tmp_path) is None) == ("default" not in expected)
    # They survive a copy with another default.
    new = with_template(tokenizer, "new")
    save_tokenizer(new, tmp_path / "copy")
    again = AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert again.apply_chat_template(CHAT, tokenize=False) == "new"


def test_generation_blocks_are_marked(directory):
    template = ChatTemplate(MARKED, TOKENS, where="x")
    text, spans = template.render_marked(CHAT)
    assert template.marks_answers
    assert [text[a:b] for a, b in spans] == ["The kinase.<|im_end|>", 'a drug <b> "é"<|im_end|>']
    assert template.render_marked(CHAT[:2]) == (template.render(CHAT[:2], False), [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{% if %}", "x has a chat template that is no Jinja"),
        ("{{ raise_exception('only users') }}", "the chat template of x fails: only users"),
        ("{{ messages[9].role.a }}", "the chat template of x fails"),
        ("{{ pad_token }}", "it prints pad_token, which the tokenizer lacks; fix: set another"),
        ("{{ 'a' + pad_token }}", "fails: 'pad_token' is undefined"),
        ("{{ 1 / 0 }}", "fails: division by zero"),
        ("{{ messages.append(1) }}", "fails"),
        ("{{ ''.__class__.__mro__ }}", "fails"),
        ("{{ namespace(_x=1) }}", "fails"),
        ("{{ strftime_now('%Y') }}", "prints today's date, so a run could not be resumed tomorrow"),
    ],
)
def test_a_template_that_fails_is_refused(text, message):
    with pytest.raises(InputError, match=message) as caught:
        ChatTemplate(text, TOKENS, where="x", today=fixed_date("")).render(CHAT)
    assert "\n" not in str(caught.value)


def test_a_template_that_is_not_there_is_refused(directory, tmp_path):
    tokenizer = load_tokenizer(directory)
    with pytest.raises(InputError, match=r"no chat template; fix: set template to one of alpaca"):
        chat_template(tokenizer)
    with pytest.raises(InputError, match="no chat template 'rag'"):
        chat_template(tokenizer, "rag")
    with pytest.raises(InputError, match="cannot read the template"):
        chat_template(tokenizer, str(tmp_path / "none.jinja"))
    (tmp_path / "own.jinja").write_text("own")
    assert chat_template(tokenizer, str(tmp_path / "own.jinja")).render(CHAT) == "own"
    with pytest.raises(InputError, match="without a message"):
        chat_template(tokenizer, "zephyr").render([])
    with pytest.raises(InputError, match="was not read from a directory"):
        with_template(train_tokenizer(["a b"] * 9, vocab_size=257), "x")


def test_a_date_is_fixed():
    day = fixed_date("2026-02-03")
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, where="x", today=day)
    assert template.render(CHAT) == "03 Feb 2026"
    assert module.ChatTemplate("{{ strftime_now('%Y') }}", {}, where="x").render(CHAT) == str(
        datetime.datetime.now().year
    )
    with pytest.raises(InputError, match="expected YYYY-MM-DD"):
        fixed_date("tomorrow")
