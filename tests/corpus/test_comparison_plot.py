"""comparison_plot.py: a picture of the figures."""

import matplotlib.image
import numpy as np

from biomedlm_jax.corpus.comparison import compare_tokenizers
from biomedlm_jax.corpus.comparison_plot import plot_comparison
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from tests.corpus.tokenizer_kinds import sentences


def test_the_bars_have_the_heights_of_the_figures(tmp_path):
    texts = sentences()
    tokenizers = {
        "bytes": train_tokenizer(texts, vocab_size=257),
        "$\\frac": train_tokenizer(texts, vocab_size=340),  # no formula
    }
    reports = compare_tokenizers(tokenizers, texts, [], {"two": ["cardiosis", "neuritis"]})
    plot_comparison(reports, tmp_path / "plot.png")
    image = matplotlib.image.imread(tmp_path / "plot.png")[:, :, :3]
    assert image.shape == (600, 1650, 3)
    left = image[:, : image.shape[1] // 5]  # bytes per token
    heights = []
    for colour in ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)):
        same = np.abs(left - np.array(colour) / 255).max(axis=2) < 0.02
        heights.append(same.any(axis=1).sum())
    ratio = reports[1].bytes_per_token / reports[0].bytes_per_token
    assert abs(heights[1] / heights[0] - ratio) < 0.05 * ratio
