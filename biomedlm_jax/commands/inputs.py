"""The flags of commands that read a corpus."""

from collections.abc import Iterator
from pathlib import Path

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.corpus import documents


def define_flags(values: Flags) -> None:
    """Add the flags of the input files to a command's flags."""
    what = f"Files, directories or globs, separated by commas. {documents.KNOWN}"
    values.define("input", None, what, repeated=True, required=True)
    text = "Field of a JSON line with the text; meta.text is nested, title,abstract are joined."
    values.define("text_field", "text", text)
    values.define("subsets", [], "Keep only JSON lines of these subsets, separated by commas.")
    values.define("subset_field", "meta.pile_set_name", "Field of a JSON line with its subset.")
    bad = "Stop at a bad line, or skip it."
    values.define("on_error", "raise", bad, choices=documents.ON_ERROR)


def input_paths(options: Flags) -> list[Path]:
    """List the files of --input."""
    return documents.input_files([p for paths in options.input for p in paths.split(",")])


def read_input(
    options: Flags, skipped: documents.Skipped | None = None
) -> Iterator[documents.Document]:
    """Return the documents of --input; `skipped` counts what is left out."""
    return documents.read_documents(
        input_paths(options),
        skipped=skipped,
        **options.pick("text_field", "subsets", "subset_field", "on_error"),
    )
