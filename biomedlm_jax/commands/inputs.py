"""The flags of commands that read a corpus."""

from collections.abc import Iterator
from pathlib import Path

from absl import flags

from biomedlm_jax.corpus import documents


def define_flags(values: flags.FlagValues) -> None:
    """Add the flags of the input files to a command's flags."""
    what = f"Files, directories or globs, separated by commas; repeatable. {documents.KNOWN}."
    flags.DEFINE_multi_string("input", None, what, values, required=True)
    text = (
        "Field of a JSON line with the text; meta.text is nested, title,abstract,body are joined."
    )
    flags.DEFINE_string("text_field", "text", text, values)
    flags.DEFINE_list("subsets", [], "Keep only JSON lines of these subsets.", values)
    subset = "Field of a JSON line with its subset."
    flags.DEFINE_string("subset_field", "meta.pile_set_name", subset, values)
    bad = "Stop at a bad line, or skip it."
    flags.DEFINE_enum("on_error", "raise", documents.ON_ERROR, bad, values)


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
