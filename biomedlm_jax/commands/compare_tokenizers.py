"""Compare tokenizers on the same text: how many tokens they need, which terms they keep whole.

    biomedlm compare-tokenizers --tokenizer=ours=tokenizer/ --tokenizer=gpt2=gpt2/ --input=test/

A tokenizer is a directory with tokenizer.json, with vocab.json and merges.txt, or with encoder.json
and vocab.bpe. A term is whole if it is one token after a space.
"""

import dataclasses
import itertools
import json
from pathlib import Path

import absl.flags as absl
from rich.console import Console
from rich.table import Table

from biomedlm_jax.corpus import documents, tokenizer

FLAGS = absl.FlagValues()
absl.DEFINE_multi_string("tokenizer", None, "NAME=PATH, one flag each", FLAGS, required=True)
absl.DEFINE_multi_string(
    "input",
    None,
    "files, directories or globs, by commas or in repeated flags; " + documents.KNOWN,
    flag_values=FLAGS,
    required=True,
)
absl.DEFINE_string("text_field", "text", "text of a JSON line: meta.text, title,body", FLAGS)
absl.DEFINE_enum("on_error", "raise", documents.ON_ERROR, "stop at a bad line or skip it", FLAGS)
absl.DEFINE_integer("max_documents", None, "documents to read at most", 1, flag_values=FLAGS)
absl.DEFINE_list("terms", list(tokenizer.TERMS), "words to look at, by commas", FLAGS)
absl.DEFINE_string("json", None, "file to write the figures to", FLAGS)


def run(flags: absl.FlagValues) -> None:
    """Load, compare, and show two tables: the sizes, and what becomes of each term."""
    named = dict(value.split("=", 1) for value in flags.tokenizer if "=" in value)
    if len(named) < len(flags.tokenizer):
        got = " ".join(f"--tokenizer={value}" for value in flags.tokenizer)
        raise ValueError(f"got {got}; give each tokenizer as NAME=PATH under a name of its own")
    tokenizers = {name: tokenizer.load_tokenizer(path) for name, path in named.items()}
    paths = [path for paths in flags.input for path in paths.split(",")]
    read = documents.read_documents(paths, text_field=flags.text_field, on_error=flags.on_error)
    texts = (document.text for document in itertools.islice(read, flags.max_documents))
    reports = tokenizer.compare_tokenizers(tokenizers, texts, flags.terms)
    sizes = Table("tokenizer", "entries", "tokens", "of the first", "bytes/token", "whole terms")
    for r in reports:
        share, whole = r.tokens / reports[0].tokens, f"{len(r.whole_terms)} of {len(r.terms)}"
        numbers = f"{r.vocab_size:,}", f"{r.tokens:,}", f"{share:.1%}", f"{r.bytes_per_token:.3f}"
        sizes.add_row(r.name, *numbers, whole)
    terms = Table("term", *(r.name for r in reports))
    for term in flags.terms:
        terms.add_row(term, *("/".join(r.terms[term]) for r in reports))
    Console(markup=False, emoji=False).print(sizes, terms)
    if flags.json:
        figures = json.dumps([dataclasses.asdict(r) for r in reports], indent=2)
        Path(flags.json).write_text(figures + "\n")
