"""Surprisal: how improbable each token of a text is, for the terminal and as an HTML page."""

import contextlib
import dataclasses
import html
import math
from collections.abc import Sequence

import jax
import numpy as np
from rich.text import Text
from tokenizers import Tokenizer

from biomedlm_jax import mesh as meshes
from biomedlm_jax.generation.decoder import mesh_of
from biomedlm_jax.generation.decoding import bucket
from biomedlm_jax.model.language_model import LanguageModel
from biomedlm_jax.training.loss import token_log_probabilities

# Surprisal in bits from which a token has this background: light, under black letters.
COLOURS = ((2, "#fff3c4"), (5, "#ffd98a"), (9, "#ffae70"), (13, "#ff7f6b"))


@dataclasses.dataclass(frozen=True)
class ScoredText:
    """A text's tokens and their log-probabilities in nats, each given all tokens before it."""

    pieces: list[str]  # the text of each token; bytes of an unfinished character join the next
    tokens: list[int]
    log_probabilities: list[float]

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability."""
        return math.exp(-sum(self.log_probabilities) / len(self.log_probabilities))

    @property
    def bits(self) -> list[float]:
        """Surprisal of each token: -log2 of its probability."""
        return [-p / math.log(2) for p in self.log_probabilities]


def score_text(model: LanguageModel, tokenizer: Tokenizer, text: str) -> ScoredText:
    """Score a text after the end-of-text token, which begins every text in training.

    Raises ValueError for an empty text or one that does not fit the model's positions.
    """
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    if not tokens:
        raise ValueError("got an empty text; expected at least one token to score")
    room = model.config.context_length - 1
    if len(tokens) > room:
        raise ValueError(f"got a text of {len(tokens)} tokens; expected at most {room}: shorten it")
    scores = log_probabilities(model, [[model.config.eos_token_id, *tokens]])[0]
    return ScoredText(_pieces(tokenizer, tokens), tokens, scores)


def log_probabilities(model: LanguageModel, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the log-probabilities in nats of each text's tokens 1, 2, .. given those before them.

    Raises ValueError for ids or lengths that the model does not have.
    """
    config, mesh = model.config, mesh_of(model)
    rows = 1 if mesh is None else meshes.batch_shards(mesh)  # all but the first are padding
    scores = []
    for ids in texts:
        if not ids or min(ids) < 0 or max(ids) >= config.vocab_size:
            raise ValueError(f"got ids {ids[:4]}..; expected 0 to {config.vocab_size - 1}")
        if len(ids) > config.context_length:
            raise ValueError(
                f"got {len(ids)} tokens; expected at most the model's {config.context_length} "
                "positions"
            )
        padded_BxL = np.zeros((rows, min(bucket(len(ids)), config.context_length)), np.int32)
        padded_BxL[0, : len(ids)] = ids
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            scores_L = np.asarray(_log_probabilities(model, padded_BxL))[0]
        scores.append(scores_L[: len(ids) - 1].tolist())
    return scores


@jax.jit
def _log_probabilities(model: LanguageModel, tokens_BxL: jax.Array) -> jax.Array:
    x_BxLxD = model.hidden(meshes.constrain(tokens_BxL, "batch", "length"))
    return token_log_probabilities(model, x_BxLxD[:, :-1], tokens_BxL[:, 1:])[0]


def _pieces(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    """Return the text that each token adds."""
    pieces, done = [], 0
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[done:end], skip_special_tokens=False)
        unfinished = text.endswith("\ufffd") and end < len(tokens)
        pieces.append("" if unfinished else text)
        done = done if unfinished else end
    return pieces


def colour(bits: float) -> str | None:
    """Return the background of a token of so many bits; None below the first colour."""
    return next((colour for least, colour in reversed(COLOURS) if bits >= least), None)


def coloured(scored: ScoredText) -> Text:
    """Return the text for a terminal, surprising tokens on a warmer background."""
    text = Text()
    for piece, bits in zip(scored.pieces, scored.bits, strict=True):
        background = colour(bits)
        text.append(piece, style=f"black on {background}" if background else "")
    return text


def legend() -> Text:
    """Return the meaning of the colours, for a terminal."""
    text = Text("bits of surprisal: ")
    for least, background in COLOURS:
        text.append(f" {_key(least)} ", style=f"black on {background}").append(" ")
    return text


def page(texts: Sequence[ScoredText], *, title: str) -> str:
    """Return an HTML page of scored texts; hovering over a token shows its probability.

    Letters and background are those of the surroundings (a notebook or a page), light or dark.
    """
    sections = []
    for text in texts:
        spans = "".join(
            _span(piece, bits, hint=_hint(score, bits))
            for piece, score, bits in zip(
                text.pieces, text.log_probabilities, text.bits, strict=True
            )
        )
        facts = (
            f"{len(text.tokens):,} tokens, perplexity {text.perplexity:,.1f}, "
            f"{np.mean(text.bits):.2f} bits/token"
        )
        sections.append(f'<p class="facts">{facts}</p>\n<p class="text">{spans}</p>')
    keys = "".join(f"<li>{_span(_key(least), least)}</li>" for least, _ in COLOURS)
    return _PAGE.format(
        title=html.escape(title), keys=keys, least=COLOURS[0][0], sections="\n".join(sections)
    )


def _span(text: str, bits: float, *, hint: str = "") -> str:
    # The space before a word has no background, which would stand out at the end of a line.
    space = text[: len(text) - len(text.lstrip(" "))] if text.strip(" ") else ""
    text, background = html.escape(text[len(space) :]), colour(bits)
    style = f' style="background:{background}"' if background else ""
    title = f' title="{hint}"' if hint else ""
    return f"{space}<span{style}{title}>{text}</span>"


def _key(least: int) -> str:
    return f"{least}+ (1 in {2**least:,})"


def _hint(log_probability: float, bits: float) -> str:
    p = math.exp(log_probability)
    rounded = f"{p:.1%}" if p >= 0.01 else f"1 in {math.exp(min(-log_probability, 700)):,.0f}"
    return f"probability {rounded}, {bits:.1f} bits"


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
.surprisal {{ max-width: 44rem; margin: 2rem auto; font: 16px/1.5 system-ui, sans-serif; }}
.surprisal ul {{ list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .4rem; }}
.surprisal .facts {{ font-size: .85rem; opacity: .75; margin-top: 1.5rem; }}
.surprisal .text {{ font: 1.15rem/1.75 Georgia, serif; white-space: pre-wrap;
  overflow-wrap: anywhere; }}
.surprisal span[style] {{ color: #1a1a1a; border-radius: 3px; padding: .1em 0; }}
</style>
<div class="surprisal">
<h1>{title}</h1>
<p>The warmer a token's background, the less probable it was to the model, given all tokens before
it. Surprisal in bits, and the probability that it stands for:</p>
<ul>{keys}</ul>
<p>Below {least} bits there is no colour. Hover over a token for its probability.</p>
{sections}
</div>
</html>
"""
