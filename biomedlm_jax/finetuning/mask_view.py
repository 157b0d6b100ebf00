"""Print the tokens of a text run's first examples, those in the loss coloured; trains nothing."""

from collections import Counter
from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console
from rich.text import Text
from tokenizers import Tokenizer

from biomedlm_jax.corpus.tokenizer import copy_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning.config import ChatSettings, TextSettings
from biomedlm_jax.finetuning.pairs import ADDED_TOKENS
from biomedlm_jax.finetuning.text_data import TextData, read_data, text_data
from biomedlm_jax.interop.directories import model_config, read_tokenizer
from biomedlm_jax.model.vocabulary import with_added_tokens
from biomedlm_jax.settings import read_settings

KINDS = {"text": TextSettings, "chat": ChatSettings}
LEARNED, OTHER = "black on green", "dim"
EXAMPLES = 3


def show_masks(
    config: ConfigDict, model: str | Path, console: Console, *, examples: int = EXAMPLES
) -> None:
    """Print the first training examples of a config, as the model at `model` would learn them.

    Only the tokenizer of `model` is read. Raises InputError for a recipe without token targets.
    """
    recipe = config.get("recipe")
    if recipe not in KINDS:
        got = f"got --show_mask with config.recipe={recipe!r}, whose loss is not over tokens"
        raise InputError(f"{got}; expected {' or '.join(KINDS)}")
    settings, left_out = read_settings(KINDS[recipe], config), Counter[str]()
    read = read_data(settings, left_out)
    model_settings = model_config(model, **settings.model)
    original = read_tokenizer(model, model_settings, required=True)
    assert original is not None
    tokenizer = copy_tokenizer(original)
    pairs = isinstance(settings, TextSettings)
    added = ADDED_TOKENS if pairs else settings.data.added_tokens
    missing = [token for token in added if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens(list(added))
    known = tokenizer, with_added_tokens(model_settings, len(missing))
    data = text_data(settings, read, *known, left_out)
    console.print(f"{len(data.prompts):,} training texts {data.description}", markup=False)
    for reason, count in left_out.items():
        console.print(f"{count:,} left out of {reason}", markup=False)
    for number in range(min(examples, len(data.prompts))):
        ids, mask = example(data, number)
        console.print(f"\nexample {number + 1}: {len(ids)} tokens, {sum(mask)} in the loss")
        console.print(coloured(tokenizer, ids, mask))
    console.print("\n", Text("coloured", LEARNED), " tokens are in the loss", sep="")


def example(data: TextData, number: int) -> tuple[list[int], list[bool]]:
    """Return the ids of a training example, and whether each is in the loss."""
    prompt = data.prompts[number]
    (branch,) = prompt.branches
    mask = [True] * len(branch) if data.masks is None else data.masks[number]
    return [*prompt.prefix, *branch], [*[False] * len(prompt.prefix), *mask]


def coloured(tokenizer: Tokenizer, ids: list[int], mask: list[bool]) -> Text:
    """Return the text of the tokens, learned ones coloured; what is not printable is escaped."""
    text, place = Text(), 0
    while place < len(ids):
        end = place + 1
        while end < len(ids) and mask[end] == mask[place]:
            end += 1
        piece = tokenizer.decode(ids[place:end], skip_special_tokens=False)
        piece = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in piece)
        text.append(piece, LEARNED if mask[place] else OTHER)
        place = end
    return text
