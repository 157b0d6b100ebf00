"""Scoring: how probable each token of a text is, and a coloured view of the surprising ones."""

import contextlib
import dataclasses
import html
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from rich.text import Text
from tokenizers import Tokenizer

from biomedlm_jax import mesh as meshes
from biomedlm_jax.generation.decoder import mesh_of
from biomedlm_jax.generation.decoding import bucket
from biomedlm_jax.model.gpt import GPT

# Bits of surprise from which a token has the ground: calm to alarming, light under black letters.
COLOURS = ((2, "#fff3c4"), (5, "#ffd98a"), (9, "#ffae70"), (13, "#ff7f6b"))


@dataclasses.dataclass(frozen=True)
class Scored:
    """A text's tokens and their log-probabilities in nats, each given all tokens before it."""

    pieces: list[str]  # the text of each token; bytes of an unfinished character join the next
    tokens: list[int]
    logprobs: list[float]

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability."""
        return math.exp(-sum(self.logprobs) / len(self.logprobs))

    @property
    def bits(self) -> list[float]:
        """Surprise of each token, -log2 of its probability."""
        return [-p / math.log(2) for p in self.logprobs]


def score_text(model: GPT, tokenizer: Tokenizer, text: str) -> Scored:
    """Score a text that follows the end of text, as BioMedLM's training texts do.

    Raises ValueError for an empty text or one that does not fit the model's positions.
    """
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    if not tokens:
        raise ValueError("got an empty text; there is nothing to score")
    if len(tokens) > model.config.context_length - 1:
        raise ValueError(
            f"the text has {len(tokens)} tokens; after the end of text "
            f"{model.config.context_length - 1} fit the model's positions: cut it"
        )
    logprobs = token_logprobs(model, [[model.config.eos_token_id, *tokens]])[0]
    return Scored(_pieces(tokenizer, tokens), tokens, logprobs)


def token_logprobs(model: GPT, texts: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-probabilities in nats of each text's tokens 1, 2, .. given those before them.

    Raises ValueError for ids or lengths that the model has not.
    """
    config, mesh = model.config, mesh_of(model)
    rows = 1 if mesh is None else meshes.batch_shards(mesh)  # all but the first of zeros
    found = []
    for ids in texts:
        if not ids or min(ids) < 0 or max(ids) >= config.vocab_size:
            raise ValueError(f"got ids {ids[:4]}..; the model's are 0 to {config.vocab_size - 1}")
        if len(ids) > config.context_length:
            raise ValueError(
                f"got {len(ids)} tokens; the model has {config.context_length} positions: cut them"
            )
        size = min(bucket(len(ids)), config.context_length)
        padded_BxL = np.zeros((rows, size), np.int32)
        padded_BxL[0, : len(ids)] = ids
        with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
            logprobs_L = np.asarray(_logprobs(model, padded_BxL))[0]
        found.append(logprobs_L[: len(ids) - 1].tolist())
    return found


@jax.jit
def _logprobs(model: GPT, tokens_BxL: jax.Array) -> jax.Array:
    logits_BxLxV = model(meshes.constrain(tokens_BxL, "batch", "length"))[:, :-1]
    chosen_BxL = jnp.take_along_axis(logits_BxLxV, tokens_BxL[:, 1:, None], axis=-1)[..., 0]
    return chosen_BxL - jax.nn.logsumexp(logits_BxLxV, axis=-1)


def _pieces(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    """The text that each token adds."""
    pieces, done = [], 0
    for end in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[done:end], skip_special_tokens=False)
        if text.endswith("\ufffd") and end < len(tokens):
            pieces.append("")
            continue
        pieces.append(text)
        done = end
    return pieces


def colour(bits: float) -> str | None:
    """The ground of a token of so many bits; None for one that is no surprise."""
    return next((ground for least, ground in reversed(COLOURS) if bits >= least), None)


def coloured(scored: Scored) -> Text:
    """The text for a terminal, surprising tokens on a warmer ground."""
    text = Text()
    for piece, bits in zip(scored.pieces, scored.bits, strict=True):
        ground = colour(bits)
        text.append(piece, style=f"black on {ground}" if ground else "")
    return text


def legend() -> Text:
    """What the colours mean."""
    text = Text("bits of surprise: ")
    for least, ground in COLOURS:
        text.append(f" {_key(least)} ", style=f"black on {ground}")
        text.append(" ")
    return text


def page(scored: Sequence[Scored], *, title: str) -> str:
    """An HTML page of scored texts; hovering over a token shows its probability.

    It has the letters and the ground of what it stands in, a notebook or a page, light or dark.
    """
    sections = []
    for one in scored:
        spans = "".join(
            _span(piece, bits, hint=_hint(logprob, bits))
            for piece, logprob, bits in zip(one.pieces, one.logprobs, one.bits, strict=True)
        )
        facts = (
            f"{len(one.tokens):,} tokens, perplexity {one.perplexity:,.1f}, "
            f"{np.mean(one.bits):.2f} bits a token"
        )
        sections.append(f'<p class="facts">{facts}</p>\n<p class="text">{spans}</p>')
    keys = "".join(f"<li>{_span(_key(least), least)}</li>" for least, _ in COLOURS)
    return _PAGE.format(
        title=html.escape(title), keys=keys, least=COLOURS[0][0], sections="\n".join(sections)
    )


def _span(text: str, bits: float, *, hint: str = "") -> str:
    # The space before a word stays without ground, which else would hang over the line's end.
    space = text[: len(text) - len(text.lstrip(" "))] if text.strip(" ") else ""
    text, ground = html.escape(text[len(space) :]), colour(bits)
    style = f' style="background:{ground}"' if ground else ""
    title = f' title="{hint}"' if hint else ""
    return f"{space}<span{style}{title}>{text}</span>"


def _key(least: int) -> str:
    return f"{least}+ (1 in {2**least:,})"


def _hint(logprob: float, bits: float) -> str:
    p = math.exp(logprob)
    said = f"{p:.1%}" if p >= 0.01 else f"1 in {math.exp(min(-logprob, 700)):,.0f}"
    return f"probability {said}, {bits:.1f} bits"


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
.surprise {{ max-width: 44rem; margin: 2rem auto; padding: 0 1rem;
  font: 16px/1.5 system-ui, sans-serif; }}
.surprise h1 {{ font-size: 1.4rem; margin: 0 0 .5rem; }}
.surprise p, .surprise ul {{ margin: .4rem 0; }}
.surprise ul {{ list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .4rem; }}
.surprise li, .surprise .facts {{ font-size: .85rem; }}
.surprise .facts {{ margin-top: 1.5rem; opacity: .75; }}
.surprise .text {{ font: 1.15rem/1.75 Georgia, serif; white-space: pre-wrap;
  overflow-wrap: anywhere; }}
.surprise span {{ border-radius: 3px; padding: .1em 0; }}
.surprise li span {{ padding: .1em .4em; }}
.surprise span[style] {{ color: #1a1a1a; }}
.surprise .text span:hover {{ outline: 2px solid currentColor; }}
</style>
<div class="surprise">
<h1>{title}</h1>
<p>The warmer a token's ground, the more it surprised the model that read all tokens before it.
Bits of surprise, and the probability that they stand for:</p>
<ul>{keys}</ul>
<p>Less than {least} bits have no colour. Hover over a token for its probability.</p>
{sections}
</div>
</html>
"""
