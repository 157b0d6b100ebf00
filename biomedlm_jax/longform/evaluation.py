"""Evaluation: a model's loss on the held-out texts, what it says to them, how good that is."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from biomedlm_jax import mesh as meshes
from biomedlm_jax.generation.options import Options
from biomedlm_jax.generation.text import Generator
from biomedlm_jax.longform.examples import Example
from biomedlm_jax.longform.losses import target_loss
from biomedlm_jax.longform.report import report
from biomedlm_jax.longform.rows import Batch, Limits, Packed, encode_source
from biomedlm_jax.model.gpt import GPT


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The held-out examples, and how a model is asked about them."""

    examples: Sequence[Example]
    packed: Packed  # the same, for the loss
    tokenizer: Tokenizer
    limits: Limits
    options: Options
    batch_size: int  # sources answered at once
    chunks: int  # of the loss
    mesh: Mesh

    def loss(self, model: GPT) -> float:
        """Mean loss of a target's token in nats."""
        batches = (self.packed.batch(i) for i in range(self.packed.batches))
        sums = [_target_loss(model, place(b, self.mesh), self.chunks) for b in batches]
        total, count = np.sum(jax.device_get(sums), axis=0)
        return float(total / count)

    def answers(self, model: GPT, examples: Sequence[Example]) -> list[str]:
        """The model's answer to each example's source."""
        generator, answers = Generator(model, self.tokenizer), [""] * len(examples)
        prompts = [encode_source(self.tokenizer, e.source, self.limits) for e in examples]
        # Sources of like lengths share a batch, and so waste least.
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            found = generator.answers([prompts[i] for i in batch], self.options, numbers=batch)
            for i, one in zip(batch, found, strict=True):
                answers[i] = one[0].text.strip()
        return answers


def place(batch: Batch, mesh: Mesh) -> Batch:
    """A batch that every process has whole, on the devices."""
    layout = meshes.sharding(mesh, "batch", "length")
    return jax.tree.map(lambda array: meshes.place(array, layout), batch)


def figures(examples: Sequence[Example], answers: Sequence[str]) -> dict:
    """The figures of `longform.report` for the answers to these examples."""
    return report([e.source for e in examples], [e.target for e in examples], answers)


def write_answers(path: Path, examples: Sequence[Example], answers: Sequence[str]) -> None:
    """Write a JSON line for each example, with its source, target and answer."""
    with path.open("w", encoding="utf-8") as file:
        for example, text in zip(examples, answers, strict=True):
            line = {"source": example.source, "target": example.target, "answer": text}
            print(json.dumps(line, ensure_ascii=False), file=file)


@functools.partial(jax.jit, static_argnames="chunks")
def _target_loss(model: GPT, batch: Batch, chunks: int):
    return target_loss(model, batch, chunks=chunks)
