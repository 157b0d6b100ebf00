"""The model card of an exported head, with the code that loads it and scores with it in torch."""

import textwrap
from collections.abc import Mapping

from biomedlm_jax.interop.modelcard import (
    Facts,
    architecture,
    attention_note,
    lines,
    sections,
    table,
)
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.heads import CHOICE

WHAT = {
    "choice": "scores the options of a question; a softmax over them gives probabilities",
    "classification": "scores the classes of a question about a text; a softmax over them gives "
    "probabilities",
}
INPUTS = {
    "choice": "Where there is a context, `question` is the context, a space and the question.",
    "classification": "Texts of one batch are padded on the right with `[PAD]`, as the tokenizer "
    "does; the scores are read at each text's last token.",
}
# What becomes of texts that are too long is the same here as in the library's own rows.
CHOICE_LOADER = """
import torch
from transformers import AutoTokenizer, GPT2Model, GPT2PreTrainedModel


class MultipleChoice(GPT2PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.transformer = GPT2Model(config)
        self.score = torch.nn.Linear(config.n_embd, 1)
        self.post_init()

    def forward(self, ids):
        return self.score(self.transformer(ids).last_hidden_state[:, -1])[:, 0]


model = MultipleChoice.from_pretrained("DIR", attn_implementation="eager")
tokenizer = AutoTokenizer.from_pretrained("DIR")
LENGTH = {length}  # tokens of a row


def scores(question, options):
{rows}
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row])) for row in rows])
"""
CLASSIFICATION_LOADER = """
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("DIR", attn_implementation="eager")
tokenizer = AutoTokenizer.from_pretrained("DIR")
{marks}LENGTH = {length}  # tokens of a row


def scores(question, context):
{rows}
    with torch.no_grad():
        return model(torch.tensor([row])).logits[0]
"""
MARKS = """\
CONTEXT, QUESTION, ANSWER = (
    [tokenizer.convert_tokens_to_ids(t)] for t in ("<|CONTEXT|>", "<|QUESTION1|>", "<|ANSWER|>")
)
"""
ROWS = {
    ("choice", "paper"): """\
    options = [tokenizer.encode(" " + option + "[SEP]") for option in options]
    longest, question = max(map(len, options)), tokenizer.encode(question + "[SEP]")
    if len(question) + longest > LENGTH:  # the question loses its start, a long option its end
        question = question[-max(LENGTH - longest, LENGTH // 2) :]
        room = LENGTH - len(question) - 1
        options = [option[:-1][:room] + option[-1:] for option in options]
    rows = [question + option for option in options]""",
    ("choice", "released"): """\
    cut = {"truncation": True, "max_length": LENGTH}
    rows = [
        tokenizer(question + "[SEP]", " " + option + "[SEP]", **cut)["input_ids"]
        for option in options
    ]""",
    ("classification", "paper"): """\
    q, c = tokenizer.encode(question), tokenizer.encode(context)
    q = q[max(0, len(q) - LENGTH + 3) :]
    c = c[max(0, len(q) + len(c) - LENGTH + 3) :]  # a long context loses its start
    row = CONTEXT + c + QUESTION + q + ANSWER""",
    ("classification", "released"): """\
    context = context.replace("\\n", " ")
    row = tokenizer(context, question, truncation=True, max_length=LENGTH)["input_ids"]""",
}


def head_card(
    config: GPTConfig, *, name: str, head: Mapping[str, object], facts: Facts | None, folded: bool
) -> str:
    """The README.md of an exported head: what it is, how to load it, how it was trained."""
    facts = facts or {}
    licence = facts.get("Source", {}).get("licence")
    choice = head["kind"] == CHOICE
    front = ["library_name: transformers", "language: en"]
    front += [] if choice else ["pipeline_tag: text-classification"]
    front += ["tags: [biology, medical, gpt2, jax]", *([f"license: {licence}"] if licence else [])]
    terms = f"The weights are under `{licence}`." if licence else "No licence was stated."
    intro = (
        f"A GPT-2 of {config.parameter_count:,} parameters with a {head['kind']} head, fine-tuned "
        f"on {head['task']} and exported by biomedlm_jax. It {WHAT[head['kind']]}."
    )
    whose = "a class of a few lines, as transformers has none" if choice else "transformers"
    return f"""---
{lines(front)}
---

# {name}

{textwrap.fill(intro, 96)}

{architecture(config, folded=folded)}

## Scoring with it

In torch, with {whose}. The scores are those of
`biomedlm evaluate --model=DIR`:

```python
{loader(config, head)}
```

{textwrap.fill(INPUTS[head["kind"]], 96)}

{attention_note(config, folded=folded)}

## The head

As `config.json` has it, under `biomedlm_jax_head`:

{table({**head, "classes": head["classes"] or "(the question's own options)"})}

`row_format` and `max_length` (in tokens) are what the code above does. The tensors `score.*` are
a torch `Linear` that reads the last token's state after `ln_f`; the others are GPT-2's.

## Training

{sections(facts)}

## Intended use

Research on language models for biomedicine. Its answers can be wrong at any confidence. It is
**not a source of medical advice** and not fit for clinical decisions or for interpreting medical
results. {terms} The terms of the model that it was fine-tuned from apply as well.
"""


def loader(config: GPTConfig, head: Mapping[str, object]) -> str:
    """The Python code of the card, which defines `scores`."""
    kind, row_format = head["kind"], head["row_format"]
    length = min(head["max_length"], config.context_length)
    rows = ROWS[kind, row_format]
    if kind == CHOICE:
        return CHOICE_LOADER.format(length=length, rows=rows).strip()
    marks = MARKS if row_format == "paper" else ""
    return CLASSIFICATION_LOADER.format(marks=marks, length=length, rows=rows).strip()
