"""InputError: the one exception for what a person must change, and the exit codes of a command.

A launcher restarts a command that ended with another code than OK, BAD_INPUT or INTERRUPTED.
"""

OK = 0
FAILED = 1  # a full disk, a lost connection, a hang, a defect: a restart may help
BAD_INPUT = 2  # input, settings or damaged files: a restart cannot help
INTERRUPTED = 130  # Ctrl-C; other signals end with 128 plus their number, as in a shell


class InputError(ValueError):
    """Input, settings or files that a person must change; the message is one line."""
