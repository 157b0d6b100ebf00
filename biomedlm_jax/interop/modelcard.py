"""The model card of an exported directory, and the facts about a run that it states."""

import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from biomedlm_jax.buckets import as_path, is_bucket
from biomedlm_jax.corpus.mixtures import describe_source, read_sources
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import parse_object, read_json
from biomedlm_jax.interop import directories
from biomedlm_jax.interop.finetuned import CHOICE, Head
from biomedlm_jax.interop.headcard import scoring_section
from biomedlm_jax.interop.rounding import recorded
from biomedlm_jax.interop.tensorfiles import TensorFiles
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.families import abstract_model, family
from biomedlm_jax.model.language_model import parameter_count
from biomedlm_jax.settings import check_object
from biomedlm_jax.streams import read_lines
from biomedlm_jax.training.provenance import RUN_FILE

RAIL = "bigscience-bloom-rail-1.0"
# A path inside a text, up to its last part; not the one of a URL.
ABSOLUTE = re.compile(r"(?<![\w.:/~-])~?/(?:[^/\s,;:'\"=]+/)*([^/\s,;:'\"=]+)/?")
Facts = Mapping[str, Mapping[str, object]]
# Groups of run.json that the card has as sections.
GROUPS = (("data", "Data"), ("task", "Data"), ("training", "Steps"), ("optimizer", "Optimizer"))
CARD = """---
{front}
---

# {name}

{introduction}

{sizes}

{usage}

{attention}

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
    """Return what a run directory records about its model at `step`, as sections of a card."""
    path = directories.model_directory(path)
    facts = {**check_object(directories.read_config(path).get("facts"), f"{path} has facts")}
    files = [path / RUN_FILE, path / directories.TRAINING_FILE]
    if path.resolve().name == directories.MODEL_FOLDER:
        files.append(path.resolve().parent / RUN_FILE)  # of the fine-tuning run
    record = next((read_json(file) for file in files if file.exists()), {})
    groups = ("started_from", "lora", *(group for group, _ in GROUPS))
    record = {
        k: check_object(record[k], f"{path}: run.json has {k}") for k in groups if k in record
    }
    sections = {"Source": check_object(facts.pop("source", None), f"{path} has facts.source")}
    earlier = check_object(facts.pop("started_from", None), f"{path} has facts.started_from")
    sections["Started from"] = record.get("started_from", {}) | earlier
    sections["Checkpoint"] = facts
    sections |= {section: {**record[group]} for group, section in GROUPS if group in record}
    if record.get("lora", {}).get("rank"):
        sections["LoRA"] = record["lora"]
    if (path / "manifest.json").exists() and step is not None and "training" in record:
        manifest, training = read_json(path / "manifest.json"), record["training"]
        splits = check_object(manifest.get("splits"), f"{path}: manifest.json has splits")
        rows = check_object(splits.get("train"), f"{path}: manifest.json has splits.train")
        numbers: Any = training.get("batch_size"), manifest.get("length"), rows.get("tokens", 1)
        if not all(type(number) is int and number > 0 for number in numbers):
            got = "training.batch_size={}, length={}, tokens={}".format(*numbers)
            raise InputError(f"{path}: run.json and manifest.json have {got}; expected numbers")
        tokens = step * numbers[0] * numbers[1]
        sections["Data"] |= {"training tokens": rows.get("tokens"), "rows": rows.get("rows")}
        sections["Data"] |= {name: manifest.get(name) for name in ("separator", "fingerprint")}
        sections["Steps"] |= {
            "steps planned": training.get("steps"),
            "steps": step,
            "tokens per row": manifest["length"],
            "tokens trained on": tokens,
            "passes over the data": round(tokens / rows["tokens"], 2) if rows else None,
        }
        sources = read_sources(as_path(path), record, rows=step * numbers[0])
        if sources:  # the manifest is of the first one
            for name in ("training tokens", "rows", "fingerprint"):
                del sections["Data"][name]
            del sections["Steps"]["passes over the data"]
        sections["Data"] |= {
            f"source {number}": f"{describe_source(source)}, fingerprint {source['fingerprint']}"
            for number, source in enumerate(sources, start=1)
        }
    sections["Validation"] = _validation(path / "metrics.jsonl", step)
    known = {
        section: {k: v for k, v in rows.items() if v not in (None, "") and not isinstance(v, dict)}
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
    dtypes: Sequence[str] = ("float32",),
) -> str:
    """Return the README.md of an exported model: what it is, how to load it, how it was trained."""
    facts, of_family = facts or {}, family(config.model_type)
    licence = facts.get("Source", {}).get("licence")
    terms = f"The weights are under `{licence}`." if licence else "No licence was stated."
    size = f"{of_family.architectures['trunk']} of {parameter_count(abstract_model(config)):,}"
    if head is None:
        task: str | None = "text-generation"
        introduction = f"A {size} parameters, exported by biomedlm_jax."
        usage = LOADING if has_tokenizer else f"{LOADING}\n\nThis directory has no tokenizer."
        risk = "It continues text and can state falsehoods fluently."
    else:
        task = None if head.kind == CHOICE else "text-classification"
        introduction = f"A {size} parameters with a {head.kind} head, fine-tuned on {head.task} "
        introduction += "and exported by biomedlm_jax. A softmax of its scores gives probabilities."
        usage = scoring_section(config, head)
        risk = "Its answers can be wrong at any confidence."
        terms += " The terms of the model that it was fine-tuned from apply as well."
    introduction += " `biomedlm verify-hf --model=DIR` compares its outputs with transformers'."
    attention = of_family.export_warning(config, folded=folded)
    front = ["library_name: transformers", "language: en"]
    front += [f"pipeline_tag: {task}"] if task else []
    front += [f"tags: [biology, medical, {config.model_type}, jax]"]
    front += [f"license: {licence}"] if licence else []
    c = config
    rows = {
        "layers / width / heads / MLP width": f"{c.layers} / {c.width} / {c.heads} / {c.mlp_width}",
        "vocabulary / positions": f"{config.vocab_size:,} / {config.context_length:,}",
        "tensors": f"{', '.join(dtypes)}, safetensors",
    }
    sections = [f"### {section}\n\n{table(of)}" for section, of in facts.items()]
    return CARD.format(
        front="\n".join(front),
        name=name,
        introduction=textwrap.fill(introduction, 96),
        sizes=table(rows),
        attention=textwrap.fill(attention or "Every engine computes this model's attention.", 96),
        training="\n\n".join(sections) or "No training facts were recorded with this export.",
        usage=usage,
        risk=risk,
        terms=terms,
    )


def stated_licence(directory: str | Path) -> str | None:
    """Return the licence that the model card of a directory states, or None."""
    card = as_path(directory) / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    front = re.match(r"---\n(.*?)\n---", text, re.S)
    stated = front and re.search(r"^license:[ \t]*(\S+)[ \t]*$", front[1], re.M)
    return stated[1] if stated else None


def source_facts(files: TensorFiles, config: ModelConfig, notify: Callable[[str], None]) -> dict:
    """Return what a run directory records of the files it was made from; notify of it as well."""
    licence = stated_licence(files.directory)
    notify(licence_line(licence, config))
    if files.heads:
        notify(f"left out {', '.join(files.heads)} of another head")
    if files.dropped:
        notify(f"left out {len(files.dropped)} unused tensors, such as {files.dropped[0]}")
    if files.dtypes != ["float32"]:
        notify(f"converted to float32 from {', '.join(files.dtypes)}")
    names = [file.name for file in files.files]
    facts = {"path": str(files.directory.absolute()), "files": names, **recorded(files)}
    return facts | ({"licence": licence} if licence else {})


def licence_line(licence: str | None, config: ModelConfig) -> str:
    """Return one line about the licence of imported weights, which may be unknown."""
    for name, (known, of_known) in family(config.model_type).published.items():
        if licence is None and config.architecture() == known.architecture():
            licence = f"not stated; {name}'s weights, which have this shape, are {of_known}"
    if licence is None:
        return "licence of the weights: not stated in the source; ask their authors"
    limits = ", which forbids medical advice and medical results interpretation"
    return f"licence of the weights: {licence}{limits if RAIL in licence else ''}"


def table(rows: Mapping[str, object]) -> str:
    """Return names and values as a Markdown table; of absolute paths, the last part."""
    lines = [f"| {name} | {_show(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _show(value: object) -> str:
    if isinstance(value, str) and (os.path.isabs(value) or is_bucket(value)):
        return as_path(value).name
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_show, value))
    return ABSOLUTE.sub(r"\1", str(value))


def _validation(metrics: Path, step: int | None) -> dict[str, object]:
    last = {}
    for number, line in read_lines(metrics) if metrics.exists() else ():
        if line.endswith(b"\n"):  # else it was cut off while it was written
            record = parse_object(line, f"{metrics}:{number}")
            if "validation_loss" in record and (step is None or record["step"] <= step):
                last = record
    return last
