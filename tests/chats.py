"""A tokenizer directory, templates and conversations, and what transformers makes of them."""

from pathlib import Path

from tokenizers import Tokenizer

from biomedlm_jax.corpus.chat_template import FILE, chat_template, with_template
from biomedlm_jax.corpus.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

TEXTS = ["the kinase binds the receptor", "what is a trial of the drug", "Below is an instruction"]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CHAT = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "The kinase."},
    {"role": "user", "content": "Why?\n\nsay"},
    {"role": "assistant", "content": 'a drug <b> "é"'},
]
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}"
    "<|im_end|>{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save(path: Path, *, template: str = "", specials=SPECIALS) -> Path:
    """Write a tokenizer of 280 entries and the special tokens, and a template if one is named."""
    tokenizer = train_tokenizer(TEXTS * 9, vocab_size=280)
    tokenizer.add_special_tokens(list(specials))
    save_tokenizer(tokenizer, path)
    if template:
        (path / FILE).write_text(text_of(load_tokenizer(path), template))
    return path


def text_of(tokenizer: Tokenizer, template: str) -> str:
    """Return the text of a template of the package, or the text itself."""
    return template if "{" in template else chat_template(tokenizer, template).text


def with_text(tokenizer: Tokenizer, template: str) -> Tokenizer:
    return with_template(tokenizer, text_of(tokenizer, template))


def learned(tokenizer: Tokenizer, ids, mask) -> list[str]:
    """Return the texts of the runs of learned tokens."""
    runs, last = [], -2
    for place in (i for i, one in enumerate(mask) if one):
        if place > last + 1:
            runs.append([])
        runs[-1].append(ids[place])
        last = place
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]
