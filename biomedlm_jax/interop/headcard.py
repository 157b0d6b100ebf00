"""The model card of an exported head, with the code that loads it and scores with it in torch."""

from collections.abc import Mapping

from biomedlm_jax.interop.modelcard import Facts, architecture, attention_note, sections, table
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.heads import CHOICE

WHAT = {
    "choice": "scores the options of a question; their softmax is the answer's distribution",
    "classification": "scores the classes of a question about a text; their softmax is their "
    "distribution",
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


model = MultipleChoice.from_pretrained("DIR", attn_implementation="eager").eval()
tokenizer = AutoTokenizer.from_pretrained("DIR")
SEP, ROOM = [tokenizer.convert_tokens_to_ids("[SEP]")], {room}


def scores(question, options):
    rows = []
{rows}
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row])) for row in rows])
"""
CLASSIFICATION_LOADER = """
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("DIR", attn_implementation="eager")
tokenizer = AutoTokenizer.from_pretrained("DIR")
{marks}ROOM = {room}


def scores(question, context):
    q, c = tokenizer.encode(question), tokenizer.encode(context)
{rows}
    with torch.no_grad():
        return model.eval()(torch.tensor([row])).logits[0]
"""
MARKS = """\
CONTEXT, QUESTION, ANSWER = (
    [tokenizer.convert_tokens_to_ids(t)] for t in ("<|CONTEXT|>", "<|QUESTION1|>", "<|ANSWER|>")
)
"""
ROWS = {
    ("choice", "paper"): """\
    options = [tokenizer.encode(" " + option)[: ROOM // 2] for option in options]
    longest = max(map(len, options))
    question = tokenizer.encode(question)
    question = question[max(0, len(question) + longest - ROOM) :]  # a long one loses its start
    rows = [question + SEP + option + SEP for option in options]""",
    ("choice", "released"): """\
    for option in options:
        q, o = tokenizer.encode(question), tokenizer.encode(" " + option)
        while len(q) + len(o) > ROOM:  # the longer one loses its end
            (q if len(q) >= len(o) else o).pop()
        rows.append(q + SEP + o + SEP)""",
    ("classification", "paper"): """\
    q = q[max(0, len(q) - ROOM) :]
    c = c[max(0, len(q) + len(c) - ROOM) :]  # a long context loses its start
    row = CONTEXT + c + QUESTION + q + ANSWER""",
    ("classification", "released"): """\
    while len(q) + len(c) > ROOM:  # the longer one loses its end
        (q if len(q) >= len(c) else c).pop()
    row = q + c""",
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
    whose = "its own few lines, as transformers has no such class" if choice else "transformers"
    return f"""---
{chr(10).join(front)}
---

# {name}

A GPT-2 of {config.parameter_count:,} parameters with a {head["kind"]} head, fine-tuned on
{head["task"]} and exported by biomedlm_jax. It {WHAT[head["kind"]]}.

{architecture(config, folded=folded)}

## Scoring with it

In torch, with {whose}; the scores are those of `biomedlm evaluate --model=DIR`:

```python
{loader(config, head)}
```

Where a question has a context in a multiple choice, `question` is the context, a space and the
question. Texts in one batch are padded on the right with `[PAD]`, and the score is read at each
text's last token.

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
        code = CHOICE_LOADER.format(room=length - 2, rows=rows)
        return code.replace("    rows = []\n    options", "    options").strip()
    paper = row_format == "paper"
    code = CLASSIFICATION_LOADER.format(
        marks=MARKS if paper else "", room=length - 3 * paper, rows=rows
    )
    return code.strip()
