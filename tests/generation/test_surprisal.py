import io
import math

import jax
import numpy as np
import peers
import pytest
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.generation import surprisal
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.model.llama import MistralConfig

TEXT = "the kinase binds <b>a</b> β-receptor"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter([TEXT] * 9), vocab_size=280)


@pytest.fixture(scope="module")
def model():
    config = GPT2Config(
        vocab_size=280, context_length=48, layers=2, width=32, heads=2, initializer_range=0.3
    )
    return GPT2(config, key=jax.random.key(0))


def test_logprobs_are_those_of_the_model(model, tokenizer):
    scored = surprisal.score_text(model, tokenizer, TEXT)
    ids = [279, *tokenizer.encode(TEXT).ids]
    logits = np.asarray(model(np.array([ids])), np.float64)[0]
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [expected[i, token] for i, token in enumerate(ids[1:])]
    np.testing.assert_allclose(scored.log_probabilities, expected, atol=1e-5)
    assert scored.perplexity == pytest.approx(math.exp(-np.mean(expected)), rel=1e-4)
    assert scored.bits[0] == pytest.approx(-expected[0] / math.log(2), abs=1e-4)


def test_a_model_with_a_window_scores_as_in_transformers(tokenizer, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is in the extra `dev`")
    shape = {"vocab_size": 280, "context_length": 48, "layers": 2, "width": 32, "heads": 4}
    config = MistralConfig(**shape, key_value_heads=2, mlp_width=48, sliding_window=6)
    model = peers.random_model(config)
    scored = surprisal.score_text(model, tokenizer, TEXT)
    ids = torch.tensor([[279, *tokenizer.encode(TEXT).ids]])
    assert ids.shape[1] > 2 * config.sliding_window
    with torch.no_grad():
        logits = peers.make_peer(model, tmp_path)(ids).logits
    expected = logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    np.testing.assert_allclose(scored.log_probabilities, expected, atol=1e-5)


def test_a_text_is_scored_after_all_that_the_tokenizer_puts_before_it(model, tokenizer):
    adding = Tokenizer.from_str(tokenizer.to_str())
    adding.post_processor = TemplateProcessing(
        single="Ġ a $A E", special_tokens=[("Ġ", 220), ("a", 64), ("E", 279)]
    )
    scored = surprisal.score_text(model, adding, TEXT)
    ids = adding.encode(TEXT).ids[:-1]
    logits = np.asarray(model(np.array([ids])), np.float64)[0]
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [expected[i + 1, token] for i, token in enumerate(ids[2:])]
    assert scored.tokens == tokenizer.encode(TEXT).ids
    np.testing.assert_allclose(scored.log_probabilities, expected, atol=1e-5)


def test_pieces_make_the_text_whole_characters_only(model, tokenizer):
    plain = train_tokenizer(iter(["nothing of the kind"] * 9), vocab_size=264)
    for words in (tokenizer, plain):
        scored = surprisal.ScoredText(surprisal._pieces(words, words.encode(TEXT).ids), [], [])
        assert "".join(scored.pieces) == TEXT


def test_the_page_escapes_and_colours(model, tokenizer):
    scored = surprisal.ScoredText(["a", " <b>", "c"], [1, 2, 3], [-0.1, -4.0, -12.0])
    page = surprisal.html_page([scored], title="x & y")
    assert ' <span style="background:#ffd98a" title="probability 1.8%, 5.8 bits">&lt;b&gt;<' in page
    assert "x &amp; y" in page
    assert [surprisal.colour(bits) for bits in (0, 1.9, 2, 6, 99)] == [
        None, None, "#fff3c4", "#ffd98a", "#ff7f6b",
    ]  # fmt: skip
    assert '<span title="probability 90.5%, 0.1 bits">a<' in page
    assert '<span style="background:#ff7f6b" title="probability 1 in 162,755, 17.3 bits">c<' in page
    assert '<span style="background:#ffd98a">5+ (1 in 32)<' in page


def test_the_terminal_shows_every_token(tokenizer):
    scored = surprisal.ScoredText(["calm", " [red]"], [1, 2], [-0.1, -12.0])
    console = Console(width=80, record=True, file=io.StringIO(), force_terminal=True)
    console.print(surprisal.coloured(scored))
    assert console.export_text().strip() == "calm [red]"


@pytest.mark.parametrize(
    ("text", "message"), [("", "got an empty text"), ("z" * 60, "expected at most 47")]
)
def test_invalid_texts_are_refused(model, tokenizer, text, message):
    with pytest.raises(ValueError, match=message):
        surprisal.score_text(model, tokenizer, text)


def test_ids_that_the_model_does_not_have_are_refused(tokenizer):
    small = GPT2Config(vocab_size=100, context_length=48, layers=1, width=32, heads=2)
    with pytest.raises(ValueError, match="expected 0 to 99"):
        surprisal.score_text(GPT2(small, key=jax.random.key(0)), tokenizer, TEXT)
