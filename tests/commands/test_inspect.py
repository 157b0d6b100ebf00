import json

import pytest

from biomedlm_jax.cli import main
from biomedlm_jax.files import write_json


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    write_json(path / "run.json", {"recipe": "text", "training": {"steps": 9}})
    (path / "metrics.jsonl").write_text('{"step": 3, "loss": 2.0}\n')
    return path


def test_a_run(run, capsys):
    assert main(["inspect", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"directory: {run}",
        "recipe: text",
        "step: 3 of 9",
        "loss: 2",
        "checkpoints: none",
        "locked by: none",
    ]
    assert not (run / "loss.png").exists()


def test_the_flags_reach_the_library(run, capsys, tmp_path):
    figures = tmp_path / "facts.json"
    assert main(["inspect", f"--run={run}", "--verify", "--plot", f"--json={figures}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "record: whole" in lines
    assert lines[-1] == f"drawn: {run / 'loss.png'}"
    assert (run / "loss.png").stat().st_size > 1000
    facts = json.loads(figures.read_text())
    assert (facts["last_step"], facts["health"]) == (3, {"record": "record: whole"})


def test_the_page(run, capsys, tmp_path):
    page = tmp_path / "pages" / "run.html"
    assert main(["inspect", str(run), f"--html={page}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {page}"
    assert "data:image/png;base64," in page.read_text()
    assert {one.name for one in run.iterdir()} == {"run.json", "metrics.jsonl"}
    for arguments, message in (
        ([f"--html={page}"], "exists; name another file, or pass --overwrite"),
        ([f"--html={run}"], "is a directory; name a file"),
        (["--overwrite"], "got --overwrite without --html"),
    ):
        assert main(["inspect", str(run), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["inspect", str(run), f"--html={page}", "--overwrite"]) == 0


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
