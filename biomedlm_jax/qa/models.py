"""The models of an evaluation: checked before any is loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh
from tokenizers import Tokenizer

from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.directories import model_config, model_directory, read_tokenizer
from biomedlm_jax.interop.finetuned import Head, load_finetuned, read_head
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.mesh import check_fits
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.heads import Scorer
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.qa import identity
from biomedlm_jax.qa.prompts import Wrap
from biomedlm_jax.qa.scoring import CLASSIFIER, LETTER, OPTION, WAYS
from biomedlm_jax.qa.tasks import Task

AUTO = "auto"
PROBE, PROBE_ANSWER = "Question", "Answer"  # texts to learn from what a template puts around them


def check_model(path: str | Path, mesh: Mesh | None, **execution) -> Head | None:
    """Return the head of a directory (None: a language model); raise if it does not fit."""
    head, config = read_head(path), model_config(path, **execution)
    if read_tokenizer(path, config) is None:
        raise InputError(f"{path} has no tokenizer; add the tokenizer.json it was trained with")
    if mesh is not None:
        check_fits(mesh, model=abstract_model(config))
    return head


def load_model(
    path: str | Path, head: Head | None, mesh: Mesh | None, *, dtype: str = "float32", **execution
) -> tuple[LanguageModel | Scorer, Tokenizer]:
    """Load a model that `check_model` returned the head of, and its tokenizer.

    `dtype` is that of its matrices.
    """
    loader = load if head is None else load_finetuned
    model, tokenizer, *_ = loader(path, mesh=mesh, dtype=dtype, **execution)
    assert tokenizer is not None  # by check_model
    return model, tokenizer


class ChatPrompt(NamedTuple):
    """The chat template of a directory, and the date that it prints (None: it prints none)."""

    wrap: Wrap  # puts a user's text into it
    template: str
    date: str | None


def read_chat_prompt(path: str | Path, *, date: str) -> ChatPrompt | None:
    """Return how a user's text is put into the chat template of a directory.

    The text ends where the template puts the assistant's answer; `date`, YYYY-MM-DD, is the
    template's today. None without a template.
    """
    from biomedlm_jax.corpus.chat_template import fixed_date, read_chat_template  # imports Jinja

    template = read_chat_template(model_directory(path), today=fixed_date(date, name="date"))
    if template is None:
        return None

    def begin(text: str) -> str:
        return template.render([{"role": "user", "content": text}], add_generation_prompt=True)

    # What the template puts between its header and an answer, as a space or an empty thought.
    turns = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE_ANSWER}]
    header, chat = begin(PROBE), template.render(turns, add_generation_prompt=False)
    rest = chat.removeprefix(header) if chat.startswith(header) else PROBE_ANSWER
    between = rest[: max(0, rest.find(PROBE_ANSWER))]
    printed = date if template.prints_the_date else None
    return ChatPrompt(lambda text: begin(text) + between, template.text, printed)


def check_head(head: Head, task: Task, *, where: str | Path, fix: str) -> None:
    """Raise InputError if the head of the model at `where` is of another kind than the task."""
    if (head.kind, head.classes) != (task.kind, task.classes):
        got = f"{where} has a {head.kind} head {list(head.classes) or ''}"
        needed = f"{task.name} needs {task.kind} {list(task.classes) or ''}"
        raise InputError(f"{got} (fine-tuned on {head.task}), and {needed}; {fix}")


def check_seeds(models: Sequence[str | Path]) -> None:
    """Raise InputError unless the directories are different seeds of one training."""
    refuse_equal([str(Path(model).resolve()) for model in models], models)
    if len(models) > 1:
        identity.check_seeds(models)


def refuse_equal(of_each: Sequence[str], models: Sequence[str | Path]) -> None:
    """Raise InputError if two models have the same place, or the same hash of their weights."""
    for number, value in enumerate(of_each):
        if (first := of_each.index(value)) < number:
            got = f"{models[number]} has the same weights as {models[first]}"
            raise InputError(f"{got}; fix: name each seed once")


def choose_modes(
    mode: str, models: Sequence[str | Path], heads: Sequence[Head | None], task: Task
) -> list[str]:
    """Return the modes to score in; raise InputError if mode, models and task do not fit."""
    for path, head in zip(models, heads, strict=True):
        if head is not None:
            check_head(head, task, where=path, fix="choose another model")
    finetuned = [head is not None for head in heads]
    if any(finetuned) and not all(finetuned):
        one, other = models[finetuned.index(True)], models[finetuned.index(False)]
        raise InputError(f"{one} is fine-tuned and {other} is not; evaluate them one at a time")
    if mode == AUTO:
        return [CLASSIFIER] if finetuned[0] else [LETTER, OPTION]
    if mode not in WAYS:
        raise InputError(f"got mode={mode!r}; choose one of {AUTO}, {', '.join(WAYS)}")
    if finetuned[0] != (mode == CLASSIFIER):
        kind = "has a fine-tuned head" if finetuned[0] else "is a language model"
        raise InputError(f"mode={mode} does not fit {models[0]}, which {kind}; choose {AUTO}")
    return [mode]
