"""`biomedlm COMMAND [--flags]`: the table of commands, each imported only when it is called.

A command is a file in `commands/` with a docstring, its own `FLAGS` (an absl `FlagValues`, so that
`--help` shows that command's flags and no library's), and `run(flags)`. Bad input ends as one line
on standard error and exit code 2; set BIOMEDLM_TRACEBACK=1 to see where it was raised.
"""

import ast
import importlib
import os
import re
import sys

COMMANDS = {
    "quickstart": "the whole journey on a small invented world, in minutes, on a laptop",
    "train-tokenizer": "train the byte-level BPE tokenizer of the published recipe",
    "compare-tokenizers": "compare tokenizers on the same text: tokens per byte and whole terms",
    "build-tokens": "tokenise documents and pack them into rows of token ids",
    "pretrain": "pre-train a GPT; the same command resumes it",
    "finetune": "fine-tune a model on questions; the same command resumes it",
    "evaluate": "score a model on questions and write a report with intervals",
    "finetune-longform": "teach a model to answer at length; the same command resumes it",
    "generate": "continue prompts, or score a text",
    "import-hf": "convert a Hugging Face GPT-2 directory into a run directory",
    "export-hf": "write a run as a Hugging Face directory, checked",
    "verify-hf": "compare a Hugging Face directory's logits with transformers",
    "plan": "compile a run's step for a TPU pod without one: memory, time, collectives",
    "bench": "measure this library beside PyTorch",
}

# What a user can cause. Anything else is our defect and keeps its traceback.
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
    """The list of commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = ["biomedlm: BioMedLM in JAX. Usage: biomedlm COMMAND [--flags]", ""]
    lines += [f"  {name:{width}}  {line}" for name, line in COMMANDS.items()]
    return "\n".join([*lines, "", "biomedlm COMMAND --help shows the flags of one command."])


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 2 bad input, 130 interrupted."""
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # what read our output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as a shell counts a SIGPIPE
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
        print(f"{command.__doc__}\nFlags:\n{command.FLAGS.get_help()}")
        return 0
    try:
        _parse(command, name, arguments)
    except Exception as error:  # absl and ml_collections raise many kinds while they parse
        return _fail(name, error)
    try:
        command.run(command.FLAGS)
    except INPUT_ERRORS as error:
        return _fail(name, error)
    except KeyboardInterrupt:
        print(f"biomedlm {name}: interrupted", file=sys.stderr)
        return 130
    return 0


def _parse(command, name: str, arguments: list[str]) -> None:
    from absl import flags

    # A command may take one argument by position: `biomedlm bench train` is --what=train.
    by_position = getattr(command, "BY_POSITION", None)
    if by_position and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{by_position}={arguments[0]}", *arguments[1:]]
    # ml_collections reads the overrides (--config.a.b=1) from sys.argv; grain wants the global
    # flags marked as parsed.
    sys.argv = [f"biomedlm {name}", *arguments]
    for argument in arguments:
        flag, _, path = argument.partition("=")
        if path.startswith(BUCKETS):
            raise ValueError(
                f"got {argument}; paths are those of a file system: mount the bucket, and give the "
                "path under which it is mounted"
            )
        if flag.lstrip("-") == "config" and path and not os.path.isfile(path.partition(":")[0]):
            raise FileNotFoundError(f"no such config file: {path}")
    command.FLAGS.unparse_flags()  # what an earlier call in this process set
    rest = command.FLAGS(sys.argv)[1:]
    if rest:
        raise ValueError(
            f"got {rest[0]!r} without a flag; every value needs its flag, as in --name=value"
        )
    flags.FLAGS(sys.argv[:1])


def _fail(name: str, error: Exception | str) -> int:
    if os.environ.get("BIOMEDLM_TRACEBACK") and isinstance(error, Exception):
        raise error
    # A KeyError prints as the repr of its message; the message itself reads better.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if text[:1] in "'\"" and text[:1] == text[-1:]:  # absl hands on the repr of one
        text = ast.literal_eval(text)
    text = " ".join(text.split())
    alone = re.fullmatch(r"'?(\w+)'?( Did you mean .*)?", text)  # all that ml_collections says
    if alone and isinstance(error, Exception):
        text = f"the config has no setting {alone[1]!r}.{alone[2] or ''}"
    # What absl says of a flag that is missing.
    text = re.sub(
        r"flag (--\w+)=None: Flag --\w+ must have a value other than None\.",
        r"\1 is required.",
        text,
    )
    print(f"biomedlm {name}".rstrip() + f": error: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
