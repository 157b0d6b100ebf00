"""`biomedlm COMMAND [--flags]`: the table of commands, each imported only when it is called.

A command is a file in `commands/` with a docstring, its own `FLAGS` (an absl `FlagValues`, so that
`--help` prints that command's flags and no library's), and `run(flags)`. Bad input ends as one line
on standard error and exit code 2; BIOMEDLM_TRACEBACK=1 in the environment raises it instead.
"""

import importlib
import os
import re
import sys
import textwrap

COMMANDS = {
    "quickstart": "pre-train, convert, fine-tune and score on a small invented world, in minutes",
    "train-tokenizer": "train a byte-level BPE tokenizer as published",
    "compare-tokenizers": "compare tokenizers on the same text: bytes per token and whole terms",
    "build-tokens": "tokenise documents and pack them into rows of token ids",
    "pretrain": "pre-train a language model, or resume a run",
    "finetune": "fine-tune a model on questions or on texts, or resume a run",
    "evaluate": "score a model on questions and write a report with confidence intervals",
    "generate": "continue prompts, or print the probability of each token of a text",
    "import-hf": "convert a Hugging Face directory into a run directory",
    "export-hf": "write a run as a Hugging Face directory and check it",
    "verify-hf": "compare a Hugging Face directory's outputs with transformers",
    "plan": "compile a run's step for a TPU pod without one: memory, time, collectives",
    "bench": "measure this library beside PyTorch",
}

# Errors that bad input causes. Any other is a defect of this library and keeps its traceback.
INPUT_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
BUCKETS = ("gs://", "s3://")


def overview() -> str:
    """Return the list of commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = ["biomedlm: BioMedLM in JAX. Usage: biomedlm COMMAND [--flags]", ""]
    lines += [f"  {name:{width}}  {line}" for name, line in COMMANDS.items()]
    return "\n".join([*lines, "", "biomedlm COMMAND --help prints the flags of one command."])


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code: 0 finished, 2 bad input, 130 interrupted."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output (`| head`) has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # the exit code of SIGPIPE in a shell
    return code


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("help", "--help", "-h"):
        print(overview())
        return 0
    name, arguments = argv[0], argv[1:]
    if name == "--version":
        from biomedlm_jax import __version__

        print(f"biomedlm_jax {__version__}")
        return 0
    if name not in COMMANDS:
        return _fail("", f"unknown command {name!r}; the commands are {', '.join(COMMANDS)}")
    command = importlib.import_module(f"biomedlm_jax.commands.{name.replace('-', '_')}")
    if any(argument in ("--help", "-h", "-help") for argument in arguments):
        print(f"{command.__doc__}\n{flags_help(command.FLAGS)}")
        return 0
    try:
        _parse(command, name, arguments)
    except Exception as error:  # absl and ml_collections raise many types while they parse
        return _fail(name, flag_message(error), error)
    try:
        command.run(command.FLAGS)
    except INPUT_ERRORS as error:
        text = str(error)
        if isinstance(error, OSError) and error.strerror and error.filename:
            text = f"{error.strerror}: {error.filename}"
        return _fail(name, text, error)
    except KeyboardInterrupt:
        print(f"biomedlm {name}: interrupted", file=sys.stderr)
        return 130
    return 0


def flags_help(values) -> str:
    """Return a paragraph for each flag of a command: its meaning, choices and default."""
    lines = []
    for name in values:
        flag = values[name]
        if name in ("flagfile", "undefok"):  # absl's own
            continue
        spelled = f"--[no]{name}" if flag.boolean else f"--{name}"
        default = "" if flag.default in (None, [], "") else f" (default: {flag.default_as_str})"
        text = f"{spelled}: {' '.join(flag.help.split())}{default}"
        lines += textwrap.wrap(
            text, 100, initial_indent="  ", subsequent_indent="      ", break_long_words=False
        )
    return "\n".join(lines)


def _parse(command, name: str, arguments: list[str]) -> None:
    from absl import flags

    # A command may take one argument by position: `biomedlm bench train` is --what=train.
    by_position = getattr(command, "BY_POSITION", None)
    if by_position and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{by_position}={arguments[0]}", *arguments[1:]]
    # ml_collections reads the overrides (--config.a.b=1) from sys.argv; grain requires the global
    # flags to be marked as parsed.
    sys.argv = [f"biomedlm {name}", *arguments]
    for argument in arguments:
        flag, _, path = argument.partition("=")
        if path.startswith(BUCKETS):
            raise ValueError(
                f"got {argument}; expected a path of a file system: mount the bucket, and give the "
                "path under which it is mounted"
            )
        if flag.lstrip("-") == "config" and not os.path.isfile(path.partition(":")[0]) and path:
            raise FileNotFoundError(f"no such config file: {path}")
    # Reset what an earlier call in this process set, and the flags of its overrides.
    command.FLAGS.unparse_flags()
    for override in [flag for flag in command.FLAGS if "." in flag]:
        delattr(command.FLAGS, override)
    rest = command.FLAGS(sys.argv)[1:]
    if rest:
        raise ValueError(f"got {rest[0]!r} without a flag; expected --name=value")
    flags.FLAGS(sys.argv[:1])


def flag_message(error: Exception) -> str:
    """Return the message of an error of absl or ml_collections, in this library's words."""
    while isinstance(error, KeyError | AttributeError) and error.args:
        if not isinstance(error.args[0], Exception):
            break
        error = error.args[0]
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "Traceback (most recent call last)" in text:  # raised by the config file
        where = text.partition(": ")[0].removeprefix("flag ")
        reason = text.strip().splitlines()[-1]
        return f"{where}: {reason.removeprefix('ValueError: ')}"
    missing = re.findall(r"flag --(\S+)=None: Flag --\S+ must have a value other than None", text)
    if missing:
        return " ".join(f"--{name} is required." for name in missing)
    unknown = re.fullmatch(r"'?(\w+)'?\s*(?:Did you mean \"(\w+)\" .*)?", text, re.DOTALL)
    if unknown and isinstance(error, KeyError | AttributeError):
        near = f"; did you mean {unknown[2]!r}?" if unknown[2] else ""
        return f"the config has no setting {unknown[1]!r}{near}"
    bad = re.fullmatch(r"flag --([\w.]+)=(.*?): (.*)", text, re.DOTALL)
    for pattern, expected in (
        (r"invalid literal for int.*", "a whole number"),
        (r"could not convert string to float.*", "a number"),
        (r"\('Non-boolean argument.*", "true or false"),
        (r"value should be one of <(.*)>", "one of {}"),
    ):
        if bad and (reason := re.fullmatch(pattern, bad[3], re.DOTALL)):
            choices = ", ".join(reason[1].split("|")) if reason.groups() else ""
            return f"got --{bad[1]}={bad[2]}; expected {expected.format(choices)}"
    if text.startswith("Unknown command line flag 'config."):
        text += "; --config=FILE comes before the settings that it changes"
    return text


def _fail(name: str, text: str, error: Exception | None = None) -> int:
    if os.environ.get("BIOMEDLM_TRACEBACK") and error is not None:
        raise error
    program = f"biomedlm {name}".rstrip()
    print(f"{program}: error: {' '.join(text.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
