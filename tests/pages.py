"""The fenced blocks of the documentation, and the tiny inputs that their commands run on."""

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from nlm import jats_article, pubmed_article, pubmed_set

from biomedlm_jax.cli import main
from biomedlm_jax.errors import INTERRUPTED
from biomedlm_jax.quickstart.abstracts import write_world
from biomedlm_jax.quickstart.multiple_choice import write_questions
from biomedlm_jax.serving import server

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!-- (not run|file): (.+?) -->\s*\Z", re.DOTALL)
WHOLE_PAGE = re.compile(r"<!-- no block of this page is run: (.+?) -->", re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, text and line, and what the comment before it says."""

    language: str
    text: str
    line: int
    reason: str = ""  # why it is not run
    file: str = ""  # that has this content


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in their order."""
    text = page.read_text(encoding="utf-8")
    of_page = WHOLE_PAGE.search(text)
    made = []
    for match in FENCE.finditer(text):
        comment = COMMENT.search(text[: match.start()])
        kind, value = comment.groups() if comment else ("", "")
        reason = value if kind == "not run" else of_page[1] if of_page else ""
        language = match[2].split()[0] if match[2].split() else ""
        file = value if kind == "file" else ""
        line = text.count("\n", 0, match.start()) + 1
        made.append(Block(language, match[3], line, " ".join(reason.split()), file))
    return made


def lines(block: Block) -> list[str]:
    """Return the commands of a block, continuation lines joined."""
    joined = block.text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def run_line(line: str, *, extra: dict[str, str], typed: str = "What is it?\n") -> None:
    """Run one `biomedlm` command in this process, with flags for a tiny run after its --config.

    A server starts, listens and ends; `typed` is what a user types.
    """
    program, command, *arguments = shlex.split(line, comments=True)
    if program == "pip":
        assert command == "install", line
        return
    if program == "sed":
        subprocess.run([program, command, *arguments], check=True)
        return
    assert program == "biomedlm", f"{line}: mark the block with <!-- not run: REASON -->"
    place = next((i for i, flag in enumerate(arguments) if flag.startswith("--config=")), -1)
    arguments[place + 1 : place + 1] = extra.get(command, "").split()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        errors = stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(mock.patch("sys.stdin", io.StringIO(typed)))
        stack.enter_context(
            mock.patch.object(server.Web, "run", lambda web, sockets: web.batcher.close())
        )
        code = main([command, *arguments])
    expected = INTERRUPTED if command == "serve" else 0
    assert code == expected, f"{line}\nexit code {code}: {errors.getvalue()}"


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def write_inputs(folder: Path) -> None:
    """Write what the pages take for granted: articles, questions, pairs, chats; all invented."""
    for name in ("configs", "scripts"):
        (folder / name).symlink_to(ROOT / name)
    world = write_world(folder / "articles", families=40, documents=160)
    (folder / "articles" / "facts.json").unlink()
    source = folder / "articles" / "abstracts.jsonl"
    shutil.copytree(folder / "articles", folder / "pile")
    shutil.copy(source, folder / "heldout.jsonl")
    texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]

    (folder / "gpt2").symlink_to("tokenizer")

    write_questions(folder / "quickstart" / "questions", world)
    for split, number in (("train", 16), ("dev", 8), ("test", 8)):
        whole = (folder / "quickstart" / "questions" / f"{split}.jsonl").read_text().splitlines()
        chosen = [json.loads(line) for line in whole[:number]]
        for name in ("medqa", "medmcqa", "quickstart/questions"):
            write_lines(folder / name / f"{split}.jsonl", chosen)
        if split != "train":  # which is in the page
            write_lines(folder / "my_questions" / f"{split}.jsonl", chosen)
        pairs = [
            {"id": f"{split}{i}", "sentence1": row["question"], "sentence2": texts[i][:80]}
            for i, row in enumerate(chosen)
        ]
        for name, classes in (("pubmedqa", ("yes", "no", "maybe")), ("bioasq", ("yes", "no"))):
            rows = [row | {"label": classes[i % len(classes)]} for i, row in enumerate(pairs)]
            write_lines(folder / name / f"{split}.jsonl", rows)
    (folder / "mmlu" / "test").mkdir(parents=True)
    subjects = ("clinical_knowledge", "professional_medicine", "college_biology")
    for subject in (*subjects, "medical_genetics"):
        cells = "".join(f"What is {i}?,one,two,three,four,{'ABCD'[i % 4]}\n" for i in range(8))
        (folder / "mmlu" / "test" / f"{subject}_test.csv").write_text(cells)

    sentences = [text.split("\n")[-1] for text in texts]
    pairs = [{"source": text[:60], "target": text[60:100]} for text in sentences[:24]]
    write_lines(folder / "meqsum.jsonl", pairs)
    answers = [
        {"question": p["source"], "answer": p["target"], "focus": str(i)}
        for i, p in enumerate(pairs)
    ]
    write_lines(folder / "medquad.jsonl", answers)
    write_lines(folder / "in.jsonl", [{"prompt": text[:30]} for text in sentences[:3]])
    (folder / "answer.txt").write_text(sentences[0])
    (folder / "vaccines.txt").write_text("measles vaccine\nmumps vaccine\n")

    chats = [
        [{"role": "user", "content": text[:40]}, {"role": "assistant", "content": text[40:60]}]
        for text in sentences[:40]
    ]
    write_lines(folder / "chats.jsonl", [{"messages": chat} for chat in chats])
    write_lines(folder / "ask.jsonl", [{"messages": chat[:1]} for chat in chats[:2]])
    rows = ["mutations\tO", "cause\tO", "cancer\tB-Disease", ".\tO", ""]
    for name in ("train.tsv", "test.tsv"):
        cells = [line for i in range(12) for line in (f"GENE{i}\tB-Gene", *rows)]
        (folder / name).write_text("\n".join(cells) + "\n")

    for name, first in (("baseline", 0), ("updatefiles", 100)):
        (folder / name).mkdir()
        records = [
            pubmed_article(
                first + i + 1,
                title=f"Title {first + i}.",
                abstract=f"<AbstractText>{text}</AbstractText>",
            )
            for i, text in enumerate(texts[first : first + 60])
        ]
        (folder / name / "pubmed25n0001.xml").write_bytes(pubmed_set(*records))
    (folder / "oa").mkdir()
    (folder / "oa" / "PMC7.xml").write_bytes(jats_article(7, body=f"<p>{texts[-1]}</p>"))
