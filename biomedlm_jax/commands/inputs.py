"""The flags of commands that read a corpus."""

import functools
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from biomedlm_jax.commands import shared_flags
from biomedlm_jax.corpus import documents


def define_flags(values: flags.FlagValues) -> None:
    """Add the flags of the input files to a command's flags."""
    define = functools.partial(shared_flags.define, values)
    what = f"Files, directories or globs, separated by commas; repeatable. {documents.KNOWN}."
    define("input", None, what, repeated=True, required=True)
    text = "Field of a JSON line with the text; meta.text is nested, title,abstract are joined."
    define("text_field", "text", text)
    define("subsets", [], "Keep only JSON lines of these subsets, separated by commas.")
    define("subset_field", "meta.pile_set_name", "Field of a JSON line with its subset.")
    define("on_error", "raise", "Stop at a bad line, or skip it.", choices=documents.ON_ERROR)


def input_paths(options: flags.FlagValues) -> list[Path]:
    """List the files of --input."""
    return documents.input_files([p for paths in options.input for p in paths.split(",")])


def read_input(
    options: flags.FlagValues, skipped: documents.Skipped | None = None
) -> Iterator[documents.Document]:
    """Return the documents of --input; `skipped` counts what is left out."""
    return documents.read_documents(
        input_paths(options),
        text_field=options.text_field,
        subsets=options.subsets,
        subset_field=options.subset_field,
        on_error=options.on_error,
        skipped=skipped,
    )
