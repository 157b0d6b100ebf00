"""Compare tokenizers on the same text: bytes per token and whole terms.

    biomedlm compare-tokenizers --tokenizer=ours=tokenizer/ --tokenizer=gpt2=gpt2/ --input=test/

A tokenizer is a directory with tokenizer.json, with vocab.json and merges.txt, or with encoder.json
and vocab.bpe. Terms are tokenised after a space.
"""

import dataclasses
import itertools
import sys

from rich.console import Console
from rich.table import Table

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.corpus import comparison
from biomedlm_jax.corpus.tokenizer import load_tokenizer
from biomedlm_jax.errors import InputError

FLAGS = Flags("input", "json")
NAMED = "Name in the tables and path of a tokenizer, NAME=PATH"
FLAGS.define("tokenizer", None, NAMED, repeated=True, required=True)
FLAGS.define("max_documents", None, "Documents to read at most.", kind=int, least=1)
FLAGS.define("terms", list(comparison.TERMS), "Terms to tokenise, separated by commas.")


def run(options: Flags) -> None:
    """Compare, and print a table of the sizes and one of the terms."""
    named = dict(value.split("=", 1) for value in options.tokenizer if "=" in value)
    if len(named) < len(options.tokenizer):
        got = " ".join(f"--tokenizer={value}" for value in options.tokenizer)
        raise InputError(f"got {got}; give each tokenizer as NAME=PATH with a different name")
    tokenizers = {name: load_tokenizer(path) for name, path in named.items()}
    documents = itertools.islice(options.read_input(), options.max_documents)
    texts = (document.text for document in documents)
    reports = comparison.compare_tokenizers(tokenizers, texts, options.terms)
    sizes = Table("tokenizer", "entries", "tokens", "of the first", "bytes/token", "whole terms")
    for r in reports:
        share, whole = r.tokens / reports[0].tokens, f"{len(r.whole_terms)} of {len(r.terms)}"
        numbers = f"{r.vocab_size:,}", f"{r.tokens:,}", f"{share:.1%}", f"{r.bytes_per_token:.3f}"
        sizes.add_row(r.name, *numbers, whole)
    terms = Table("term", *(r.name for r in reports))
    for term in options.terms:
        terms.add_row(term, *("/".join(r.terms[term]) for r in reports))
    width = None if sys.stdout.isatty() else 10_000  # a pipe or a file has no width
    Console(markup=False, emoji=False, width=width).print(sizes, terms)
    options.write_json([dataclasses.asdict(r) for r in reports])
