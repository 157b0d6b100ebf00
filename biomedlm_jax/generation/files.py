"""Files of prompts: JSONL in, JSONL out, a batch at a time, resumed where it stopped."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from biomedlm_jax.generation.decoder import fingerprint
from biomedlm_jax.generation.decoding import check_prompts
from biomedlm_jax.generation.options import Options
from biomedlm_jax.generation.text import Generator


def answer_file(
    generator: Generator,
    source: str | Path,
    out: str | Path,
    options: Options,
    *,
    field: str = "prompt",
    batch_size: int = 16,
    truncate: str = "error",
    model: str = "",
    notify: Callable[[str], None] = print,
) -> dict[str, int]:
    """Answer every line of `source`, an object with the text `field`; append to `out`.

    Each line out has `index` (0-based), the prompt, its `id` if it has one, `answers` (texts),
    `tokens` (ids), `scores` of beams, and `settings`, which identifies the options, `model`, its
    weights and their dtype. Lines that `out` has already are kept and not made again; draws depend
    on a line's index only, so a resumed file is as one that was never interrupted. Returns the
    numbers of lines kept and made.

    Raises:
      FileNotFoundError, ValueError: there is no such file, a line is not what it must be or does
        not fit the model (nothing is decoded then), or `out` was made from other prompts or with
        other settings.
    """
    prompts = read_prompts(source, field=field)
    ids = [
        generator.encode(prompt, new=options.max_new_tokens, truncate=truncate)
        for prompt, _ in prompts
    ]
    check_prompts(generator.config, ids, options.max_new_tokens)
    parts = (model, fingerprint(generator.decoder), str(options), truncate, field)
    settings = hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
    out = Path(out)
    done = _kept(out, [prompt for prompt, _ in prompts], settings)
    if done:
        notify(f"{out} has {done} of {len(prompts)} answers; going on from there")
    with out.open("a", encoding="utf-8") as file, _Bar(len(prompts), done) as bar:
        for first in range(done, len(prompts), batch_size):
            batch = range(first, min(first + batch_size, len(prompts)))
            found = generator.answers([ids[i] for i in batch], options, numbers=batch)
            for i, answers in zip(batch, found, strict=True):
                prompt, identity = prompts[i]
                line = {"index": i, **identity, "prompt": prompt}
                line["answers"] = [answer.text for answer in answers]
                line["tokens"] = [answer.tokens for answer in answers]
                if options.beams > 1:
                    line["scores"] = [answer.score for answer in answers]
                line["settings"] = settings
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()  # what is done stays, whatever happens next
            bar(len(batch))
    return {"kept": done, "made": len(prompts) - done}


def read_prompts(source: str | Path, *, field: str = "prompt") -> list[tuple[str, dict]]:
    """The prompts of a JSONL file, each with {"id": ..} if its line has one.

    Raises FileNotFoundError or ValueError naming the line.
    """
    prompts = []
    # splitlines() would also cut at U+2028 and others, which JSON leaves within a text.
    lines = Path(source).read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{source}, line {number} is not JSON: {error}") from None
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            has = f"the fields {sorted(record)}" if isinstance(record, dict) else repr(record)[:40]
            raise ValueError(
                f"{source}, line {number} has {has}; it must be an object with the text {field!r}"
            )
        prompts.append((record[field], {"id": record["id"]} if "id" in record else {}))
    if not prompts:
        raise ValueError(f"{source} has no prompts; give one object a line")
    return prompts


def _kept(out: Path, prompts: Sequence[str], settings: str) -> int:
    """How many answers `out` has; a last line that was cut off is removed from it."""
    if not out.exists():
        return 0
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.decode("utf-8").split("\n")[:-1]
    for i, line in enumerate(lines):
        try:
            record = json.loads(line)
            was = record["index"], record["prompt"], record["settings"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{out}, line {i + 1} is no answer; choose another --out") from None
        if i >= len(prompts) or was[:2] != (i, prompts[i]):
            raise ValueError(f"{out}, line {i + 1} answers another prompt; choose another --out")
        if was[2] != settings:
            raise ValueError(
                f"{out} was made with other options, another model, other weights of it or another "
                "--dtype; go on with those, or choose another --out"
            )
    if len(whole) < len(data):
        out.write_bytes(whole)
    return len(lines)


class _Bar:
    """A progress bar on a terminal's standard error; elsewhere nothing."""

    def __init__(self, total: int, done: int):
        self._progress = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

            columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=Console(stderr=True))
            self._task = self._progress.add_task("", total=total, completed=done)

    def __enter__(self) -> Callable[[int], None]:
        if self._progress is None:
            return lambda count: None
        self._progress.start()
        return lambda count: self._progress.advance(self._task, count)

    def __exit__(self, *error) -> None:
        if self._progress:
            self._progress.stop()
