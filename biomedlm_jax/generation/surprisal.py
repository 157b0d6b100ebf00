"""Surprisal: how improbable each token of a text is, for the terminal and as an HTML page."""

import dataclasses
import html
import math
import string
from collections.abc import Sequence
from importlib import resources

import jax
import numpy as np
from rich.text import Text
from tokenizers import Tokenizer

from biomedlm_jax import mesh as meshes
from biomedlm_jax.corpus.tokenizer import prefix_ids, prefix_token_id
from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.generation.decoding import bucket, on_mesh
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
    """Score a text after what the tokenizer puts before it, else after its bos or eos token.

    Raises InputError for an empty text, or ids or a length that the model does not have.
    """
    config = model.config
    prefix = prefix_ids(tokenizer) or [prefix_token_id(tokenizer, config.bos_token_id)]
    ids = prefix + tokenizer.encode(text, add_special_tokens=False).ids
    first, size, room = len(prefix), len(ids) - len(prefix), config.context_length - len(prefix)
    if not size:
        raise InputError("got an empty text; expected at least one token to score")
    if size > room:
        raise InputError(
            f"got a text of {counted(size, 'token')}; expected at most {room}: shorten it"
        )
    if max(ids) >= config.vocab_size:
        raise InputError(f"got token id {max(ids)}; expected 0 to {config.vocab_size - 1}")
    with on_mesh(model) as mesh:
        rows = 1 if mesh is None else meshes.batch_shards(mesh)  # all but the first are padding
        padded_BxL = np.zeros((rows, min(bucket(len(ids)), config.context_length)), np.int32)
        padded_BxL[0, : len(ids)] = ids
        scores = np.asarray(_log_probabilities(model, padded_BxL))[0, first - 1 : len(ids) - 1]
    return ScoredText(_pieces(tokenizer, ids[first:]), ids[first:], scores.tolist())


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
    styles = [f"black on {colour(bits)}" if colour(bits) else "" for bits in scored.bits]
    return Text.assemble(*zip(scored.pieces, styles, strict=True))


def legend() -> Text:
    """Return the meaning of the colours, for a terminal."""
    text = Text("bits of surprisal: ")
    for least, background in COLOURS:
        text.append(f" {_key(least)} ", style=f"black on {background}").append(" ")
    return text


def html_page(texts: Sequence[ScoredText], *, title: str) -> str:
    """Return an HTML page of scored texts; hovering over a token shows its probability."""
    body = ""
    for text in texts:
        body += (
            f'<p class="facts">{counted(len(text.tokens), "token")}, '
            f"perplexity {text.perplexity:,.1f}, {np.mean(text.bits):.2f} bits/token</p>\n"
            '<p class="text">'
        )
        for piece, bits in zip(text.pieces, text.bits, strict=True):
            odds = f"{2**-bits:.1%}" if 2**-bits >= 0.01 else f"1 in {2 ** min(bits, 1000):,.0f}"
            body += _span(piece, bits, f' title="probability {odds}, {bits:.1f} bits"')
        body += "</p>\n"
    keys = "".join(f"<li>{_span(_key(least), least)}</li>" for least, _ in COLOURS)
    file = resources.files("biomedlm_jax.generation") / "surprisal.html"
    facts = {"keys": keys, "least": COLOURS[0][0], "body": body.rstrip()}
    return string.Template(file.read_text("utf-8")).substitute(title=html.escape(title), **facts)


def _span(text: str, bits: float, title: str = "") -> str:
    # The space before a word has no background, which would stand out at the end of a line.
    word, background = text.lstrip(" ") or text, colour(bits)
    style = f' style="background:{background}"' if background else ""
    return f"{text.removesuffix(word)}<span{style}{title}>{html.escape(word)}</span>"


def _key(least: int) -> str:
    return f"{least}+ (1 in {2**least:,})"
