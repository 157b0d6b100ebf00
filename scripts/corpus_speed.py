"""Measure the speed and the memory of build-corpus with one process and with several.

    python scripts/corpus_speed.py --megabytes=200 --files=8 --workers=2 --rounds=3
    python scripts/corpus_speed.py --megabytes=4300 --files=24 --references=40 --only --rounds=1

Makes MEDLINE files of random words, builds a corpus of them in new processes, with 1 worker and
with --workers in turn, and prints the median seconds, MB of XML per second, CPU seconds, those that
other processes of the machine used meanwhile, and the peaks of resident memory of the parent and of
its largest worker. Stops if the corpora differ.
With --only, the side with 1 worker is left out.
"""

import argparse
import filecmp
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# Prints CPU seconds, and the peaks of this process and of the largest of its workers in KiB.
CHILD = """
import resource, sys
from biomedlm_jax.cli import main
if __name__ == "__main__":
    code = main(sys.argv[1:])
    own, workers = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = own.ru_utime + own.ru_stime + workers.ru_utime + workers.ru_stime
    print(cpu, own.ru_maxrss, workers.ru_maxrss)
    sys.exit(code)
"""
RECORD = (
    '<PubmedArticle><MedlineCitation Status="MEDLINE"><PMID Version="1">{pmid}</PMID><Article>'
    "<Journal><Title>Journal of Words</Title><JournalIssue><PubDate><Year>{year}</Year></PubDate>"
    "</JournalIssue></Journal><ArticleTitle>{title}.</ArticleTitle><Abstract><AbstractText>{text}."
    "</AbstractText></Abstract><Language>eng</Language><PublicationTypeList><PublicationType>"
    "Journal Article</PublicationType></PublicationTypeList></Article></MedlineCitation>"
    '<PubmedData><ArticleIdList><ArticleId IdType="pubmed">{pmid}</ArticleId></ArticleIdList>'
    "{references}</PubmedData></PubmedArticle>\n"
)
REFERENCE = (
    "<Reference><Citation>Doe J. A title of an article. J Words. 2001;7(3):11-9.</Citation>"
    '<ArticleIdList><ArticleId IdType="pubmed">12345678</ArticleId></ArticleIdList></Reference>'
)


def write_medline(folder: Path, *, megabytes: float, files: int, references: int = 0) -> int:
    """Write files of about so many MB of XML together; return the bytes of XML.

    `references` of an article are read, but are no text of it.
    """
    listed = f"<ReferenceList>{REFERENCE * references}</ReferenceList>" if references else ""
    random = np.random.default_rng(0)
    letters = random.integers(97, 123, (50_000, 12), dtype=np.uint8)
    words = [bytes(row[: 2 + n % 11]).decode() for n, row in enumerate(letters)]
    pmid = size = 0
    for number in range(files):
        with gzip.open(folder / f"pubmed26n{number:04d}.xml.gz", "wt", 1) as file:
            size += file.write("<?xml version='1.0' encoding='utf-8'?>\n<PubmedArticleSet>\n")
            while size < megabytes * 1e6 * (number + 1) / files:
                # Some words are frequent, as in a language.
                chosen = (random.random(220) ** 3 * len(words)).astype(int).tolist()
                title, text = (
                    " ".join(words[n] for n in part) for part in (chosen[:15], chosen[15:])
                )
                pmid += 1
                values = {"pmid": pmid, "year": 1970 + pmid % 50, "references": listed}
                size += file.write(RECORD.format(title=title, text=text, **values))
            size += file.write("</PubmedArticleSet>\n")
    return size


def build(source: Path, out: Path, workers: int) -> dict[str, float]:
    """Build a corpus in a process of its own; return seconds, CPU seconds and peaks in MB."""
    # The file has a name, so that the workers can import it.
    script = out.with_name("child.py")
    script.write_text(CHILD)
    arguments = ["build-corpus", f"--source=medline:{source}", f"--out={out}", "--overwrite"]
    start, used = time.perf_counter(), busy()
    command = [sys.executable, str(script), *arguments, f"--workers={workers}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"build-corpus failed: {done.stderr}")
    seconds = time.perf_counter() - start
    used = busy() - used
    cpu, own, largest = map(float, done.stdout.splitlines()[-1].split())
    peaks = {"parent_mb": own * 1024 / 1e6, "worker_mb": largest * 1024 / 1e6 * (workers > 1)}
    return {"seconds": seconds, "cpu_seconds": cpu, "others_cpu_seconds": used - cpu, **peaks}


def busy() -> float:
    """Return the CPU seconds that all processes of the machine have used; nan if not Linux."""
    try:
        ticks = Path("/proc/stat").read_text().split(maxsplit=8)[1:8]
    except OSError:
        return float("nan")
    user, nice, system, _, _, interrupts, soft = map(int, ticks)
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=float, default=200, help="MB of XML")
    parser.add_argument("--files", type=int, default=8, help="files of the XML")
    parser.add_argument("--workers", type=int, default=2, help="processes of the second side")
    parser.add_argument("--rounds", type=int, default=3, help="builds of each side")
    parser.add_argument("--references", type=int, default=0, help="references of an article")
    parser.add_argument("--only", action="store_true", help="measure --workers only")
    parser.add_argument("--work", help="directory for the files; a temporary one by default")
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()
    sides: dict[int, list[dict[str, float]]] = {1: [], options.workers: []}
    if options.only:
        del sides[1]
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        source = Path(folder, "baseline")
        source.mkdir()
        facts = {name: getattr(options, name) for name in ("megabytes", "files", "references")}
        size = write_medline(source, **facts)
        print(f"{size / 1e6:,.1f} MB of XML in {options.files} files, {os.cpu_count()} cores")
        for number in range(options.rounds):
            for workers, figures in sides.items():
                load = os.getloadavg()[0]
                figures.append(build(source, Path(folder, f"corpus{workers}"), workers))
                line = ", ".join(f"{name} {value:,.1f}" for name, value in figures[-1].items())
                print(f"round {number + 1}, {workers} workers, load {load:.1f}: {line}", flush=True)
            if options.only:
                continue
            names = sorted(path.name for path in Path(folder, "corpus1").iterdir())
            others = Path(folder, f"corpus{options.workers}")
            same = filecmp.cmpfiles(Path(folder, "corpus1"), others, names, shallow=False)[0]
            if same != names:
                raise SystemExit(f"the corpora differ in {sorted({*names} - {*same})}")
    medians = {
        workers: {name: statistics.median(one[name] for one in figures) for name in figures[0]}
        for workers, figures in sides.items()
    }
    for workers, figures in medians.items():
        ratio = medians[min(medians)]["seconds"] / figures["seconds"]
        rate = size / 1e6 / figures["seconds"]
        print(
            f"{workers} workers: {figures['seconds']:.1f} s, {rate:.1f} MB/s of XML, {ratio:.2f}x, "
            f"CPU {figures['cpu_seconds']:.1f} s, of others {figures['others_cpu_seconds']:.1f} s, "
            f"peak {figures['parent_mb']:.0f} MB of the parent and {figures['worker_mb']:.0f} MB "
            "of a worker"
        )
    if options.json:
        Path(options.json).write_text(json.dumps({"xml_bytes": size, "sides": medians}, indent=2))


if __name__ == "__main__":
    main()
