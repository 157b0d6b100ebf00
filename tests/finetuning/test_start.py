import shutil

import jax
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.finetuning.config import QuestionSettings
from biomedlm_jax.finetuning.pairs import ADDED_TOKENS
from biomedlm_jax.finetuning.shuffling import ShuffledTexts
from biomedlm_jax.finetuning.start import load_base_model, make_recipe
from biomedlm_jax.interop.finetuned import Head, save_finetuned, with_head
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.model.vocabulary import grow_vocabulary
from biomedlm_jax.qa.packing import Prompt
from biomedlm_jax.settings import read_settings


@pytest.fixture(scope="module")
def tuned_model(world, tmp_path_factory):
    """A model with the added tokens and a head, as a run of questions saves it."""
    model, tokenizer = load(world / "base")
    tokenizer.add_special_tokens(list(ADDED_TOKENS))
    model = grow_vocabulary(model, len(ADDED_TOKENS), key=jax.random.key(1))
    head = Head(kind="choice", task="medqa", row_format="keep_end", max_length=32, classes=())
    scorer = with_head(model, head, key=jax.random.key(2))
    return save_finetuned(tmp_path_factory.mktemp("tuned") / "model", scorer, tokenizer, head)


@pytest.fixture
def start(question_config):
    settings, mesh = read_settings(QuestionSettings, question_config()), meshes.one_device()

    def of(path, *, heads=False):
        with jax.set_mesh(mesh):
            return load_base_model(path, settings, mesh, added_tokens=ADDED_TOKENS, heads=heads)

    return of


def test_tokens_are_added_once_after_the_vocabulary(start, world, tmp_path):
    first = start(world / "base")
    assert (first.new_tokens, first.config.vocab_size, first.head) == (2, 302, None)
    assert [first.tokenizer.token_to_id(token) for token in ADDED_TOKENS] == [300, 301]
    assert load(world / "base")[1].get_vocab_size() == 300  # the base's own is unchanged


def test_a_token_that_the_model_has_keeps_its_row(start, world, tuned_model, tmp_path):
    model, tokenizer = load(world / "base")
    assert tokenizer.token_to_id("[SEP]") is None
    tuned = start(tuned_model, heads=True)  # it has them, as rows 300 and 301
    assert (tuned.new_tokens, tuned.config.vocab_size) == (0, 302)
    assert [tuned.tokenizer.token_to_id(token) for token in ADDED_TOKENS] == [300, 301]
    tokenizer.add_special_tokens(list(ADDED_TOKENS))
    save_finetuned(tmp_path / "short", model, tokenizer)
    with pytest.raises(ValueError, match="has id 301, and the model's vocabulary ends at 299"):
        start(tmp_path / "short")


def test_a_start_is_identified_by_content(start, world, write_base, tuned_model, tmp_path):
    shutil.copytree(world / "base", tmp_path / "moved")
    write_base(tmp_path / "other", initializer_range=0.03)
    one, same, other = (
        start(path).started_from
        for path in (world / "base", tmp_path / "moved", tmp_path / "other")
    )
    assert one.pop("path") != same.pop("path")
    assert one == same
    assert {name for name in one if one[name] != other[name]} == {"weights"}
    tuned = start(tuned_model, heads=True)
    assert tuned.new_tokens == 0
    assert tuned.head is not None
    assert tuned.started_from["weights"] != one["weights"]


def test_vocabulary_and_tokenizer_end_at_the_same_id(start, tmp_path, tokenizer, write_base):
    write_base(tmp_path / "base", vocab_size=310, eos_token_id=299)
    with pytest.raises(ValueError, match="310 vocabulary rows and its tokenizer 300 entries"):
        start(tmp_path / "base")
    model, _ = load(tmp_path / "base")
    save_finetuned(tmp_path / "silent", model, None)
    with pytest.raises(ValueError, match="no tokenizer"):
        start(tmp_path / "silent")


def test_a_recipe_introduces_model_devices_and_kernel(start, world, question_config):
    settings, mesh = read_settings(QuestionSettings, question_config()), meshes.one_device()
    data = ShuffledTexts([Prompt([1, 2], [[3, 4]], 0)] * 5, row_length=6, batch_size=2)
    parts = {"make_model": None, "loss": None, "started_from": {}}
    recipe = make_recipe(start(world / "base"), settings, mesh, data, line="hello", **parts)
    first, second, last = recipe.introduction
    assert "122,496 parameters on 1 cpu" in first
    assert "attention by xla" in first
    assert second == "hello"
    assert last == "8 epochs of 2 steps, 8 tokens each in rows of 6"
    assert (recipe.steps, recipe.evaluate_every) == (16, 2)
    assert recipe.flops_per_token > 6 * 90_000
