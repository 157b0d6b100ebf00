"""The model card of an exported directory, and the facts about a run that it states."""

import json
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from biomedlm_jax.interop.directories import read_config
from biomedlm_jax.interop.tensorfiles import TensorFiles
from biomedlm_jax.model.config import GPTConfig

BEWARE = (
    "Layer l (from 0) divides its attention logits by l + 1 (scale_attn_by_inverse_layer_idx). "
    "transformers 4.42 to 4.57 silently ignore that on their default SDPA path and compute another "
    "function (huggingface/transformers issue 44380, fixed by 44397): load with "
    'attn_implementation="eager", which is right in all of them. vLLM and SGLang refuse the flag: '
    "for them, export with --fold_attention_scale."
)
FOLDED = (
    "The model was trained with scale_attn_by_inverse_layer_idx: layer l (from 0) divides its "
    "attention logits by l + 1. Here that factor is folded into the query part of each c_attn and "
    "the flag is off, so that every engine computes the trained function, vLLM and SGLang included."
)
BIOMEDLM_LICENCE = "bigscience-bloom-rail-1.0"
Facts = Mapping[str, Mapping[str, object]]


def training_facts(run_directory: str | Path, *, step: int) -> dict[str, dict[str, object]]:
    """What a run directory knows about its model at `step`, as sections of names and values.

    Only what is recorded: the run's config, the manifest of its token rows,
    and the last validation figures up to `step`. An imported model has a source instead.
    """
    config = read_config(run_directory)
    if "training" not in config:
        return {"Source": {**config.get("source", {})}}
    manifest = _manifest(Path(run_directory))
    training = config["training"]
    tokens = step * training["batch_size"] * config["model"]["context_length"]
    rows = manifest.get("splits", {}).get("train", {})
    data = {
        "token rows": config["data"]["path"],
        "training tokens there": rows.get("tokens"),
        "rows": rows.get("rows"),
        "separator between documents": manifest.get("separator"),
        "fingerprint": manifest.get("fingerprint"),
    }
    steps = {
        "steps": step,
        "steps planned": training["steps"],
        "rows per step": training["batch_size"],
        "tokens per row": config["model"]["context_length"],
        "tokens trained on": tokens,
        "passes over the data": round(tokens / rows["tokens"], 2) if rows.get("tokens") else None,
        "seed": training["seed"],
    }
    optimizer = {"kind": "decoupled AdamW, linear warmup, cosine decay", **config["optimizer"]}
    found = {
        "Data": data,
        "Steps": steps,
        "Optimizer": optimizer,
        "Validation": _validation(Path(run_directory) / "metrics.jsonl", step),
    }
    known = {
        section: {name: value for name, value in facts.items() if value is not None}
        for section, facts in found.items()
    }
    return {section: facts for section, facts in known.items() if facts}


def model_card(
    config: GPTConfig, *, name: str, facts: Facts | None, folded: bool, has_tokenizer: bool
) -> str:
    """The README.md of an exported model: what it is, how to load it, how it was trained."""
    facts = facts or {}
    licence = facts.get("Source", {}).get("licence")
    front = ["library_name: transformers", "pipeline_tag: text-generation", "language: en"]
    front += ["tags: [biology, medical, gpt2, jax]", *([f"license: {licence}"] if licence else [])]
    tokenizer = "" if has_tokenizer else "\nThis directory has no tokenizer.\n"
    terms = f"The weights are under `{licence}`." if licence else "No licence was stated."
    return f"""---
{lines(front)}
---

# {name}

A GPT-2 of {config.parameter_count:,} parameters, exported by biomedlm_jax, a JAX library that
trains BioMedLM's architecture. `biomedlm verify-hf --model=DIR` compares its logits there with
those that transformers computes.

{architecture(config, folded=folded)}

## Loading it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR", attn_implementation="eager")
tokenizer = AutoTokenizer.from_pretrained("DIR")
```
{tokenizer}
{attention_note(config, folded=folded)}

## Training

{sections(facts)}

## Intended use

Research on language models for biomedicine. It continues text and can state falsehoods fluently.
It is **not a source of medical advice** and not fit for clinical decisions or for interpreting
medical results. {terms}
"""


