"""`biomedlm COMMAND [--flags]`: the table of commands, each imported only when it is called.

A command is a file in `commands/` with a docstring, its own `FLAGS` (an absl `FlagValues`, so that
`--help` shows that command's flags and no library's), and `run(flags)`. Bad input ends as one line
on standard error and exit code 2; set BIOMEDLM_TRACEBACK=1 to see where it was raised.
"""

import importlib
import os
import sys

COMMANDS = {
    "quickstart": "the whole journey on a small invented world, in minutes, on a laptop",
    "train-tokenizer": "train the byte-level BPE tokenizer of the published recipe",
    "compare-tokenizers": "compare tokenizers on the same text: tokens per byte and whole terms",
    "build-tokens": "tokenise documents and pack them into rows of token ids",
    "pretrain": "pre-train a GPT; the same command resumes it",
    "import-hf": "convert a Hugging Face GPT-2 directory into a run directory",
    "export-hf": "write a run as a Hugging Face directory, checked",
    "verify-hf": "compare a Hugging Face directory's logits with transformers",
    "bench": "measure this library beside PyTorch",
}

USER_ERRORS = (ValueError, KeyError, AttributeError, TypeError, FileNotFoundError, FileExistsError,
               NotADirectoryError, IsADirectoryError, PermissionError, ModuleNotFoundError)


def overview() -> str:
    """The list of commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = ["biomedlm: BioMedLM in JAX. Usage: biomedlm COMMAND [--flags]", ""]
    lines += [f"  {name:{width}}  {line}" for name, line in COMMANDS.items()]
    return "\n".join([*lines, "", "biomedlm COMMAND --help shows the flags of one command."])
