"""The model card of an exported directory, and the facts about a run that it states."""

import os
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

from biomedlm_jax.files import parse_object, read_json, read_lines
from biomedlm_jax.interop.directories import MODEL_FOLDER, model_directory, read_config
from biomedlm_jax.interop.headcard import WHAT, scoring_section
from biomedlm_jax.interop.heads import CHOICE, Head
from biomedlm_jax.interop.tensorfiles import TensorFiles
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import abstract_model, family
from biomedlm_jax.model.gpt2 import GPT2Config
from biomedlm_jax.model.language_model import parameter_count
from biomedlm_jax.training.provenance import RUN_FILE

BIOMEDLM, BIOMEDLM_LICENCE = GPT2Config(), "bigscience-bloom-rail-1.0"
Facts = Mapping[str, Mapping[str, object]]
# Groups of run.json on the card, and what they are called there.
GROUPS = {
    "data": "Data",
    "task": "Data",
    "training": "Steps",
    "optimizer": "Optimizer",
    "lora": "LoRA",
}
CARD = """---
{front}
---

# {name}

{introduction}

{sizes}

{usage}

{warning}

## Training

{training}

## Intended use

Research on language models for biomedicine. {risk} It is
**not a source of medical advice** and not fit for clinical decisions or for interpreting medical
results. {terms}
"""
LOADING = """## Loading it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR", attn_implementation="eager")
tokenizer = AutoTokenizer.from_pretrained("DIR")
```"""


def training_facts(path: str | Path, *, step: int | None = None) -> dict[str, dict[str, object]]:
    """Return what a run directory records about its model at `step`, as sections of a card.

    They come from config.json's facts, run.json's groups, the manifest of the token rows and the
    last validation figures up to `step`.
    """
    path = model_directory(path)
    facts = {**read_config(path).get("facts", {})}
    # Symbolic links resolved: RUN/model belongs to RUN under any name.
    parent = path.resolve().parent
    fine_tuned = path.resolve().name == MODEL_FOLDER and (parent / RUN_FILE).exists()
    file = (parent if fine_tuned else path) / RUN_FILE
    record = read_json(file) if file.exists() else {}
    sections = {"Source": facts.pop("source", {}), "Started from": facts.pop("started_from", {})}
    if fine_tuned:
        sections["Started from"] = {**record.get("started_from", {}), **sections["Started from"]}
    sections["Checkpoint"] = facts
    for group, section in GROUPS.items():
        if group in record and record[group].get("rank") != 0:
            sections[section] = {**record[group]}
    if not fine_tuned:
        manifest = path / "manifest.json"
        of_rows = _rows(read_json(manifest), sections, step) if manifest.exists() else {}
        for section, rows in of_rows.items():
            sections[section] = {**sections.get(section, {}), **rows}
        sections["Validation"] = _validation(path / "metrics.jsonl", step)
    known = {
        section: {
            name: value
            for name, value in rows.items()
            if value is not None and not isinstance(value, dict)
        }
        for section, rows in sections.items()
    }
    return {section: rows for section, rows in known.items() if rows}


def model_card(
    config: ModelConfig,
    *,
    name: str,
    facts: Facts | None = None,
    folded: bool = False,
    has_tokenizer: bool = True,
    head: Head | None = None,
) -> str:
    """Return the README.md of an exported model: what it is, how to load it, how it was trained."""
    facts, names = facts or {}, family(config.model_type)
    licence = facts.get("Source", {}).get("licence")
    task = {None: "text-generation", CHOICE: None}.get(head and head.kind, "text-classification")
    front = ["library_name: transformers", "language: en"]
    front += [f"pipeline_tag: {task}"] if task else []
    front += [f"tags: [biology, medical, {config.model_type}, jax]"]
    front += [f"license: {licence}"] if licence else []
    terms = f"The weights are under `{licence}`." if licence else "No licence was stated."
    what = (
        f"{names.ARCHITECTURES['trunk']} of {parameter_count(abstract_model(config)):,} parameters"
    )
    if head is None:
        introduction = f"A {what}, exported by biomedlm_jax."
        usage = LOADING if has_tokenizer else f"{LOADING}\n\nThis directory has no tokenizer."
        risk = "It continues text and can state falsehoods fluently."
    else:
        introduction = (
            f"A {what} with a {head.kind} head, fine-tuned on {head.task} and exported by "
            f"biomedlm_jax. It {WHAT[head.kind]}."
        )
        record = table({**head.to_json(), "classes": head.classes or "(the question's options)"})
        usage = f"{scoring_section(config, head)}\n\n## The head\n\n{record}\n\n" + textwrap.fill(
            "`row_format` and `max_length` (in tokens) are what the code above does. The tensors "
            "`score.*` are a torch `Linear` that reads the last token's state after the final norm.",
            96,
        )
        risk = "Its answers can be wrong at any confidence."
        terms += " The terms of the model that it was fine-tuned from apply as well."
    introduction += " `biomedlm verify-hf --model=DIR` compares what it computes with what transformers computes."
    warning = names.export_warning(config, folded=folded)
    return CARD.format(
        front="\n".join(front),
        name=name,
        introduction=textwrap.fill(introduction, 96),
        sizes=_sizes(config, folded=folded),
        usage=usage,
        warning=textwrap.fill(warning or "Every engine computes this model's attention.", 96),
        training=_sections(facts),
        risk=risk,
        terms=terms,
    )