def stated_licence(directory: str | Path) -> str | None:
    """The licence that the model card of a directory states, or None."""
    card = Path(directory) / "README.md"
    if not card.exists():
        return None
    front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.S)
    found = front and re.search(r"^license:[ \t]*(\S+)[ \t]*$", front[1], re.M)
    return found[1] if found else None


def source_facts(files: TensorFiles, config: GPTConfig, notify: Callable[[str], None]) -> dict:
    """What a run directory records of the files it was made from; `notify` is told as well."""
    licence = stated_licence(files.directory)
    notify(licence_line(licence, config))
    if files.dropped:
        notify(f"left out {len(files.dropped)} tensors without use, such as {files.dropped[0]}")
    if files.dtypes != ["float32"]:
        notify(f"converted to float32 from {', '.join(files.dtypes)}")
    return {
        "path": str(files.directory.absolute()),
        "files": [file.name for file in files.files],
        "dtypes": files.dtypes,
        **({"licence": licence} if licence else {}),
    }


def licence_line(licence: str | None, config: GPTConfig) -> str:
    """What to tell someone who imports weights of this licence and shape."""
    if licence is None and config.architecture() == GPTConfig().architecture():
        licence = f"not stated; BioMedLM's weights, which have this shape, are {BIOMEDLM_LICENCE}"
    if licence is None:
        return "licence of the weights: not stated in the source; ask whoever made them"
    terms = ""
    if BIOMEDLM_LICENCE in licence:
        terms = ", which forbids medical advice and medical results interpretation"
    return f"licence of the weights: {licence}{terms}"


def architecture(config: GPTConfig, *, folded: bool) -> str:
    """The table of the model's sizes."""
    scale = config.scale_attn_by_inverse_layer_idx
    sizes = (config.layers, config.width, config.heads, config.mlp_width)
    rows = {
        "layers / width / heads / MLP width": " / ".join(map(str, sizes)),
        "vocabulary / positions": f"{config.vocab_size:,} / {config.context_length:,}",
        "scale_attn_by_inverse_layer_idx": f"{str(scale).lower()}{' (folded)' if folded else ''}",
        "tensors": "float32, safetensors",
    }
    return table(rows)


def attention_note(config: GPTConfig, *, folded: bool) -> str:
    """What to know about the attention scale before loading the weights."""
    if folded:
        return textwrap.fill(FOLDED, 96)
    if config.scale_attn_by_inverse_layer_idx:
        return textwrap.fill(f"**Beware of the attention scale.** {BEWARE}", 96)
    return "The model has GPT-2's plain attention scale, which every engine computes."


def sections(facts: Facts) -> str:
    """The facts as sections of a card."""
    if not facts:
        return "No training facts were recorded with this export."
    return "\n\n".join(f"### {section}\n\n{table(rows)}" for section, rows in facts.items())


def table(rows: Mapping[str, object]) -> str:
    """Names and values as a Markdown table."""
    return lines(["| | |", "|---|---|", *(f"| {k} | {_show(v)} |" for k, v in rows.items())])


def _show(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def lines(texts: list[str]) -> str:
    """The texts below one another."""
    return "\n".join(texts)


def _manifest(run_directory: Path) -> dict:
    file = run_directory / "manifest.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _validation(metrics: Path, step: int) -> dict[str, object]:
    if not metrics.exists():
        return {}
    # The newline comes last: what follows the last one was cut off in the writing.
    whole = metrics.read_text(encoding="utf-8").split("\n")[:-1]
    records = [record for record in map(json.loads, whole) if "validation_loss" in record]
    records = [record for record in records if record["step"] <= step]
    return records[-1] if records else {}
