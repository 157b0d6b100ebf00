import fcntl
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from pool_tasks import DASK, DIRECT

from biomedlm_jax.cli import main
from biomedlm_jax.corpus import corpus_builder, deduplication
from biomedlm_jax.corpus.corpus_builder import build_corpus
from biomedlm_jax.corpus.corpus_settings import CorpusSettings
from biomedlm_jax.corpus.documents import read_documents
from biomedlm_jax.corpus.filters import Filters
from biomedlm_jax.corpus.parts_folder import parts_folder
from biomedlm_jax.corpus.sources import parse_sources
from biomedlm_jax.errors import InputError
from biomedlm_jax.integrity import damage
from biomedlm_jax.streams import read_lines

FIELDS = ["id", "text", "source", "license", "pmid", "pmcid", "doi", "year"]


def words(seed: int, count: int = 60) -> str:
    return " ".join(f"w{(seed * 7919 + n * n * 31 + n) % 9973}" for n in range(count))


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def given(tmp_path):
    """Abstracts in three files, and articles in two; some are copies, versions or too short."""
    abstracts = [
        {"pmid": n, "title": f"Title {n}", "abstract": words(n), "year": 2000 + n % 20}
        for n in range(1, 61)
    ]
    revised = [{**abstracts[n - 1], "abstract": words(n) + " revised"} for n in (3, 4)]
    copies = [{"abstract": words(7), "title": "Title 7"}, {"abstract": "", "title": "alone"}]
    articles = [
        {"pmcid": f"PMC{n}", "body": f"{words(1000 + n, 300)} {words(n)} {words(2000 + n, 90)}"}
        for n in range(10, 15)
    ]
    articles += [
        {"pmid": 20, "pmcid": "PMC20", "body": words(3000, 200)},
        {"body": words(9) + " x"},
    ]
    write(tmp_path / "abstracts" / "1.jsonl", abstracts[:30])
    write(tmp_path / "abstracts" / "2.jsonl", abstracts[30:])
    write(tmp_path / "abstracts" / "3.jsonl", [*revised, *copies])
    write(tmp_path / "articles" / "1.jsonl", articles[:3])
    write(tmp_path / "articles" / "2.jsonl", articles[3:])
    return parse_sources([f"{name}=text:{tmp_path / name}" for name in ("abstracts", "articles")])


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr("biomedlm_jax.corpus.input_files.BATCH_FILES", 1)


def lines(out, name="documents-*"):
    return [json.loads(line) for file in sorted(out.glob(name)) for _, line in read_lines(file)]


