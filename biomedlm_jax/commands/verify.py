"""Verify the files of a run, an export, token rows, a corpus or a tokenizer.

    biomedlm verify RUN
    biomedlm verify EXPORT

Reads every file that SHA256SUMS lists, in the directory and in each checkpoint of a run, prints one
line for each part, and ends with code 2 if one is damaged or incomplete. A run's tokenizer, config
and metrics are compared with its record, too.
"""

from biomedlm_jax.commands.shared_flags import Flags

FLAGS = Flags()
FLAGS.define("directory", None, "Directory to verify; --directory= may be left out.", required=True)
FLAGS.define(
    "write_sums",
    False,
    "Write SHA256SUMS where it is missing: of finished checkpoints and directories that an earlier "
    "version wrote. Their present content counts as whole.",
)
BY_POSITION = "directory"


def run(options: Flags) -> None:
    """Print a line for each part, and raise InputError if one is damaged."""
    from biomedlm_jax.errors import InputError, counted
    from biomedlm_jax.interop.health import check_directory

    parts = check_directory(options.directory, add_sums=options.write_sums)
    damaged = [part for part in parts if part.problems]
    for part in parts:
        print(part.line(), flush=True)
    if damaged:
        names = ", ".join(part.name for part in damaged[:4])
        raise InputError(
            f"{options.directory} is damaged in {counted(len(damaged), 'part')}: {names}"
        )