def stated_licence(directory: str | Path) -> str | None:
    """Return the licence that the model card of a directory states, or None."""
    card = Path(directory) / "README.md"
    if not card.exists():
        return None
    front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.S)
    found = front and re.search(r"^license:[ \t]*(\S+)[ \t]*$", front[1], re.M)
    return found[1] if found else None


def source_facts(files: TensorFiles, config: ModelConfig, notify: Callable[[str], None]) -> dict:
    """Return what a run directory records of the files it was made from; print it by `notify`."""
    licence = stated_licence(files.directory)
    notify(licence_line(licence, config))
    if files.dropped:
        notify(f"left out {len(files.dropped)} unused tensors, such as {files.dropped[0]}")
    if files.dtypes != ["float32"]:
        notify(f"converted to float32 from {', '.join(files.dtypes)}")
    return {
        "path": str(files.directory.absolute()),
        "files": [file.name for file in files.files],
        "dtypes": files.dtypes,
        **({"licence": licence} if licence else {}),
    }


def licence_line(licence: str | None, config: ModelConfig) -> str:
    """Return one line about the licence of imported weights, which may be unknown."""
    if licence is None and config.architecture() == BIOMEDLM.architecture():
        licence = f"not stated; BioMedLM's weights, which have this shape, are {BIOMEDLM_LICENCE}"
    if licence is None:
        return "licence of the weights: not stated in the source; ask their authors"
    terms = ""
    if BIOMEDLM_LICENCE in licence:
        terms = ", which forbids medical advice and medical results interpretation"
    return f"licence of the weights: {licence}{terms}"


def table(rows: Mapping[str, object]) -> str:
    """Return names and values as a Markdown table; of paths, the last part."""
    lines = [f"| {name} | {_show(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _sizes(config: ModelConfig, *, folded: bool) -> str:
    sizes = (config.layers, config.width, config.heads, config.mlp_width)
    note = " (attention scale folded into the weights)" if folded else ""
    rows = {
        "layers / width / heads / MLP width": " / ".join(map(str, sizes)),
        "vocabulary / positions": f"{config.vocab_size:,} / {config.context_length:,}",
        "tensors": f"float32, safetensors{note}",
    }
    return table(rows)


def _sections(facts: Facts) -> str:
    if not facts:
        return "No training facts were recorded with this export."
    return "\n\n".join(f"### {section}\n\n{table(rows)}" for section, rows in facts.items())


def _show(value: object) -> str:
    if isinstance(value, str) and os.path.isabs(value):
        return Path(value).name
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(_show, value)) if isinstance(value, list | tuple) else str(value)


def _rows(manifest: dict, sections: Mapping, step: int | None) -> dict[str, dict]:
    """What the manifest of the token rows adds to the sections of a pre-training run."""
    split = manifest.get("splits", {}).get("train", {})
    data = {
        "training tokens": split.get("tokens"),
        "rows": split.get("rows"),
        "separator between documents": manifest.get("separator"),
        "fingerprint": manifest.get("fingerprint"),
    }
    batch_size = sections.get("Steps", {}).get("batch_size")
    if step is None or batch_size is None:
        return {"Data": data}
    tokens = step * batch_size * manifest["length"]
    steps = {
        "steps": step,
        "steps planned": sections["Steps"].get("steps"),
        "tokens per row": manifest["length"],
        "tokens trained on": tokens,
        "passes over the data": round(tokens / split["tokens"], 2) if split.get("tokens") else None,
    }
    return {"Data": data, "Steps": steps}


def _validation(metrics: Path, step: int | None) -> dict[str, object]:
    found = {}
    for number, line in read_lines(metrics) if metrics.exists() else ():
        if not line.endswith(b"\n"):  # cut off while it was written
            break
        record = parse_object(line, f"{metrics}:{number}")
        if "validation_loss" in record and (step is None or record["step"] <= step):
            found = record
    return found