def content(out):
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_every_record_is_in_the_corpus_or_left_out_with_a_reason(given, tmp_path):
    out, reports = tmp_path / "out", []
    manifest = build_corpus(given, out, progress=reports.append)
    documents, left_out = lines(out), lines(out, "left_out*")
    assert all(list(document) == FIELDS for document in documents)
    assert Counter((row["reason"], row.get("because_of", "")) for row in left_out) == {
        ("older_version", "pmid:3"): 1,
        ("older_version", "pmid:4"): 1,
        ("exact_duplicate", "pmid:7"): 1,
        ("title_only", ""): 1,
        ("abstract_of_article", "PMC20"): 1,
        ("near_duplicate", "pmid:9"): 1,
        **{("contained", f"PMC{n}"): 1 for n in range(10, 15)},
    }
    # Of each, the file is known.
    places = {row["id"]: row["place"] for row in left_out if row["reason"] != "title_only"}
    assert places["pmid:3"] == places["pmid:10"] == str(tmp_path / "abstracts" / "1.jsonl")
    assert places["pmid:20"] == str(tmp_path / "abstracts" / "1.jsonl")
    assert sorted(places.values())[-1] == str(tmp_path / "articles" / "2.jsonl")
    abstracts, articles = manifest["sources"]
    assert [row["stages"]["read"]["documents"] for row in manifest["sources"]] == [64, 7]
    assert abstracts["left_out"] == {
        "abstract_of_article": 1,
        "contained": 5,
        "exact_duplicate": 1,
        "older_version": 2,
        "title_only": 1,
    }
    assert articles["left_out"] == {"near_duplicate": 1}
    for row in manifest["sources"]:
        stages = row["stages"]
        there = stages["corpus"]["documents"]
        assert stages["read"]["documents"] == there + sum(row["left_out"].values())
        counts = [stage["documents"] for stage in stages.values()]
        sizes = [stage["text_bytes"] for stage in stages.values()]
        assert counts == sorted(counts, reverse=True)
        assert sizes == sorted(sizes, reverse=True)
    # The order is that of the sources, files and records.
    ids = [document["id"] for document in documents]
    numbers = [int(name[5:]) for name in ids if name.startswith("pmid:")]
    assert numbers == [*sorted({*range(1, 61)} - {*range(10, 15), 3, 4, 20}), 3, 4]
    assert ids[-6:] == [f"PMC{n}" for n in (*range(10, 15), 20)]
    assert documents[-8]["text"].endswith(" revised")
    assert manifest["documents"] == len(documents) == len(set(ids))
    assert manifest["text_bytes"] == sum(len(one["text"].encode()) for one in documents)
    assert [file["sha256"] for file in manifest["inputs"]] == [
        entry["sha256"] for entry in lines(out, "inputs*")
    ]
    assert damage(out) == []
    assert [one.text for one in read_documents([out])] == [one["text"] for one in documents]
    assert not parts_folder(out).exists()


def test_filters_apply_before_versions_and_copies(given, tmp_path):
    """The filters refuse the revised versions, whose older ones must not come back."""
    settings = CorpusSettings(filters=Filters(max_characters=len("Title 3\n\n") + len(words(3))))
    build_corpus(given, tmp_path / "out", settings)
    reasons = {row.get("id"): row["reason"] for row in lines(tmp_path / "out", "left_out*")}
    assert reasons["pmid:3"] == "too_long"
    assert reasons["PMC10"] == "too_long"
    ids = {document["id"] for document in lines(tmp_path / "out")}
    assert "pmid:3" not in ids
    assert {"pmid:10", "pmid:20"} <= ids  # whose articles are not in the corpus


def test_any_number_of_processes_gives_the_same_bytes(given, tmp_path):
    settings = CorpusSettings(shard_bytes=5000, epochs={"abstracts": 1.5})
    one, two = tmp_path / "one", tmp_path / "two"
    manifest = build_corpus(given, one, settings)
    assert build_corpus(given, two, settings, workers=2) == manifest
    assert content(one) == content(two)
    sizes = [file["text_bytes"] for file in manifest["files"]]
    assert len(sizes) > 5
    assert all(5000 <= size < 5000 + 4000 for size in sizes[:-1])
    names = [file["name"] for file in manifest["files"]]
    assert names[0] == f"documents-00000-of-{len(names):05d}.jsonl.zst"
    counts = [file["documents"] for file in manifest["files"]]
    assert counts == [len(lines(one, name)) for name in names]


def test_the_largest_files_are_read_first(given, tmp_path, monkeypatch):
    sizes, make_part = [], corpus_builder.make_part

    def recorded(folder, source, files, settings):
        sizes.append(sum(file.stat().st_size for file in files))
        return make_part(folder, source, files, settings)

    monkeypatch.setattr(corpus_builder, "make_part", recorded)
    build_corpus(given, tmp_path / "corpus")
    assert len({*sizes}) > 3
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [DIRECT, DASK], ids=["DirectRunner", "DaskRunner"])
def test_beam_gives_the_same_bytes(given, tmp_path, flags, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(corpus_builder.__file__).parents[2]))
    settings = CorpusSettings(shard_bytes=5000, epochs={"abstracts": 1.5})
    one, two = tmp_path / "one", tmp_path / "two"
    manifest = build_corpus(given, one, settings)
    if flags == DASK:  # the deduplication has several tasks, too, and ten pipelines
        monkeypatch.setattr(deduplication, "RUN_BYTES", 30_000)
        monkeypatch.setattr(deduplication, "COMPARING", (10, 2))
    options = ["--engine=beam", f"--beam_options={' '.join(flags)}", "--shard_bytes=5000"]
    sources = [f"--source={source.name}=text:{source.paths[0]}" for source in given]
    command = ["build-corpus", *sources, f"--out={two}", "--epochs=abstracts=1.5", *options]
    assert main(command) == 0
    assert content(one) == content(two)
    assert len(manifest["files"]) > 5


