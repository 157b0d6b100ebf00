"""Models to decode with, here and in transformers (eager attention), with equal weights."""

import jax
import numpy as np
import optax
import peers
import pytest

from biomedlm_jax.generation.decoder import make_decoder
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.model.llama import LlamaConfig, MistralConfig
from biomedlm_jax.training.loss import next_token_loss

SMALL = {"vocab_size": 61, "context_length": 96, "layers": 2, "width": 32, "heads": 4}
# Rotary positions and grouped heads; a window shorter than most prompts, and one that most answers
# exceed.
GROUPED = {**SMALL, "key_value_heads": 2, "mlp_width": 48, "rope_theta": 500.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_factor": 4.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_original_context_length": 24,
}
PAIRS = {
    "scaled": (0, GPT2Config(**SMALL)),
    "plain": (1, GPT2Config(**SMALL | {"heads": 2}, scale_attn_by_inverse_layer_idx=False)),
    "rotary": (2, LlamaConfig(**GROUPED, **LLAMA3, attention_bias=True, tie_word_embeddings=True)),
    "window": (3, MistralConfig(**GROUPED, sliding_window=7)),
    "late window": (4, MistralConfig(**GROUPED, sliding_window=20)),
}


def random_model(*, seed: int = 0, deviation: float = 0.3, **fields) -> GPT2:
    """A GPT-2 of large random weights, whose best and second-best tokens lie far apart."""
    config = GPT2Config(**{**SMALL, **fields})
    return peers.random_model(config, seed=seed, deviation=deviation)


class Peer:
    """transformers' model of the same weights, and its `generate` on prompts of token ids."""

    def __init__(self, model, folder):
        self.model, self.end = peers.make_peer(model, folder), model.config.eos_token_id

    def generate(self, prompts, *, pad: int = 0, **options):
        """New tokens of each row up to the first end, and the scores of its beams or None."""
        import torch

        width = max(map(len, prompts))
        tokens = [[pad] * (width - len(p)) + list(p) for p in prompts]
        mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
        options = {"eos_token_id": self.end, "pad_token_id": pad, "do_sample": False, **options}
        with torch.no_grad():
            out = self.model.generate(
                torch.tensor(tokens),
                attention_mask=torch.tensor(mask),
                return_dict_in_generate=True,
                output_scores=True,
                **options,
            )
        ends = options["eos_token_id"]
        ends = ends if isinstance(ends, list) else [ends]
        rows = []
        for row in out.sequences[:, width:].tolist():
            first = next((i + 1 for i, t in enumerate(row) if t in ends), len(row))
            rows.append(row[:first])
        scores = getattr(out, "sequences_scores", None)
        return rows, None if scores is None else scores.tolist()


def train(model: GPT2, *, steps: int) -> GPT2:
    """Train on rows that count up from somewhere by 1, 2 or 3, modulo 30, and end."""
    tx = optax.adam(3e-3)

    @jax.jit
    def step(model, moments, tokens):
        loss, grads = jax.value_and_grad(next_token_loss)(model, tokens)
        updates, moments = tx.update(grads, moments)
        return optax.apply_updates(model, updates), moments, loss

    random, moments, losses = np.random.default_rng(0), tx.init(model), []
    for _ in range(steps):
        start, stride, length = random.integers((0, 1, 8), (30, 4, 30), (16, 3)).T[:, :, None]
        place = np.arange(32)
        rows = np.where(place < length, (start + stride * place) % 30, 60)
        model, moments, loss = step(model, moments, rows)
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0], losses[:: steps // 5]
    return model


def prompts_of(*lengths: int, seed: int = 1, vocab_size: int = 60) -> list[list[int]]:
    """Random prompts of these lengths, without the end of text and without id 0, the padding."""
    random = np.random.default_rng(seed)
    return [random.integers(1, vocab_size, n).tolist() for n in lengths]


@pytest.fixture(scope="session", name="prompts_of")
def _prompts_of():
    return prompts_of


@pytest.fixture(scope="session", name="random_model")
def _random_model():
    return random_model


class Pairs(dict):
    """Of each of PAIRS the model, its decoder and its peer, made when they are first needed."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def __missing__(self, name):
        seed, config = PAIRS[name]
        model = peers.random_model(config, seed=seed)
        self[name] = model, make_decoder(model), Peer(model, self.place / name)
        return self[name]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Decoders by name, each with its peer."""
    return Pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A model that was trained to count, with its decoder and its peer."""
    model = train(random_model(deviation=0.1), steps=150)
    return model, make_decoder(model), Peer(model, tmp_path_factory.mktemp("trained"))
