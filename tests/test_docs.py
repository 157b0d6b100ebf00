"""README and docs: every block runs on tiny inputs or says why not; flags exist; the site builds.

A page runs from top to bottom in a folder with the inputs of `pages.write_inputs`. A block that
needs a network, an accelerator or hours has `<!-- not run: REASON -->` before it; its commands and
flags are compared with those that exist. By default the pages of RUN_BY_DEFAULT run, the others
with `-m slow`.
"""

import ast
import importlib
import json
import re
import runpy
import shlex
import subprocess
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cases import mostly_slow
from pages import Block, blocks, lines, run_line, write_inputs

import biomedlm_jax
from biomedlm_jax.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LOADERS = ("scripts/one_gpu.sh", "scripts/slurm_gpu.sbatch", "scripts/tpu_pod.sh")  # of `pretrain`

RUN_BY_DEFAULT = ("docs/tpu_pods.md",)
# A run of two layers, with rows of 64 tokens. (text in the page, text that runs): each must occur.
RUN = "--config.training.steps=4 --config.optimizer.warmup_steps=1 --config.checkpoint.every=4"
SMALL = {
    "pretrain": f"{RUN} --config.training.evaluate_every=4 --config.training.batch_size=8",
    "finetune": "--config.training.epochs=1 --config.training.batch_size=8",
    "bench": "--layers=1 --width=32 --heads=2 --vocab_size=64 --length=32 --rounds=1 --steps=1 "
    "--questions=2 --batch_sizes=1 --beams=2 --new_tokens=4 --peers= --hf= --nodetails",
}
TEXTS = (
    "--config.data.dev_fraction=0.2 --config.data.row_tokens=64 "
    "--config.data.source_tokens=30 --config.data.target_tokens=20"
)
ANSWERS = "--config.generation.max_new_tokens=4"
MAKE_TOKENIZER = "biomedlm train-tokenizer --input=articles/ --vocab_size=512 --out=tokenizer"
MAKE_TOKENS = (
    "biomedlm build-tokens --input=articles/ --tokenizer=tokenizer --length=64 "
    "--validation_fraction=0.1 --out=tokens"
)
MAKE_RUN = (
    "biomedlm pretrain --config=configs/pretrain.py:tiny --config.data.path=tokens --workdir=run"
)
MAKE_CORPUS = "biomedlm build-corpus --source=text:articles/ --out=corpus/"
MAKE_INDEX = "biomedlm trace --corpus=corpus/ --build"
FIRST = (MAKE_TOKENIZER, MAKE_TOKENS, MAKE_RUN)
LORA = (
    "biomedlm export-hf --model=run --out=checkpoint",
    "biomedlm finetune --config=configs/finetune.py:instruct_lora --model=checkpoint "
    "--config.data.train=chats.jsonl --config.data.format=messages "
    "--config.data.template=zephyr --config.data.row_tokens=64 "
    f"--config.data.dev_fraction=0.2 {ANSWERS} --workdir=lora",
)
BEFORE = {
    "README.md": (MAKE_CORPUS, MAKE_INDEX),
    "docs/clients.md": (*FIRST, *LORA),
    "docs/serving.md": FIRST,
    "docs/migrate.md": (*FIRST, *LORA, "biomedlm export-hf --model=lora --out=adapter --adapter"),
    "docs/reproduce.md": (MAKE_TOKENIZER,),
    "docs/own_questions.md": FIRST,
    "docs/reliability.md": FIRST,
}
SUBSTITUTES: dict[str, tuple[tuple[str, str], ...]] = {
    "docs/clients.md": (
        ("--model=run --out=adapter", "--model=lora --out=adapter"),
        ("--base=base", "--base=checkpoint"),
        ("max_new_tokens=40", "max_new_tokens=4"),
    ),
    "docs/reliability.md": (
        ("configs/pretrain.py:gpt_cpu", "configs/pretrain.py:tiny"),
        ("('tensorboard','wandb')", "('tensorboard',)"),  # needs no account
    ),
    "docs/serving.md": (("biomedlm serve", "biomedlm serve --port=0"),),
    "docs/data.md": (
        ("--vocab_size=28896", "--vocab_size=512"),
        ("--length=1024", "--length=64 --validation_fraction=0.1"),
        ("configs/pretrain.py:gpt_cpu", "configs/pretrain.py:tiny"),
        ("--out=corpus/ --engine=beam", "--out=corpus_of_beam/ --engine=beam"),
        # Several processes are tested with the engine.
        ("direct_running_mode=multi_processing", "direct_running_mode=in_memory"),
        ("--direct_num_workers=2", "--direct_num_workers=1"),
    ),
    "docs/tpu_pods.md": (
        (
            "configs/pretrain.py:biomedlm_2_7b --topology=v5e:16x16",
            "configs/pretrain.py:tiny --config.model.vocab_size=512 "
            "--config.model.context_length=64 --topology=local",
        ),
        ("--out=tokenizer", "--vocab_size=512 --out=tokenizer"),
        ('--subsets="PubMed Abstracts,PubMed Central"', '--subsets="PubMed Abstracts"'),
        ("--length=1024", "--length=64 --validation_fraction=0.1"),
    ),
    "docs/llama.md": (
        ("--vocab_size=2048", "--vocab_size=512"),
        ("--length=128", "--length=512"),
        ("--config.data.row_tokens=128", "--config.data.row_tokens=512"),
        ("--config.generation.max_new_tokens=24", ANSWERS),
        ("--config.training.steps=20", "--config.training.steps=4"),
        ("--config.optimizer.warmup_steps=4", "--config.optimizer.warmup_steps=1"),
        ("--config.training.epochs=10", "--config.training.epochs=1"),
        (
            "biomedlm import-hf --source=hf://OWNER/NAME",
            "biomedlm export-hf --model=more --out=published\n"
            "biomedlm build-tokens --input=heldout.jsonl --tokenizer=tokenizer --length=512 "
            "--validation_fraction=0.1 --out=other_tokens\n"
            "biomedlm import-hf --source=published",
        ),
        # The page's sections go on from other places; here all runs stand in one folder.
        ("evaluate_sources=all --workdir=run", "evaluate_sources=all --workdir=mixed"),
        (
            "--model=base --workdir=chat",
            f"--config.data.row_tokens=512 --config.data.dev_fraction=0.2 {ANSWERS} "
            "--model=base --workdir=ner",
        ),
        ("--model=chat --messages=ncbi_test.jsonl", "--model=ner --messages=ncbi_test.jsonl"),
        ("ncbi_test.jsonl --out=answers.jsonl", "ncbi_test.jsonl --out=entities.jsonl"),
        ("--answers=answers.jsonl", "--answers=entities.jsonl"),
        ("finetune.py:instruct_lora_one_chip", "finetune.py:instruct_lora"),
        (
            "--config.data.format=messages --model=base --workdir=run",
            "--config.data.format=messages --config.data.template=zephyr "
            f"--config.data.row_tokens=512 --config.data.dev_fraction=0.2 {ANSWERS} "
            "--model=base --workdir=lora",
        ),
        (
            "pretrain.py:llama_2_7b_lora --init=base \\\n  --config.data.path=tokens --workdir=run",
            "pretrain.py:continued --config.lora.rank=4 --init=base --config.data.path=tokens "
            "--workdir=continued",
        ),
    ),
    "docs/reproduce.md": (
        (
            "configs/pretrain.py:biomedlm_2_7b --topology=v5e:16x16",
            "configs/pretrain.py:tiny --config.model.vocab_size=512 "
            "--config.model.context_length=64 --topology=local",
        ),
        ('--subsets="PubMed Abstracts,PubMed Central"', '--subsets="PubMed Abstracts"'),
        ("--length=1024", "--length=64 --validation_fraction=0.1"),
        ("pretrain.py:biomedlm_2_7b --config.data", "pretrain.py:tiny --config.data"),
        ("pretrain.py:gpt_125m", "pretrain.py:tiny"),
        ("--vocab_size=28896 --out=tokenizer", "--vocab_size=512 --out=trained"),
        ("--config.task.path=", "--config.task.max_length=64 --config.task.path="),
        ('seeds="(1,2,3,4,5)"', 'seeds="(1,2)"'),
        ("--model=biomedlm", "--model=run"),
        ("--config.data.train=", f"{TEXTS} {ANSWERS} --config.data.train="),
    ),
    "docs/own_questions.md": (
        (
            "--config.task.max_length=256",
            "--config.task.max_length=64 --config.training.batch_size=4",
        ),
        ("--config.training.epochs=6", "--config.training.epochs=1"),
    ),
    "README.md": (
        ("biomedlm serve", "biomedlm serve --port=0"),
        ("--vocab_size=28896", "--vocab_size=512"),
        ("--length=256", "--length=64 --validation_fraction=0.1"),
        ("configs/pretrain.py:gpt_cpu", "configs/pretrain.py:tiny"),
        ("--init=biomedlm", "--init=run"),
        ("--config.training.steps=2_000", "--config.training.steps=8"),
        ("--config.task.max_length=256", "--config.task.max_length=64"),
        ("--config.data.row_tokens=256", "--config.data.row_tokens=64"),
        ("--config.data.source_tokens=160", "--config.data.source_tokens=30"),
        ("--config.data.target_tokens=60", "--config.data.target_tokens=20"),
        ("max_new_tokens=60", "max_new_tokens=4"),
        ("--max_new_tokens=64", "--max_new_tokens=4"),
        ("--source=hf://stanford-crfm/BioMedLM", "--source=release"),
        (
            "configs/pretrain.py:biomedlm_2_7b --topology=v5e:16x16 --search",
            "configs/pretrain.py:tiny --config.data.path=tokens --topology=local",
        ),
    ),
}

