"""Fine-tuned heads as Hugging Face directories: written, and read back.

A classification is transformers' GPT2ForSequenceClassification. For a choice transformers has no
class; the directory has the same tensors, and its model card the few lines that load it in torch.
In both, config.json has `biomedlm_jax_head`:

    kind        "choice" or "classification"
    task        what it was tuned on last
    row_format  "paper" or "released": how a question with its options or context becomes tokens
    max_length  tokens of a row in training; longer texts are cut
    classes     of a classification, in the order of the scores; of a choice, none
"""

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tokenizers import Tokenizer

from biomedlm_jax.interop.directories import HEAD_ENTRY, head_entry, model_config
from biomedlm_jax.interop.headcard import ROWS, head_card
from biomedlm_jax.interop.huggingface import read_tokenizer, write_directory, write_json
from biomedlm_jax.interop.modelcard import Facts
from biomedlm_jax.interop.tensorfiles import TensorFiles
from biomedlm_jax.interop.weights import check_tensors, named_leaves, read_model
from biomedlm_jax.mesh import one_device
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.heads import CHOICE, CLASSIFICATION, HEADS, score_layer
from biomedlm_jax.training.state import laid_out

PAD = "[PAD]"
FIELDS = {"kind": str, "task": str, "row_format": str, "max_length": int, "classes": list}
# The score layer's tensors in torch's Linear, which keeps its kernel as [outputs, inputs].
SCORE = {"kernel": "score.weight", "bias": "score.bias"}


def export_head(
    tuned,
    tokenizer: Tokenizer,
    path: str | Path,
    *,
    head: Mapping[str, object],
    overwrite: bool = False,
    fold_attention_scale: bool = False,
    max_shard_size: int | str = "5GB",
    training_facts: Facts | None = None,
) -> Path:
    """Write a model with its head as the Hugging Face directory `path`, read it back, return it.

    Args:
      tuned: a MultipleChoice or SequenceClassifier.
      tokenizer: the one it was tuned with, which has `[PAD]` and the head's other tokens.
      head: what `biomedlm_jax_head` says, with exactly its five fields.

    The other arguments and what is raised are those of `export_hf`.
    """
    head = _checked(head, where="the head to export")
    outputs = tuned.score.out_features
    if not isinstance(tuned, HEADS[head["kind"]]) or outputs != _outputs(head):
        raise ValueError(
            f"got a {type(tuned).__name__} with {outputs} scores for a {head['kind']} head of "
            f"classes {head['classes']}; give the head that the model was tuned with"
        )
    padding = tokenizer.token_to_id(PAD)
    if padding is None:
        raise ValueError(f"the tokenizer lacks {PAD}; give the one in the fine-tuned directory")
    settings = {
        "architectures": ["GPT2Model"],
        "pad_token_id": padding,
        HEAD_ENTRY: head,
    }
    if head["kind"] == CLASSIFICATION:
        classes = head["classes"]
        settings |= {
            "architectures": ["GPT2ForSequenceClassification"],
            "num_labels": len(classes),
            "id2label": {str(i): name for i, name in enumerate(classes)},
            "label2id": {name: i for i, name in enumerate(classes)},
        }

    def finish(new: Path, config: GPTConfig, folded: bool) -> str:
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            said = json.loads((new / name).read_text(encoding="utf-8"))
            write_json(new / name, {**said, "pad_token": PAD})
        return head_card(
            config, name=Path(path).name, head=head, facts=training_facts, folded=folded
        )

    score = {
        SCORE[name]: np.asarray(leaf, np.float32).T
        for name, leaf in named_leaves(tuned.score).items()
    }
    return write_directory(
        tuned.gpt,
        tokenizer,
        path,
        overwrite=overwrite,
        fold_attention_scale=fold_attention_scale,
        max_shard_size=max_shard_size,
        finish=finish,
        settings=settings,
        score=score,
    )


def load_head(path: str | Path, *, mesh: Mesh | None = None, **execution):
    """The model with its head, and the tokenizer, of a directory that `export_head` wrote.

    Raises FileNotFoundError or ValueError if it is none, or not exactly that.
    """
    config = model_config(path, **execution)
    head = _checked(head_entry(path), where=str(Path(path) / "config.json"))
    tokenizer = read_tokenizer(path, config)
    if tokenizer is None:
        raise ValueError(f"{path} has no tokenizer; its head needs the one that it was tuned with")
    files = TensorFiles(path)
    mesh = one_device() if mesh is None else mesh
    score = _abstract_score(config, head, mesh)
    wanted = {SCORE[name]: leaf.shape[::-1] for name, leaf in named_leaves(score).items()}
    shapes = files.shapes
    found = {name: shapes.pop(name) for name in files.entries if name.startswith("score.")}
    if found != wanted:
        raise ValueError(
            f"{path} has the head's tensors {_say(found)}; expected {_say(wanted)}: config.json "
            "describes another head, or the file is incomplete"
        )
    check_tensors(shapes, config, where=str(path))
    gpt = read_model(config, files.read, mesh=mesh)

    def fill(key_path, leaf):
        values = np.ascontiguousarray(files.read(SCORE[key_path[0].name]).T)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: values[index])

    score = jax.tree_util.tree_map_with_path(fill, score)
    return HEADS[head["kind"]](gpt, score), tokenizer


def _checked(head: object, *, where: str) -> dict:
    fields = dict(head) if isinstance(head, Mapping) else {}
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
    wrong = set(fields) != set(FIELDS) or [
        name for name, kind in FIELDS.items() if type(fields[name]) is not kind
    ]
    if wrong or (fields["kind"], fields["row_format"]) not in ROWS or fields["max_length"] < 1:
        raise ValueError(
            f"{where} says {head!r}; expected {', '.join(FIELDS)} with kind and row_format one of "
            f"{', '.join(map(' '.join, ROWS))}"
        )
    classes = fields["classes"]
    named = all(isinstance(name, str) for name in classes) and len({*classes}) == len(classes)
    if not named or (len(classes) > 0) == (fields["kind"] == CHOICE):
        raise ValueError(
            f"{where} has the classes {classes!r}; a classification has different names, a choice "
            "has none"
        )
    return {name: fields[name] for name in FIELDS}


def _outputs(head: Mapping) -> int:
    return 1 if head["kind"] == CHOICE else len(head["classes"])


def _abstract_score(config: GPTConfig, head: Mapping, mesh: Mesh) -> nnx.Linear:
    def make():
        return score_layer(config, head["kind"], _outputs(head), key=jax.random.key(0))

    return laid_out(make, mesh)


def _say(shapes: Mapping) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "none"
