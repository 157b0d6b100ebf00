"""`biomedlm COMMAND [--flags]`: import and run one of the commands.

A command is a file in `commands/` with a docstring, its own `FLAGS` (an absl `FlagValues`, so that
`--help` prints that command's flags and no library's), and `run(flags)`. Bad input prints one
line on standard error and exits with code 2, an error of the file system with code 1;
BIOMEDLM_TRACEBACK=1 prints the traceback instead.
"""

import ast
import gc
import importlib
import itertools
import os
import re
import sys
import textwrap
import warnings
from pathlib import Path

from biomedlm_jax.buckets import SCHEME
from biomedlm_jax.errors import BAD_INPUT, FAILED, INTERRUPTED, KEPT, InputError

COMMANDS = (
    *("quickstart", "build-corpus", "train-tokenizer", "compare-tokenizers", "build-tokens"),
    *("pretrain", "build-instructions", "finetune", "contamination", "evaluate", "generate"),
    *("serve", "trace", "score-answers", "inspect", "verify", "import-hf", "export-hf"),
    *("verify-hf", "export-gguf", "push", "plan", "bench"),
)

# Flags that take a path of Google Cloud Storage, and commands whose --out does.
BUCKETS = ("workdir", "model", "init", "run", "directory", "replay", "source", "config.data.path")
BUCKET_OUT = ("import-hf", "export-hf")
TEXTS = ("prompt", "stop", "bad_words", "score", "terms", "text")  # flags whose values are no paths

FLAG = r"flag --([\w.]+)=(.*?): "
# Messages of absl, and those that replace them.
MESSAGES = {
    FLAG + r"invalid literal for int.*": "got --{0}={1}; expected a whole number",
    FLAG + r"could not convert string to float.*": "got --{0}={1}; expected a number",
    FLAG + r"\('Non-boolean argument.*": "got --{0}={1}; expected true or false",
    FLAG + r"value should be one of <(.*)>": "got --{0}={1}; expected one of {2}",
    FLAG + r"(expected .*)": "got --{0}={1}; {2}",
    r"(Unknown command line flag 'config\..*)": "{0}; --config=FILE comes before the settings that "
    "it changes",
    r"(Unknown command line flag .*)": "{0}; --help lists the flags",
}


