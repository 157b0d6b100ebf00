"""finetune(): teach a model a task's questions, or to write texts, as the config's recipe says."""

from pathlib import Path

from ml_collections import ConfigDict

from biomedlm_jax.finetuning.questions import finetune_questions
from biomedlm_jax.finetuning.text import finetune_text

RECIPES = {"questions": finetune_questions, "text": finetune_text}


def finetune(config: ConfigDict, model: str | Path, workdir: str | Path) -> dict:
    """Fine-tune `model`, a run or a Hugging Face directory; resumes if `workdir` has the run.

    `config.recipe` is "questions" (see `finetune_questions`) or "text" (see `finetune_text`), whose
    figures are returned; `workdir/model` is the model to use. Ctrl-C (or SIGTERM) ends the step,
    saves and raises KeyboardInterrupt. Raises ValueError or FileNotFoundError, before anything is
    compiled or written, if config, data, model and directory do not fit together.
    """
    recipe = config.get("recipe")
    if recipe not in RECIPES:
        raise ValueError(f"got config.recipe={recipe!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[recipe](config, model, workdir)
