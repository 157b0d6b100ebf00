"""Answer files of prompts a batch at a time, as JSON lines that an interrupted run resumes."""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.files import content_hash, parse_object, read_jsonl
from biomedlm_jax.generation.chat import Chat, read_chats
from biomedlm_jax.generation.generator import Generator
from biomedlm_jax.generation.options import Options
from biomedlm_jax.streams import COMPRESSIONS, read_lines
from biomedlm_jax.training.provenance import weights_hash


def answer_file(
    generator: Generator,
    source: str | Path,
    out: str | Path,
    options: Options,
    *,
    field: str = "prompt",
    batch_size: int = 16,
    truncate: str = "error",
    chat: Chat | None = None,
    notify: Callable[[str], None] = print,
) -> dict[str, int]:
    """Answer every prompt of `source` and append the answers to `out`, a line of JSON each.

    With a `chat` a line of `source` has `messages`, which its template renders and whose options
    decode; so do the lines of `out` in place of a prompt.

    A line has `index` (0-based), the prompt, its `id` if it has one, `answers` (texts), `tokens`
    (ids), `scores` of beams, and `settings`, a hash of the options, the model and its dtype. A
    resumed file equals one that was never interrupted. Returns the lines `kept` and `made`.

    Raises InputError, before decoding, if `source` does not exist, a line has
    no prompt or one that does not fit the model, or `out` has other prompts or settings.
    """
    out, kind = Path(out), "prompt" if chat is None else "messages"
    prompts: Sequence[tuple[Any, dict[str, Any]]]
    if chat is None:
        prompts = read_prompts(source, field=field)
        ids = generator.encode([prompt for prompt, _ in prompts], options, truncate=truncate)
    else:
        prompts, options = read_chats(source), chat.options
        ids = []
        for number, (messages, _) in enumerate(prompts):
            try:
                ids.append(chat.encode(messages, truncate=truncate))
            except InputError as error:
                raise InputError(f"{source}, index {number}: {error}") from None
    # What the answers depend on beside the prompts, by content.
    config, weights = generator.config, weights_hash(generator.decoder.model)
    parts = [config.architecture(), str(config.dtype), str(options), truncate, field]
    parts += [] if chat is None else [chat.template.text]
    settings = content_hash([weights, *parts])[:12]
    if kept := _kept_lines(out, [prompt for prompt, _ in prompts], settings, kind):
        notify(f"{out} has {kept} of {counted(len(prompts), 'answer')}; resuming after them")
    columns = MofNCompleteColumn(), BarColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
    with out.open("a", encoding="utf-8") as file, bar:
        task = bar.add_task("", total=len(prompts), completed=kept)
        for first in range(kept, len(prompts), batch_size):
            batch = range(first, min(first + batch_size, len(prompts)))
            batch_answers = generator.answers([ids[i] for i in batch], options, numbers=batch)
            for i, answers in zip(batch, batch_answers, strict=True):
                prompt, identity = prompts[i]
                line = {"index": i, **identity, kind: prompt}
                line["answers"] = [answer.text for answer in answers]
                line["tokens"] = [answer.tokens for answer in answers]
                if options.beams > 1:
                    line["scores"] = [answer.score for answer in answers]
                line["settings"] = settings
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()  # a later error or interruption keeps these lines
            bar.advance(task, len(batch))
    return {"kept": kept, "made": len(prompts) - kept}


def read_prompts(source: str | Path, *, field: str = "prompt") -> list[tuple[str, dict[str, Any]]]:
    """Return the prompts of a file, each with {"id": ..} if it has one.

    A .txt file has a prompt a line, any other JSON objects with the text `field`; either may be
    compressed (.gz, .zst, .bz2, .xz). Blank lines are skipped. Raises InputError, or
    InputError naming the line, also of a NUL character: such a file is not UTF-8 text.
    """
    suffixes = [suffix for suffix in Path(source).suffixes if suffix not in COMPRESSIONS]
    read = functools.partial(_read_text, field=field) if suffixes[-1:] == [".txt"] else read_jsonl
    prompts: list[tuple[str, dict[str, Any]]] = []
    for where, record in read(source):
        text = record.get(field)
        if not isinstance(text, str):
            got = f"{field} of type {type(text).__name__}" if field in record else ""
            got = got or f"the fields {sorted(record)}; name the field with --field"
            raise InputError(f"{where}: expected an object with the text {field!r}, got {got}")
        if "\0" in text:
            raise InputError(f"{where}: NUL character at {text.index(chr(0))}: not UTF-8 text")
        identity = {"id": record["id"]} if "id" in record else {}
        try:  # half of a surrogate pair, NaN: such an answer could not be written
            json.dumps([text, identity], ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:
            raise InputError(f"{where}: {error}; fix the prompt or its id") from None
        prompts.append((text, identity))
    if not prompts:
        raise InputError(f"{source} has no prompts; expected one a line")
    return prompts


def _read_text(source: str | Path, *, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the lines that are not blank as `read_jsonl` yields objects with `field`."""
    for number, line in read_lines(source):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"{source}:{number}: expected UTF-8, got {error}") from None
        if text.strip():
            yield f"{source}:{number}", {field: text}


def _kept_lines(out: Path, prompts: Sequence[Any], settings: str, kind: str) -> int:
    """Return the number of lines in `out`, without a cut-off last line, which is removed."""
    if not out.exists():
        return 0
    data = out.read_bytes()
    *lines, unfinished = data.split(b"\n")
    for i, line in enumerate(lines):
        where = f"{out}:{i + 1}"
        try:
            record = parse_object(line, where)
            index, prompt, made_with = record["index"], record[kind], record["settings"]
        except (ValueError, KeyError):
            raise InputError(f"{where} is not an answer; choose another --out") from None
        if i >= len(prompts) or (index, prompt) != (i, prompts[i]):
            raise InputError(f"{where} answers another prompt; choose another --out")
        if made_with != settings:
            other = "other options, weights or --dtype"
            raise InputError(f"{out} was made with {other}; use those, or choose another --out")
    if unfinished:
        os.truncate(out, len(data) - len(unfinished))  # never writes what is there already
    return len(lines)
