"""chat_template.py: rendered chats are those of transformers' apply_chat_template."""

import json

import pytest
from transformers import AutoTokenizer

from biomedlm_jax.corpus.chat_template import read_chat_template
from biomedlm_jax.corpus.tokenizer import save_tokenizer, train_tokenizer
from biomedlm_jax.errors import InputError

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Wofür ist <b>Renin</b>?\n"},
    {"role": "assistant", "content": '"Druck" 🧬'},
    {"role": "user", "content": "Mehr."},
]
TEMPLATES = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "{{ bos_token }}\n  {%- for m in messages %}\n    {%- if loop.index0 == 0 %}\n"
    "      {{- m.content | tojson }}\n      {% continue %}\n    {%- endif %}\n"
    "    {% if m.role == 'assistant' %}\n{% generation %}{{ m.content }}{% endgeneration %}\n"
    "    {% else %}\n[INST] {{ m.content }} [/INST]\n    {% endif %}\n  {% endfor %}",
    "{% if tools is none %}{{ messages | tojson(indent=2) }}{{ unk_token }}{% endif %}",
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("chat")
    save_tokenizer(train_tokenizer(["renin"] * 9, vocab_size=260), path)
    return path


@pytest.mark.parametrize("number", range(len(TEMPLATES)))
@pytest.mark.parametrize("in_config", [False, True])
def test_it_renders_what_transformers_renders(directory, number, in_config):
    file, text = directory / "chat_template.jinja", TEMPLATES[number]
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    file.unlink(missing_ok=True)
    if in_config:
        other = {"name": "tools", "template": "x"}
        config["chat_template"] = [other, {"name": "default", "template": text}]
    else:
        file.write_text(text)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    template = read_chat_template(directory)
    assert template is not None
    theirs = AutoTokenizer.from_pretrained(directory)
    for chat in (CHAT, CHAT[1:2]):
        for more in (False, True):
            expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=more)
            assert template.render(chat, add_generation_prompt=more) == expected


def render(directory):
    template = read_chat_template(directory)
    assert template is not None
    return template.render(CHAT)


def test_no_template_and_bad_templates(tmp_path):
    assert read_chat_template(tmp_path) is None
    for text, message in (
        ("{% for %}", "is no Jinja"),
        ("{{ raise_exception('no system') }}", "fails: no system"),
        ("{{ messages.append(1) }}", "fails: "),
        ("{{ messages[0].content + 1 }}", "fails: "),
    ):
        (tmp_path / "chat_template.jinja").write_text(text)
        with pytest.raises(InputError, match=message):
            render(tmp_path)