EXECUTED = [
    page
    for page in PAGES
    if any(b.language in ("bash", "python") for b in blocks(page) if not b.reason)
]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_runs_or_says_why_not(page):
    for block in blocks(page):
        place = f"{page.name}:{block.line}"
        assert block.language in ("bash", "python", "json", "text", ""), place
        if block.language == "":
            assert "biomedlm " not in block.text, f"{place}: name the language of the commands"
        if block.reason:
            assert len(block.reason) > 10, f"{place}: give a reason"
        if block.language == "bash":
            done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
            assert done.returncode == 0, f"{place}: {done.stderr}"
            check_scripts_and_extras(block, place)
        if block.language == "python":
            ast.parse(block.text)
        if block.language == "json":
            assert [json.loads(line) for line in block.text.splitlines()]


def check_scripts_and_extras(block: Block, place: str) -> None:
    """Compare scripts, their flags, and the package's extras with those that exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in lines(block):
        words = line.split()
        extras = re.findall(r"(?:biomedlm-jax|\.)\[(\w+)\]", line)
        assert set(extras) <= set(project["optional-dependencies"]), f"{place}: {line}"
        for i, word in enumerate(words):
            if re.match(r"scripts/\w+\.py$", word):
                text = (ROOT / word).read_text(encoding="utf-8")
                flags = {flag.partition("=")[0] for flag in words[i:] if flag.startswith("--")}
                assert not [f for f in flags if f[2:] not in text], f"{place}: {line}"


@pytest.mark.parametrize("name", mostly_slow(map(name_of, EXECUTED), RUN_BY_DEFAULT))
def test_the_blocks_of_a_page_run(name, tmp_path, monkeypatch):
    for module in ("transformers", "torch", "pydivsufsort", "peft", "gguf", "starlette"):
        pytest.importorskip(module, reason=f"{module} is in the extra `dev`")
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    for line in BEFORE.get(name, ()):
        run_line(line, extra=SMALL)
    unused, names = dict(SUBSTITUTES.get(name, ())), {}
    for block in blocks(ROOT / name):
        if block.reason:
            continue
        text = block.text
        for old, new in SUBSTITUTES.get(name, ()):
            if old in text:
                text = text.replace(old, new)
                unused.pop(old, None)
        if block.file:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(text, encoding="utf-8")
        if block.language == "bash":
            for line in lines(block._replace(text=text)):
                run_line(line, extra=SMALL)
        elif block.language == "python":
            exec(compile(text, f"{name}:{block.line}", "exec"), names)
    assert not unused, f"{name} does not have {list(unused)}"


class Loads(HTMLParser):
    """What a page loads when it is opened: scripts, styles, images, frames."""

    def __init__(self):
        super().__init__()
        self.urls = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.urls.append(values.get("src") or "")
        if tag == "link" and values.get("rel") not in ("canonical", "prev", "next", "alternate"):
            self.urls.append(values.get("href") or "")


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is in the extra `docs`")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site"))
    build(config)  # raises if there is a warning
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert "```" not in page.read_text(encoding="utf-8"), f"{page}: a block is read as text"
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert not [url for url in loads.urls if re.match(r"(\w+:)?//", url)], page
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.findall(r"(?:@import|url\()\s*[\"']?https?:", style.read_text()), style
    reference = (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
    for name, module in biomedlm_jax._PUBLIC.items():
        assert f'id="biomedlm_jax.{module}.{name}"' in reference


def test_a_page_has_one_name_in_the_menu_and_on_top():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    names = {page: name for name, page in re.findall(r"- (.+): (\S+\.md)$", menu, re.MULTILINE)}
    files = {page: ROOT / "docs" / page for page in names if page != "index.md"}
    headings = {
        page: file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        for page, file in files.items()
        if file.exists()  # others are written with the site
    }
    assert len(headings) > 20
    assert headings == {page: names[page] for page in headings}


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


@pytest.mark.parametrize("page", PAGES, ids=name_of)
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
    known |= {"query-gpu", "format", "loop-ms", "list-gpus"}  # of nvidia-smi
    unknown = {
        (path.name, flag)
        for path in (ROOT / "biomedlm_jax").rglob("*.py")
        for text in messages(path)
        for flag in re.findall(r"(?:^|[\s(`])--([a-z][a-z0-9_-]*)(?![a-z0-9_-])", text)
        if flag not in known
    }
    assert not unknown
