"""Draw a comparison of tokenizers."""

import io
from collections.abc import Sequence
from pathlib import Path

from biomedlm_jax.corpus.comparison import TokenizerReport

LONGEST = 18  # characters of a name under a bar


def _label(name: str) -> str:
    """Return a name that fits under a bar and is no formula."""
    short = name if len(name) <= LONGEST else f"{name[:LONGEST]}\u2026"
    return short.replace("$", r"\$")


def plot_comparison(reports: Sequence[TokenizerReport], path: str | Path) -> None:
    """Write a PNG: bytes per token, tokens per word, shares of words that are whole."""
    from matplotlib.figure import Figure  # slow to import

    names = [_label(report.name) for report in reports]
    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=[1, 1, 2.4])
    figures = (
        ("bytes per token (more: shorter)", [report.bytes_per_token for report in reports], 2),
        ("tokens per word (fewer: shorter)", [report.tokens_per_word for report in reports], 2),
    )
    colours = [f"C{number}" for number in range(len(reports))]
    for axis, (title, values, digits) in zip(axes, figures, strict=False):
        bars = axis.bar(range(len(values)), values, color=colours, width=0.7)
        axis.bar_label(bars, fmt=f"%.{digits}f", fontsize=8)
        axis.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize=8)
        axis.set_title(title, fontsize=10)
    groups = ["words of the texts", *reports[0].lists]
    width = 0.8 / len(reports)
    for number, report in enumerate(reports):
        of_lists = [one.whole_words / one.words for one in report.lists.values()]
        shares = [100 * share for share in (report.whole_words, *of_lists)]
        places = [place + (number - (len(reports) - 1) / 2) * width for place in range(len(groups))]
        bars = axes[2].bar(places, shares, width, color=colours[number], label=names[number])
        axes[2].bar_label(bars, fmt="%.0f", fontsize=8)
    axes[2].set_xticks(range(len(groups)), groups, fontsize=8)
    axes[2].set(ylim=(0, 109), yticks=range(0, 101, 20))
    axes[2].set_title("words that are one token (%)", fontsize=10)
    axes[2].legend(fontsize=8)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format="png")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(image.getvalue())
