"""The report on a set of answered questions. Scores are shares of 1, published ones percentages."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from biomedlm_jax.integrity import SUMS
from biomedlm_jax.outputs import atomic_directory
from biomedlm_jax.qa import statistics
from biomedlm_jax.qa.html_report import PAGE, overview_page, report_page, versus_page
from biomedlm_jax.qa.presentation import JSON, markdown, plot
from biomedlm_jax.qa.statistics import Item
from biomedlm_jax.settings import check_object

ITEMS, MARKDOWN, PLOT = "items.jsonl", "report.md", "reliability.png"
FILES = (ITEMS, JSON, MARKDOWN, PLOT, PAGE)
SEED_ITEMS = "items-{}.jsonl"  # of the second seed and later ones


def read_items(path: str | Path, *, way: str = "") -> list[dict]:
    """Return the checked items of a JSONL file or report directory (`way`: of several reports).

    Of several seeds they are those of the first.
    """
    return read_seeds(path, way=way)[0]


def read_seeds(path: str | Path, *, way: str = "") -> list[list[dict]]:
    """Return the checked items of each seed of a report; a file holds one."""
    file = _items_file(Path(path), way)
    pattern = SEED_ITEMS.format("*") if Path(path).is_dir() else ""
    others = file.parent.glob(pattern) if pattern else ()
    numbers = {one: one.stem.rpartition("-")[2] for one in others}
    by_number = sorted((int(n), one) for one, n in numbers.items() if n.isdecimal())
    return [_read_file(one) for one in (file, *(one for _, one in by_number))]


def read_provenance(path: str | Path, *, way: str = "") -> dict:
    """Return the provenance in a report (hashes, versions, settings); {} of a file."""
    file = _items_file(Path(path), way).with_name(JSON)
    known = Path(path).is_dir() and file.exists()
    value = read_json(file).get("provenance") if known else {}
    return check_object(value, f"{file} has provenance")


def _items_file(path: Path, way: str) -> Path:
    """Return the items.jsonl of a report, or of its part for one way of scoring."""
    if not path.is_dir():
        return path
    ways = sorted(one.parent for one in path.glob(f"*/{ITEMS}"))
    chosen = path / way.replace(" ", "_")
    file = chosen / ITEMS if chosen in ways else path / ITEMS
    if not file.is_file() and ways:
        names = " or ".join(map(str, ways))
        raise InputError(f"{path} holds {counted(len(ways), 'report')}; fix: name {names}")
    return file


def _read_file(file: Path) -> list[dict]:
    items = []
    for where, item in read_jsonl(file):
        try:
            statistics.check_item(item)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        items.append(item)
    if not items:
        raise InputError(f"{file} holds no questions")
    try:
        statistics.check_items(items)
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None
    return items


def write_items(path: str | Path, items: Sequence[Item]) -> None:
    """Write one JSON object per line, in ASCII, so that any string survives."""
    write_jsonl(path, items, default=lambda value: value.tolist())  # numpy's numbers and arrays


def write_reports(
    directory: str | Path,
    reports: Mapping[str, Sequence],
    *,
    whole: tuple[Mapping, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write reports, each (summary, items of every seed) into a folder of its name, or none.

    The name "" is `directory` itself. Scores that are no probabilities get no plot. `whole` is the
    summary of a comparison, and its Markdown, for `directory` itself. Pages have what is in
    `report.json`, and the plot.
    """
    with atomic_directory(directory, replaceable=is_report, overwrite=overwrite) as new:
        for name, (summary, *seeds) in reports.items():
            folder = new / name.replace(" ", "_")
            folder.mkdir(exist_ok=True)
            for number, items in enumerate(seeds, 1):
                write_items(folder / (SEED_ITEMS.format(number) if number > 1 else ITEMS), items)
            write_json(folder / JSON, summary)
            write_text(folder / MARKDOWN, markdown(summary))
            if summary["reliability"]:
                plot(summary, folder / PLOT)
            png = (folder / PLOT).read_bytes() if summary["reliability"] else None
            write_text(folder / PAGE, report_page(read_json(folder / JSON), png))
        if whole:
            write_json(new / JSON, whole[0])
            write_text(new / MARKDOWN, whole[1])
            write_text(new / PAGE, versus_page(read_json(new / JSON)))
        elif len(reports) > 1:
            summaries = {name.replace(" ", "_"): one for name, (one, *_) in reports.items()}
            write_text(new / PAGE, overview_page(summaries))


def is_report(path: Path) -> bool:
    """Return whether a directory is a report, or has one for each way, and nothing else."""
    folders = [one for one in path.iterdir() if not _of_report(one)]
    return all(one.is_dir() and _is_single(one) for one in folders)


def _is_single(folder: Path) -> bool:
    names = {one.name for one in folder.iterdir()}
    return {*FILES} - {PLOT, PAGE} <= names and all(map(_of_report, folder.iterdir()))


def _of_report(path: Path) -> bool:
    return path.name in (*FILES, SUMS) or path.match(SEED_ITEMS.format("*"))