def test_epochs_repeat_documents(given, tmp_path):
    def build(name, **options):
        build_corpus(given, tmp_path / name, CorpusSettings(**options))
        return [document["id"] for document in lines(tmp_path / name)]

    once = build("once")
    abstracts = [name for name in once if not name.startswith("PMC")]
    articles = once[len(abstracts) :]
    ids = build("more", epochs={"abstracts": 2.4, "articles": 0.5})
    # Whole passes come one after the other, so that the copies of a document are far apart.
    first = ids[: ids.index("pmid:1#2")]
    assert first == [*abstracts, *(name for name in articles if name in first)]
    assert ids[len(first) :][: len(abstracts)] == [f"{name}#2" for name in abstracts]
    third = [name for name in ids if name.endswith("#3")]
    assert ids[len(first) + len(abstracts) :] == third
    assert 0.2 < len(third) / len(abstracts) < 0.6
    assert 0 < len(first) - len(abstracts) < len(articles)
    reasons = Counter(row["reason"] for row in lines(tmp_path / "more", "left_out*"))
    assert reasons["not_sampled"] == len(articles) - (len(first) - len(abstracts))
    # A larger fraction has the documents of a smaller one; another seed has others.
    larger = build("larger", epochs={"abstracts": 2.7, "articles": 0.5})
    assert {*third} < {name for name in larger if name.endswith("#3")}
    other = build("other", epochs={"abstracts": 2.4, "articles": 0.5}, seed=1)
    assert {*third} != {name for name in other if name.endswith("#3")}


def test_a_mixture_has_the_shares_of_its_sources(tmp_path):
    write(tmp_path / "a" / "a.jsonl", [{"text": words(n)} for n in range(400)])
    write(tmp_path / "b" / "b.jsonl", [{"text": words(5000 + n)} for n in range(100)])
    sources = parse_sources([f"a=text:{tmp_path / 'a'}", f"b=text:{tmp_path / 'b'}"])
    settings = CorpusSettings(mixture={"a": 1, "b": 3}, mixture_epochs=3)
    manifest = build_corpus(sources, tmp_path / "out", settings)
    sizes = [row["stages"]["corpus"]["text_bytes"] for row in manifest["sources"]]
    assert sizes[0] / sum(sizes) == pytest.approx(0.25, abs=0.04)
    epochs = [row["epochs"] for row in manifest["sources"]]
    assert epochs == pytest.approx([0.25, 3], rel=0.01)
    assert manifest["sources"][1]["stages"]["corpus"]["documents"] == 300


