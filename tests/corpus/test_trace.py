"""trace.py: all maximal spans and nothing else, as a scan of the documents finds them."""

import json
import random
import shutil

import pytest

from biomedlm_jax.corpus import trace as traces
from biomedlm_jax.corpus.corpus_builder import build_corpus
from biomedlm_jax.corpus.corpus_settings import CorpusSettings
from biomedlm_jax.corpus.ngrams import words
from biomedlm_jax.corpus.sources import parse_sources
from biomedlm_jax.corpus.trace import Tracer, build_indexes, index_folder
from biomedlm_jax.errors import InputError

RNG = random.Random(0)
VOCABULARY = ["Renal", "dose", "of", "the", "mg/kg", "β-block", "é", "12.5"]


def prose(count: int) -> str:
    return "".join(
        RNG.choice(VOCABULARY) + RNG.choice([" ", ", ", ".\n", " - "]) for _ in range(count)
    )


TEXTS = [prose(RNG.randint(20, 60)) for _ in range(24)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three shards with their indexes."""
    folder = tmp_path_factory.mktemp("trace")
    rows = [{"text": text, "pmid": str(100 + n)} for n, text in enumerate(TEXTS)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = CorpusSettings(near=0, contained=0, shard_bytes=2000)
    manifest = build_corpus(
        parse_sources([f"text:{folder / 'a.jsonl'}"]), folder / "corpus", settings
    )
    assert len(manifest["files"]) > 2
    totals = build_indexes(folder / "corpus")
    assert totals["words"] == sum(len(words(text)) for text in TEXTS)
    return folder / "corpus"


def slow_spans(text: str, least: int) -> dict[tuple[int, int], list[int]]:
    """(first word, words) of each maximal span -> the document of each occurrence."""
    there, documents = words(text), [words(one) for one in TEXTS]

    def occurrences(first: int, end: int) -> list[int]:
        run = there[first:end]
        return [
            n
            for n, one in enumerate(documents)
            for i in range(len(one) - len(run) + 1)
            if one[i : i + len(run)] == run
        ]

    spans = {}
    for first in range(len(there)):
        for end in range(first + least, len(there) + 1):
            if not (within := occurrences(first, end)):
                break
            left = first > 0 and occurrences(first - 1, end)
            right = end < len(there) and occurrences(first, end + 1)
            if not left and not right:
                spans[first, end - first] = within
    return spans


@pytest.mark.parametrize("least", [1, 3, 6])
def test_all_maximal_spans_are_those_of_a_scan(corpus, least):
    tracer = Tracer(corpus)
    for _ in range(6):
        start = RNG.randrange(10)
        copied = TEXTS[RNG.randrange(24)].upper()[start : start + RNG.randint(20, 90)]
        text = f"{prose(8)}unseen {copied} {prose(RNG.randint(0, 9))}"
        trace = tracer.trace(text, least=least, spans=1000, documents=1000)
        expected = slow_spans(text, least)
        assert {(span.first, span.words) for span in trace.spans} == {*expected}
        for span in trace.spans:
            within = expected[span.first, span.words]
            assert (span.occurrences, span.documents) == (len(within), len({*within}))
            run = words(text)[span.first : span.first + span.words]
            assert words(trace.text[span.start : span.end]) == run
            assert [int(one.names["pmid"]) - 100 for one in span.examples] == sorted({*within})
            for one in span.examples:
                assert words(one.match) == run
                whole = TEXTS[int(one.names["pmid"]) - 100]
                assert one.before + one.match + one.after in whole
        covered = {w for first, count in expected for w in range(first, first + count)}
        assert trace.covered == len(covered)
        assert [span.words for span in trace.longest] == sorted(
            (n for _, n in expected), reverse=True
        )


def test_documents_are_described_for_the_longest_spans_only(corpus):
    trace = Tracer(corpus).trace(f"{TEXTS[2]} unseen {TEXTS[9]}", least=1, spans=2, documents=1)
    described = [span for span in trace.spans if span.examples]
    assert described == sorted(trace.longest[:2], key=lambda span: span.first)
    assert [len(span.examples) for span in described] == [1, 1]


def test_an_index_of_other_documents_or_none_is_refused(corpus, tmp_path):
    copy = shutil.copytree(corpus, tmp_path / "corpus")
    with pytest.raises(InputError, match=r"is missing; fix: biomedlm trace --build --corpus="):
        Tracer(copy)
    folder = shutil.copytree(index_folder(corpus), index_folder(copy))
    first, second, *_ = sorted(folder.iterdir())
    Tracer(copy)
    before = second.stat().st_mtime_ns
    shutil.rmtree(first)
    shutil.copytree(second, first)
    with pytest.raises(InputError, match="is of other documents"):
        Tracer(copy)
    shutil.copytree(second, folder / "documents-00000-of-00099")
    (folder / ".documents-00001-of-00099.1.new").mkdir()  # of a killed process
    (folder / "notes").mkdir()
    build_indexes(copy)  # only what is missing, or of others
    Tracer(copy)
    assert second.stat().st_mtime_ns == before
    assert not [*folder.glob("*documents-*-of-00099*")]
    assert (folder / "notes").exists()
    with pytest.raises(InputError, match="is no corpus"):
        build_indexes(tmp_path)
    with pytest.raises(InputError, match="without words"):
        Tracer(copy).trace(" -- ")
    with pytest.raises(InputError, match="least=0"):
        Tracer(copy).trace("a", least=0)


def test_words_that_are_not_those_of_the_documents_are_damage(corpus, tmp_path):
    copy = shutil.copytree(corpus, tmp_path / "corpus")
    folder = shutil.copytree(index_folder(corpus), index_folder(copy))
    for text in folder.glob("*/text"):
        text.write_bytes(text.read_bytes().replace(b" dose ", b" d  e "))  # more words
    with pytest.raises(InputError, match="is damaged: text is not that of the documents"):
        Tracer(copy).trace("the d e the", least=1, documents=1000)


def test_an_interruption_keeps_finished_shards(corpus, tmp_path, monkeypatch):
    copy, real, calls = shutil.copytree(corpus, tmp_path / "corpus"), traces.build_index, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(traces, "build_index", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_indexes(copy)
    assert len([*index_folder(copy).iterdir()]) == 1
    monkeypatch.undo()
    build_indexes(copy)
    assert Tracer(copy).trace(TEXTS[5], least=3).spans[0].words == len(words(TEXTS[5]))
