"""InputError: the one exception for what a person must change, and the exit codes of a command.

A launcher restarts a command that ended with another code than OK, BAD_INPUT or INTERRUPTED.
"""

OK = 0
FAILED = 1  # a full disk, a lost connection, a hang, a defect: a restart may help
BAD_INPUT = 2  # input, settings or damaged files: a restart cannot help
INTERRUPTED = 130  # Ctrl-C; other signals end with 128 plus their number, as in a shell

KEPT = "kept: "  # begins a note of an exception, which a command prints: what the next one uses

LONGEST = 2000  # characters of a message; the middle of a longer one is left out


def one_line(text: str) -> str:
    """Return a text as one printable line of at most `LONGEST` characters.

    Line ends, terminal escapes and half surrogates, which names and values in files can have, are
    escaped as in Python.
    """
    half = LONGEST // 2 - 3
    text = text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def counted(n: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, whose plural is `noun` and "s" unless it is given.

    "1 question", "1,273 questions".
    """
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"


class InputError(ValueError):
    """Input, settings or files that a person must change; the message is one line."""

    def __str__(self) -> str:
        """Return the message as `one_line`."""
        return one_line(super().__str__())
