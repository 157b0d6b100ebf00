"""build-corpus: the library's corpus, with progress on standard error, and its files' next user."""

import gzip
import json

from biomedlm_jax import cli
from biomedlm_jax.corpus import corpus_builder
from biomedlm_jax.corpus.corpus_manifest import read_corpus_manifest, shards_of
from biomedlm_jax.corpus.manifest import read_manifest
from biomedlm_jax.streams import read_lines

ROWS = [
    {
        "text": f"Patient {n} was given {n * n} mg of drug {chr(97 + n % 26)}. " * 3,
        "pmid": n,
        "language": "eng" if n % 10 else "ger",
        "license": "CC BY" if n % 3 else "CC BY-NC",
        "type": "letter" if n % 7 == 1 else "article",
        "year": 2000 + n % 2,
    }
    for n in range(1, 101)
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_from_files_to_token_rows(tmp_path, capsys, report_at_both_ends):
    report_at_both_ends(corpus_builder)
    file, out = write(tmp_path / "a.jsonl", [*ROWS, ROWS[0]]), tmp_path / "corpus"
    figures, tokens = tmp_path / "figures.json", tmp_path / "tokens"
    flags = [f"--source=mine=text:{file}", f"--out={out}", "--workers=1"]
    assert cli.main(["build-corpus", *flags, f"--json={figures}"]) == 0
    printed = capsys.readouterr()
    manifest = read_corpus_manifest(out)
    assert json.loads(figures.read_text()) == manifest
    assert "read                  101 / 0.0 MB" in printed.out
    assert "left out   1 of mine: older_version" in printed.out
    assert f"corpus     {manifest['documents']} documents, 0.0 MB in 1 file\n" in printed.out
    assert " s  read " in printed.err
    assert " s  write " in printed.err
    size = "--vocab_size=280"
    tokenizer = tmp_path / "tokenizer"
    assert cli.main(["train-tokenizer", f"--input={out}", f"--out={tokenizer}", size]) == 0
    rows = [f"--input={out}", f"--tokenizer={tokenizer}", f"--out={tokens}", "--length=32"]
    assert cli.main(["build-tokens", *rows]) == 0
    splits = read_manifest(tokens)["splits"].values()
    assert sum(split["documents"] for split in splits) == manifest["documents"]
    assert cli.main(["verify", str(out)]) == 0
    listed = f"the manifest lists {manifest['documents']} documents\n"
    assert capsys.readouterr().out.endswith(listed)
    assert cli.main(["build-corpus", *flags]) == 2
    assert "exists; name another directory, or pass --overwrite" in capsys.readouterr().err


def test_flags_choose_documents(tmp_path):
    file, out = write(tmp_path / "a.jsonl", ROWS), tmp_path / "corpus"
    chosen = "--languages=en --license=commercial --first_year=2001 --without_types=Letter,Reply"
    more = "--min_characters=50 --max_characters=500 --near=0 --contained=0 --seed=1"
    flags = [f"--source=mine=text:{file}", f"--out={out}", *chosen.split(), *more.split()]
    assert cli.main(["build-corpus", *flags, "--epochs=mine=1.5", "--workers=1"]) == 0
    manifest = read_corpus_manifest(out)
    filters = manifest["settings"]["filters"]
    assert filters["languages"] == ["en"]
    assert filters["without_types"] == ["Letter", "Reply"]
    (source,) = manifest["sources"]
    kept = [
        *(row for row in ROWS if row["language"] == "eng" and row["license"] == "CC BY"),
    ]
    kept = [row for row in kept if row["year"] == 2001 and row["type"] == "article"]
    assert source["stages"]["filters"]["documents"] == len(kept)
    assert source["left_out"].keys() == {"language", "license", "year", "type"}
    assert len(kept) < manifest["documents"] < 2 * len(kept)


def test_bad_input_is_one_line(tmp_path, capsys):
    file = write(tmp_path / "a.jsonl", ROWS[:3])
    source, out = f"--source=text:{file}", f"--out={tmp_path / 'out'}"
    for flags, message in (
        ([out], "--source is required."),
        ([source], "--out is required."),
        ([f"--source={file}", out], f"got --source={file}; expected [NAME=]FORMAT:PATH[,PATH]"),
        ([source, out, "--epochs=2"], "got --epochs=2; expected NAME=NUMBER, such as medline=1.5"),
        ([source, out, "--epochs=text=x"], "got --epochs=text=x; expected NAME=NUMBER"),
        (
            [source, out, "--mixture=text=1,text=2"],
            "got --mixture=text=1,text=2; give one number for each source",
        ),
        ([source, out, "--mixture_epochs=2"], "got --mixture_epochs without --mixture"),
        ([source, out, "--license=free"], "expected one of any, non-commercial, commercial"),
        ([source, out, "--workers=-1"], "--workers"),
        ([source, out, "--file_list=none.csv"], "no source of the kind pmc"),
        ([f"--source=pmc:{tmp_path}", out], "no file to read in"),
        ([f"--source=pmc:{file}", out, "--subsets=a"], "subsets of records, but no source"),
        ([f"--source=pmc:{file}", out, "--field=body=a"], "no source of the kind text"),
        ([f"--source=text:{tmp_path / 'none'}", out], "no such file or directory"),
    ):
        assert cli.main(["build-corpus", *flags]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    write(file, [{"text": "x"}] * 3)
    assert cli.main(["build-corpus", source, out, "--languages=fr", "--workers=1"]) == 2
    error, kept = capsys.readouterr().err.splitlines()
    assert error.endswith("left out: 3 language_unknown")
    assert f"kept: 1 finished part in {tmp_path / '.out.parts'}; the same command" in kept


CITATION = (
    '<PubmedArticle><MedlineCitation><PMID Version="1">{pmid}</PMID><Article><ArticleTitle>{title}'
    "</ArticleTitle><Abstract><AbstractText>{text}</AbstractText></Abstract><Language>eng</Language>"
    "</Article></MedlineCitation></PubmedArticle>"
)


def write_medline(path, citations, deleted=()):
    records = [CITATION.format(pmid=n, title=f"Title {n}", text=text) for n, text in citations]
    pmids = "".join(f"<PMID>{n}</PMID>" for n in deleted)
    records += [f"<DeleteCitation>{pmids}</DeleteCitation>"] if pmids else []
    path.parent.mkdir(exist_ok=True)
    xml = f"<PubmedArticleSet>{''.join(records)}</PubmedArticleSet>"
    path.write_bytes(gzip.compress(xml.encode()))


def abstract(number):
    return " ".join(f"w{number * 1009 + n * n % 4001}" for n in range(70)) + "."


def test_from_the_files_of_nlm_to_a_corpus(tmp_path, capsys, real_data):
    jats, known = real_data / "jats", "15566594"  # PMID of one of the articles
    citations = [(n, abstract(n)) for n in (1, 2, 3, 4)] + [(known, abstract(5))]
    write_medline(tmp_path / "baseline" / "pubmed26n0001.xml.gz", citations)
    revised = [(2, abstract(2) + " Revised."), (7, abstract(7))]
    write_medline(tmp_path / "updates" / "pubmed26n0002.xml.gz", revised, deleted=[3])
    (tmp_path / "updates" / "pubmed26n0002.xml.gz.md5").touch()
    medline = f"--source=medline:{tmp_path / 'baseline'},{tmp_path / 'updates'}"
    flags = [medline, f"--source=pmc:{jats}", f"--out={tmp_path / 'corpus'}", "--workers=1"]
    assert cli.main(["build-corpus", *flags]) == 0
    assert "not read   1 file, hidden or of unknown format" in capsys.readouterr().out
    manifest = read_corpus_manifest(tmp_path / "corpus")
    pubmed, pmc = manifest["sources"]
    assert pubmed["left_out"] == {"abstract_of_article": 1, "deleted": 1, "older_version": 1}
    assert pubmed["stages"]["corpus"]["documents"] == 4
    assert pmc["files"] == pmc["stages"]["corpus"]["documents"] == len([*jats.iterdir()])
    (shard,) = shards_of(tmp_path / "corpus")
    rows = [json.loads(line) for _, line in read_lines(shard)]
    assert [row["id"] for row in rows[:4]] == ["pmid:1", "pmid:4", "pmid:2", "pmid:7"]
    assert rows[2]["text"].endswith(" Revised.")
    assert {row["source"] for row in rows} == {"medline", "pmc"}
    articles = {row["pmcid"]: row for row in rows[4:]}
    assert articles["PMC1065065"]["pmid"] == known
    assert {row["license"] for row in articles.values()} == {"CC BY"}
    assert all(len(row["text"]) > 5000 for row in articles.values())
