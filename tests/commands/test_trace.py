"""`biomedlm trace`: building, tracing, the page, and one line for bad input."""

import io
import json
import sys

import pytest

from biomedlm_jax import cli

TEXT = "The incidence of renal failure was higher in the treated group."


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    rows = [{"text": f"Title {n}\n\n{TEXT} Case {n}.", "pmid": f"{n}"} for n in (5, 6)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"--source=text:{folder / 'a.jsonl'}"
    arguments = [source, "--near=0", "--contained=0", f"--out={folder / 'corpus'}"]
    assert cli.main(["build-corpus", *arguments]) == 0
    assert cli.main(["trace", f"--corpus={folder / 'corpus'}", "--build"]) == 0
    return folder / "corpus"


def run(corpus, *flags):
    return cli.main(["trace", f"--corpus={corpus}", *map(str, flags)])


def test_a_text_is_traced(corpus, tmp_path, capsys, monkeypatch):
    page, figures, file = (tmp_path / name for name in ("a.html", "a.json", "a.txt"))
    given_text = f"We saw (https://a.org) {TEXT.lower()}"
    assert run(corpus, f"--text={given_text}", f"--html={page}", f"--json={figures}") == 0
    printed = capsys.readouterr().out
    assert "11 words, 2 times in 2 documents" in printed
    assert "PMID 5: Title 5" in printed
    assert f"wrote {page}" in printed
    assert "https://pubmed.ncbi.nlm.nih.gov/6/" in page.read_text()
    (span,) = json.loads(figures.read_text())["spans"]
    assert (span["first"], span["words"], span["occurrences"]) == (3, 11, 2)
    assert run(corpus, f"--text=https://a.org/ {TEXT}") == 0  # a text and no path
    assert "11 of 12 words" in capsys.readouterr().out
    file.write_text(given_text)
    for given in ([f"--file={file}"], []):
        monkeypatch.setattr(sys, "stdin", io.StringIO(given_text))
        assert run(corpus, *given) == 0
        assert capsys.readouterr().out == printed.replace(f"\nwrote {page}\n", "")
    assert run(corpus, f"--text={given_text}", f"--html={page}") == 2
    assert "exists; name another file, or pass --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text=a", "--file=b"], "got --text and --file"),
        (["--text=a\udcff"], "--text: got bytes that are not UTF-8"),
        (["--file=nowhere"], "no such file: nowhere"),
        (["--text=..."], "without words"),
        (["--build", "--text=a"], "--text with --build"),
        (["--text=a", "--workers=2"], "--workers without --build"),
        (["--text=a", "--overwrite"], "--overwrite without --html"),
        (["--text=a", "--least=0"], "--least=0"),
        (["--text=a", "--corpus=nowhere"], "nowhere is no corpus"),
    ],
)
def test_bad_input_is_one_line(corpus, capsys, flags, message):
    assert run(corpus, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
