"""The commands in README and docs exist, with their flags and config overrides."""

import ast
import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest

from biomedlm_jax.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LOADERS = ("scripts/one_gpu.sh", "scripts/slurm_gpu.sbatch", "scripts/tpu_pod.sh")  # of `pretrain`


def commands(page: Path) -> list[list[str]]:
    """Return the words of each `biomedlm` or scripts/ call in code blocks and inline code."""
    text, _, _ = page.read_text(encoding="utf-8").partition("\n## Appendix")  # earlier versions
    blocks = re.findall(r"^```bash[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", without_blocks)]
    calls = []
    for line in lines:
        for call in re.split(r"&&|;", line):
            start = re.search(r"(?:^|[\s/])(biomedlm [a-z-]+|scripts/\S+\.s\w+)(?=\s|$)", call)
            if start:
                calls.append(shlex.split(call[start.start(1) :], comments=True))
    return calls


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_and_flags_exist(page):
    for words in commands(page):
        call = " ".join(words)
        assert "..." not in words, f"{call} is incomplete"
        if words[0] == "biomedlm":
            name, arguments = words[1], words[2:]
        else:
            assert words[0] in LOADERS, f"{call}: no such script"
            name, arguments = "pretrain", words[1:]
        assert name in COMMANDS, f"{call}: no such command"
        known = importlib.import_module(f"biomedlm_jax.commands.{name.replace('-', '_')}").FLAGS
        flags = [word.removeprefix("--").partition("=") for word in arguments if word[:2] == "--"]
        values = {flag: value for flag, _, value in flags}
        if "config" in values:
            path, _, variant = values["config"].partition(":")
            assert (ROOT / path).is_file(), f"{call}: no file {path}"
            config = runpy.run_path(str(ROOT / path))["get_config"](variant)
        for flag in values:
            if flag.startswith("config."):
                group = config
                for part in flag.split(".")[1:]:
                    assert part in group, f"{call}: no setting {flag}"
                    group = group[part]
            elif flag not in ("help", "config"):
                assert flag.removeprefix("no") in known or flag in known, f"{call}: no flag {flag}"


def messages(path: Path) -> list[str]:
    """Return the strings in a file's code, docstrings left out."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    docs = [node.value for node in nodes if isinstance(node, ast.Expr)]
    strings = (node for node in nodes if isinstance(node, ast.Constant) and node not in docs)
    return [node.value for node in strings if isinstance(node.value, str)]


def test_messages_name_flags_that_exist():
    modules = [f"biomedlm_jax.commands.{name.replace('-', '_')}" for name in COMMANDS]
    known = {flag for module in modules for flag in importlib.import_module(module).FLAGS}
    known |= {f"no{flag}" for flag in known} | {"help", "version", "config", "name", "local-dir"}
    # Of Apache Beam, by corpus/engines.py.
    known |= {"runner", "dask_npartitions", "dask_partition_size", "default_sdk_harness_log_level"}
    unknown = {
        (path.name, flag)
        for path in (ROOT / "biomedlm_jax").rglob("*.py")
        for text in messages(path)
        for flag in re.findall(r"(?:^|[\s(`])--([a-z][a-z0-9_-]*)(?![a-z0-9_-])", text)
        if flag not in known
    }
    assert not unknown