def test_a_build_continues_after_an_error(given, tmp_path, monkeypatch):
    expected = build_corpus(given, tmp_path / "expected")
    out, make_part, made = tmp_path / "out", corpus_builder.make_part, []

    def fail(folder, *rest):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(folder)
        return make_part(folder, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(corpus_builder, "make_part", fail)
        with pytest.raises(KeyboardInterrupt) as raised:
            build_corpus(given, out)
    continues = "finished parts in {}; the same command continues with them"
    assert raised.value.__notes__ == [f"kept: 3 {continues.format(parts_folder(out))}"]
    assert not out.exists()
    assert sorted(path.name for path in parts_folder(out).iterdir()) == sorted(
        folder.name for folder in made
    )
    read = []
    with monkeypatch.context() as patch:
        module = "biomedlm_jax.corpus.parts"
        reader = sys.modules[module].read_source
        patch.setattr(f"{module}.read_source", lambda *a: read.append(a[1]) or reader(*a))
        full = OSError(28, "No space left on device")
        patch.setattr(corpus_builder, "write_shard", lambda *_: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match="No space left") as raised:
            build_corpus(given, out)
        assert raised.value.filename == str(out)
        assert raised.value.__notes__ == [f"kept: 5 {continues.format(parts_folder(out))}"]
    files = sorted(tmp_path.glob("a*/*.jsonl"), key=lambda file: file.stat().st_size)
    assert read == files[1::-1]  # three were read before
    assert not out.exists()
    assert build_corpus(given, out) == expected
    assert content(out) == content(tmp_path / "expected")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"abstracts", "articles", "expected", "out"}


def test_a_killed_build_leaves_no_half_corpus(given, tmp_path, monkeypatch):
    code = (
        "import sys\n"
        "from biomedlm_jax.corpus import corpus_builder, input_files\n"
        "from biomedlm_jax.corpus.sources import parse_sources\n"
        "import time\n"
        "input_files.BATCH_FILES = 1\n"
        "def stop(*_):\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
        "corpus_builder.write_shard = stop\n"
        "corpus_builder.build_corpus(parse_sources(sys.argv[2:]), sys.argv[1])\n"
    )
    out = tmp_path / "out"
    values = [f"{source.name}=text:{source.paths[0]}" for source in given]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(out), *values], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    with pytest.raises(InputError, match="another process builds this corpus"):
        build_corpus(given, out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not out.exists()
    build_corpus(given, tmp_path / "expected")
    monkeypatch.setattr("biomedlm_jax.corpus.parts.read_source", None)  # no file is read again
    build_corpus(given, out)
    assert content(out) == content(tmp_path / "expected")


def test_parts_of_other_inputs_and_settings_are_not_used(given, tmp_path):
    out = tmp_path / "out"
    folder = parts_folder(out)
    (folder / "abstracts-000000-0123456789ab").mkdir(parents=True)
    (folder / "abstracts-000001-0123456789ab.new").mkdir()
    build_corpus(given, out, CorpusSettings(filters=Filters(titles_only=True)))
    assert "alone" in {document["text"] for document in lines(out)}
    with pytest.raises(InputError, match="exists; name another directory, or pass --overwrite"):
        build_corpus(given, out)
    manifest = build_corpus(given, out, overwrite=True)
    assert "alone" not in {document["text"] for document in lines(out)}
    assert manifest["settings"]["filters"]["titles_only"] is False
    with pytest.raises(InputError, match="holds something else"):
        build_corpus(given, tmp_path / "articles", overwrite=True)


def test_one_build_at_a_time(given, tmp_path):
    folder = parts_folder(tmp_path / "out")
    folder.mkdir()
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(InputError, match=r"another process builds this corpus; .*\.out\.parts"):
        build_corpus(given, tmp_path / "out")
    os.close(descriptor)


def test_a_corpus_without_a_document_is_refused(given, tmp_path):
    settings = CorpusSettings(filters=Filters(license="commercial"))
    with pytest.raises(InputError, match=r"no document is left; left out: .*license_un"):
        build_corpus(given, tmp_path / "out", settings)
    with pytest.raises(InputError, match="near=2"):
        build_corpus(given, tmp_path / "out", CorpusSettings(near=2))
    assert not (tmp_path / "out").exists()


def test_bad_places_are_refused(given, tmp_path):
    with pytest.raises(InputError, match="workers=0"):
        build_corpus(given, tmp_path / "out", workers=0)
    with pytest.raises(InputError, match="write to a local directory"):
        build_corpus(given, "gs://bucket/corpus")
    missing = parse_sources([f"text:{tmp_path / 'nowhere'}"])
    with pytest.raises(InputError, match="no such file or directory"):
        build_corpus(missing, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"abstracts", "articles"}