def overview() -> str:
    """Return the list of commands, each with the first line of its docstring."""
    width = max(map(len, COMMANDS))
    lines = ["biomedlm: BioMedLM in JAX. Usage: biomedlm COMMAND [--flags]", ""]
    for name in COMMANDS:
        file = Path(__file__).parent / "commands" / f"{name.replace('-', '_')}.py"
        about = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:{width}}  {about.splitlines()[0]}")
    return "\n".join([*lines, "", "biomedlm COMMAND --help prints the flags of one command."])


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code.

    0 finished, 1 a full disk or another failure, 2 bad input, 130 Ctrl-C: `errors`.
    """
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"warning: {' '.join(str(message).split())}\n"  # ty: ignore[invalid-assignment]
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output (`| head`) has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # the exit code of SIGPIPE in a shell
    finally:
        warnings.formatwarning = before
    if argv is None and code == FAILED:  # threads of a failed save may not end, or not silently
        gc.collect()  # semaphores of ended processes, of which a tracker would warn
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("help", "--help", "-h"):
        print(overview())
        return 0
    name, *arguments = argv
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
    except OSError as error:  # of the storage with the config file
        return _fail(name, str(error), error, code=FAILED)
    except Exception as error:  # absl and ml_collections raise many types while they parse
        return _fail(name, reword_flag_error(error), error)
    try:
        command.run(command.FLAGS)
    except BrokenPipeError:
        raise
    except InputError as error:
        return _fail(name, str(error), error)
    except OSError as error:
        text = str(error)
        if error.strerror:
            text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        return _fail(name, text, error, code=FAILED)
    except KeyboardInterrupt as error:
        if not getattr(error, "saved", False):  # which was printed
            print(f"biomedlm {name}: interrupted", file=sys.stderr)
        _print_notes(name, error)
        return getattr(error, "code", INTERRUPTED)
    except SystemExit as error:  # SIGTERM
        _print_notes(name, error)
        raise
    return 0


def flags_help(values) -> str:
    """Return a paragraph for each flag of a command: its meaning, choices and default."""
    wrapper = textwrap.TextWrapper(100, "  ", "      ", break_long_words=False)
    lines = []
    for name in values:
        flag = values[name]
        if name in ("flagfile", "undefok"):  # absl's own
            continue
        spelled = f"--[no]{name}" if flag.boolean else f"--{name}"
        default = "" if flag.default in (None, [], "") else f" (default: {flag.default_as_str})"
        text = f"{spelled}: {' '.join(flag.help.split())}{default}"
        lines += wrapper.wrap(text)
    return "\n".join(lines)


def _parse(command, name: str, arguments: list[str]) -> None:
    from absl import flags

    # A command may take one argument by position: `biomedlm bench train` is --what=train.
    by_position = getattr(command, "BY_POSITION", None)
    for i, before in enumerate(["=", *arguments[:-1]] if by_position and arguments else ()):
        flag = before.lstrip("-").removeprefix("no")
        complete = "=" in before or (flag in command.FLAGS and command.FLAGS[flag].boolean)
        if complete and not arguments[i].startswith("-"):
            arguments = [*arguments[:i], f"--{by_position}={arguments[i]}", *arguments[i + 1 :]]
            break
    # ml_collections reads the overrides (--config.a.b=1) from sys.argv; grain requires the global
    # flags to be marked as parsed.
    sys.argv = [f"biomedlm {name}", *arguments]
    for argument, following in itertools.pairwise([*arguments, ""]):
        flag, equals, path = argument.partition("=")
        path = path if equals else following
        _check_scheme(name, flag.lstrip("-"), path)
        if flag.lstrip("-") == "config" and not os.path.isfile(path.partition(":")[0]):
            raise InputError(f"no such config file: {path or 'the path is empty'}")
    # Reset what an earlier call in this process set, and the flags of its overrides.
    command.FLAGS.unparse_flags()
    for override in [flag for flag in command.FLAGS if "." in flag]:
        delattr(command.FLAGS, override)
    rest = command.FLAGS(sys.argv)[1:]
    if rest:
        raise InputError(f"got {rest[0]!r} without a flag; expected --name=value")
    flags.FLAGS(sys.argv[:1])


def _check_scheme(command: str, flag: str, path: str) -> None:
    """Raise InputError for a URL where a flag takes none."""
    url = re.match(r"[A-Za-z][\w+.-]*://", path)
    if not url or flag.rpartition(".")[2] in TEXTS:
        return
    scheme, fix = (
        url[0].lower(),
        f"mount the bucket and give the path of the mount, or use {SCHEME}",
    )
    if scheme == SCHEME:
        fix = "give a local directory; gcloud storage cp -r copies it"
        if flag in BUCKETS or (flag == "out" and command in BUCKET_OUT):
            return
    if scheme != "hf://":
        raise InputError(f"got --{flag}={path}; expected a path of a file system: {fix}")


def reword_flag_error(error: Exception) -> str:
    """Return a one-line message for a flag error of absl or ml_collections."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "Traceback (most recent call last)" in text:  # raised by the config file
        where = text.partition(": ")[0].removeprefix("flag ")
        reason = text.strip().splitlines()[-1]
        return f"{where}: {reason.removeprefix('ValueError: ')}"
    missing = re.findall(r"flag --(\w+)=(?:None|\[\])?: is required", text)
    if missing:
        return " ".join(f"--{name} is required." for name in missing)
    unknown = re.fullmatch(r"'?(\w+)'?\s*(?:Did you mean \"(\w+)\" .*)?", text, re.DOTALL)
    if unknown and isinstance(error, KeyError | AttributeError):
        near = f"; did you mean {unknown[2]!r}?" if unknown[2] else "; its file lists them"
        return f"the config has no setting {unknown[1]!r}{near}"
    for pattern, message in MESSAGES.items():
        if match := re.fullmatch(pattern, text, re.DOTALL):
            got, detail = match.groups()[:2], match[3] if match.re.groups == 3 else ""
            return message.format(*got, detail.replace("|", ", "))
    return text


def _fail(name: str, text: str, error: Exception | None = None, *, code: int = BAD_INPUT) -> int:
    if os.environ.get("BIOMEDLM_TRACEBACK") and error is not None:
        raise error
    program = f"biomedlm {name}".rstrip()
    print(f"{program}: error: {' '.join(text.split())}", file=sys.stderr)
    if error is not None:
        _print_notes(name, error)
    return code


def _print_notes(name: str, error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        if note.startswith(KEPT):  # and none of a library
            print(f"biomedlm {name}: {note}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
