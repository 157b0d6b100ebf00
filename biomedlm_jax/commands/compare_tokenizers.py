"""Compare tokenizers on the same texts: lengths, whole words, changed texts.

    biomedlm compare-tokenizers --tokenizer=ours=tokenizer/ --tokenizer=gpt2=gpt2/ --input=test/
    biomedlm compare-tokenizers --tokenizer=bert=bert/ --tokenizer=llama=llama/ --input=test/ \\
        --term_list=vaccines=vaccines.txt --plot=vaccines.png --json=vaccines.json

A tokenizer of any kind (BPE, WordPiece, Unigram) is a directory with tokenizer.json, with
vocab.json and merges.txt, or with encoder.json and vocab.bpe. A word is what stands between white
space, without punctuation at its ends; it is whole if one token covers it. Terms follow a space.
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.corpus import comparison, round_trips, term_lists
from biomedlm_jax.corpus.tokenizer import load_tokenizer
from biomedlm_jax.errors import InputError

FLAGS = Flags("input", "json")
NAMED = "Name in the table and path of a tokenizer, NAME=PATH"
FLAGS.define("tokenizer", None, NAMED, repeated=True, required=True)
FLAGS.define("max_documents", None, "Documents to read at most.", kind=int, least=1)
TERMS = "Terms to split, separated by commas. Default: those of the table in BioMedLM's paper."
FLAGS.define("terms", [], TERMS)
LISTS = (
    "NAME=FILE, a list of terms, one a line. Default: 40 terms each of "
    f"{', '.join(term_lists.NAMES)}"
)
FLAGS.define("term_list", None, LISTS, repeated=True)
FLAGS.define("plot", None, "PNG file to draw the lengths and the shares of whole words to.")


def run(options: Flags) -> None:
    """Compare, and print a table of the figures and the pieces of the terms."""
    named = _named("tokenizer", options.tokenizer)
    lists = {n: term_lists.read_terms(f) for n, f in _named("term_list", options.term_list).items()}
    if options.plot and (Path(options.plot).suffix != ".png" or Path(options.plot).exists()):
        raise InputError(f"got --plot={options.plot}; expected a new file that ends in .png")
    published = term_lists.published_splits()
    terms = options.terms or [*published.splits]
    tokenizers = {name: load_tokenizer(path) for name, path in named.items()}
    documents = itertools.islice(options.read_input(), options.max_documents)
    texts = (document.text for document in documents)
    reports = comparison.compare_tokenizers(
        tokenizers, texts, terms, lists or term_lists.builtin_lists()
    )
    width = None if sys.stdout.isatty() else 10_000  # a pipe or a file has no width
    console = Console(markup=False, emoji=False, width=width)
    console.print(_table(reports, published))
    for report in reports:
        if report.round_trips.changed:
            console.print(f"{report.name} changes: {'; '.join(report.round_trips.changed)}")
    if options.plot:
        from biomedlm_jax.corpus.comparison_plot import plot_comparison

        plot_comparison(reports, options.plot)
        console.print(f"wrote {options.plot}")
    figures = [dataclasses.asdict(report) for report in reports]
    options.write_json({"tokenizers": figures, "published_splits": published._asdict()})


def _named(flag: str, values: Sequence[str] | None) -> dict[str, str]:
    """Return {NAME: PATH} for values NAME=PATH."""
    named = dict(value.split("=", 1) for value in values or () if "=" in value)
    if len(named) < len(values or ()) or not all(named) or any(map(comparison.HALF.search, named)):
        got = " ".join(f"--{flag}={value}" for value in values or ())
        raise InputError(f"got {got}; give each {flag} as NAME=PATH with a different name in UTF-8")
    return named


def _table(
    reports: Sequence[comparison.TokenizerReport], published: term_lists.PublishedSplits
) -> Table:
    """Return figures and pieces in rows, a column for each tokenizer and one for the paper's."""
    first = reports[0]
    extra = any(published.splits.get(term) for term in first.terms)
    column = f"{published.tokenizer}, published" if extra else ""
    table = Table("", *(report.name for report in reports), *([column] if extra else []))

    def add(label: str, cells: Sequence[str], *more: str) -> None:
        table.add_row(label, *cells, *more)

    add("entries", [f"{r.vocab_size:,}" for r in reports])
    share = [f" ({r.tokens / first.tokens:.1%})" if r is not first else "" for r in reports]
    add(
        f"tokens of {first.texts:,} texts, {first.bytes:,} bytes",
        [f"{r.tokens:,}{of_first}" for r, of_first in zip(reports, share, strict=True)],
    )
    add("bytes per token", [f"{r.bytes_per_token:.3f}" for r in reports])
    add(f"tokens per word ({first.words:,} words)", [f"{r.tokens_per_word:.3f}" for r in reports])
    add("whole words of the texts", [f"{r.whole_words:.1%}" for r in reports])
    for name, of_first in first.lists.items():
        ours = [r.lists[name] for r in reports]
        cells = [f"{o.whole_words / o.words:.0%}, {o.tokens / o.words:.2f} tokens" for o in ours]
        add(f"whole words of {name} ({of_first.words})", cells)
    table.add_section()
    add("texts that encoding changes", [f"{r.changed_texts:,} of {r.texts:,}" for r in reports])
    tests = [r.round_trips for r in reports]
    add("exotic texts that survive", [f"{t.survived} of {t.texts}" for t in tests])
    add("bytes with an entry", [f"{t.byte_entries} of 256" for t in tests])
    all_bytes = len(round_trips.UTF8_BYTES)
    kept = [f"{all_bytes - len(t.lost_bytes)} of {all_bytes}" for t in tests]
    add("bytes of UTF-8 that survive", kept)
    table.add_section()
    for term in first.terms:
        pieces = published.splits.get(term) or ()
        add(term, ["/".join(r.terms[term]) for r in reports], *(["/".join(pieces)] * extra))
    add("terms in one token a word", [f"{len(r.whole_terms)} of {len(r.terms)}" for r in reports])
    return table
