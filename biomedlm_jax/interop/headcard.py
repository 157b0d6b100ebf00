"""The section of a head's model card that scores questions with it in torch."""

import textwrap

from biomedlm_jax.interop.finetuned import CHOICE, KEEP_END, Head
from biomedlm_jax.model.config import ModelConfig

INPUTS = {
    "choice": "If there is a context, `question` is the context, a space and the question.",
    "classification": "Texts of one batch are padded on the right with `[PAD]`, as the tokenizer "
    "does; the scores are read at each text's last token.",
}
RECORD = """config.json has the head's record, `biomedlm_jax_head`; the tensors `score.*` are a
torch `Linear` that reads the last token's state after the final norm."""
NO_BIAS = """transformers reports `score.bias` as unexpected: a softmax over the options is the same
without it."""
# Texts that are too long are cut as in the library's own rows.
LOADER = """
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("DIR", attn_implementation="eager")
tokenizer = AutoTokenizer.from_pretrained("DIR")
{marks}LENGTH = {length}  # tokens of a row


def scores(question, {answers}):
{rows}
    with torch.no_grad():
        return {scores}
"""
SCORES = {
    "choice": "torch.cat([model(torch.tensor([row])).logits[0] for row in rows])",
    "classification": "model(torch.tensor([row])).logits[0]",
}
MARKS = """\
CONTEXT, QUESTION, ANSWER = (
    [tokenizer.convert_tokens_to_ids(t)] for t in ("<|CONTEXT|>", "<|QUESTION1|>", "<|ANSWER|>")
)
"""
ROWS = {
    ("choice", "keep_end"): """\
    sep = [tokenizer.convert_tokens_to_ids("[SEP]")]
    plain = {"split_special_tokens": True, "add_special_tokens": False}
    options = [tokenizer.encode(" " + option, **plain) + sep for option in options]
    longest, question = max(map(len, options)), tokenizer.encode(question, **plain) + sep
    if len(question) + longest > LENGTH:  # the question loses its start, a long option its end
        question = question[-max(LENGTH - longest, LENGTH // 2) :]
        room = LENGTH - len(question) - 1
        options = [option[:-1][:room] + option[-1:] for option in options]
    rows = [question + option for option in options]""",
    ("choice", "released"): """\
    cut = {"truncation": True, "max_length": LENGTH, "add_special_tokens": False}
    rows = [
        tokenizer(question + "[SEP]", " " + option + "[SEP]", **cut)["input_ids"]
        for option in options
    ]""",
    ("classification", "keep_end"): """\
    q, c = (tokenizer.encode(t, add_special_tokens=False) for t in (question, context))
    q = q[max(0, len(q) - LENGTH + 3) :]
    c = c[max(0, len(q) + len(c) - LENGTH + 3) :]  # a long context loses its start
    row = CONTEXT + c + QUESTION + q + ANSWER""",
    ("classification", "released"): """\
    cut = {"truncation": True, "max_length": LENGTH, "add_special_tokens": False}
    row = tokenizer(context.replace("\\n", " "), question, **cut)["input_ids"]""",
}


def scoring_section(config: ModelConfig, head: Head) -> str:
    """Return the section with the code that defines `scores`, as Markdown."""
    less = ", less its bias, which is one number for all options" if head.kind == CHOICE else ""
    inputs = f"{INPUTS[head.kind]} {RECORD}" + (f" {NO_BIAS}" if head.kind == CHOICE else "")
    return f"""## Scoring with it

With transformers' own class. The scores are those of `biomedlm evaluate --model=DIR`{less}:

```python
{scoring_code(config, head)}
```

{textwrap.fill(inputs, 96)}"""


def scoring_code(config: ModelConfig, head: Head) -> str:
    """Return Python code that loads the directory DIR and defines `scores`."""
    return LOADER.format(
        marks=MARKS if head.row_format == KEEP_END and head.kind != CHOICE else "",
        length=min(head.max_length, config.context_length),
        answers="options" if head.kind == CHOICE else "context",
        rows=ROWS[head.kind, head.row_format],
        scores=SCORES[head.kind],
    ).strip()
