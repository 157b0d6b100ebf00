"""scripts/soak.py itself, with a few of its faults."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
KINDS = ["two signals", "flipped bit"]


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ["FAST_COMPILATION"])  # one device
    monkeypatch.syspath_prepend(SCRIPTS)  # its processes import it by this name
    sys.modules.pop("soak", None)
    import soak  # ty: ignore[import-not-found]

    return soak


@pytest.mark.slow
def test_a_disturbed_run_ends_as_the_undisturbed_one(soak, tmp_path, capsys):
    kinds = ",".join(KINDS)
    out = tmp_path / "out"
    code = soak.main([f"--kinds={kinds}", f"--faults={len(KINDS)}", "--seed=3", f"--out={out}"])
    text = capsys.readouterr().out
    assert code == 0, text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    counts = {row[0]: row[1:] for row in rows[2:]}
    for kind in KINDS:
        assert counts[kind][:2] == ["1", "1"], text  # injected once, and recovered from
    assert counts["two signals"][2] == "0"
    assert int(counts["all"][2]) > 0  # steps ran again after a kill
    assert counts["all"][3] == "0"
    assert "bit-identical" in text

    # A difference would have been reported.
    run, expected, result = out / "run", out / "undisturbed", tmp_path / "differing.json"
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([*lines[:6], *lines[7:]]))
    newest = run / "checkpoints" / str(soak.finished_steps(run)[-1])
    shutil.rmtree(newest)
    soak.compare_runs(run, expected, result)
    text = "; ".join(json.loads(result.read_text()))
    assert text.startswith("checkpoints: [")
    assert "metrics.jsonl from line 7 of" in text
    for part in ("model[", "optimizer[", "position"):
        assert part in text


def test_lost_work_is_counted(soak, tmp_path):
    run, count = tmp_path / "run", soak.Count()
    of = soak.Soak(tmp_path, run, {}, seed=0)

    def write(name: str, text: str) -> None:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)

    lines = [f'{{"step": {step}}}\n' for step in (1, 2, 3)]
    write("metrics.jsonl", "".join(lines) + '{"st')
    for step in (1, 2):
        write(f"checkpoints/{step}/SHA256SUMS", "a" * 70)
    before = of._finished_work(but=None)
    assert (before.last, before.step, before.size) == (3, 2, 70)
    assert before.lines == "".join(lines[:2]).encode()
    assert of._finished_work(but=2).step == 1

    write("metrics.jsonl", "".join(lines[:2]))
    write("events.jsonl", '{"ti{"time": 1, "event": "start", "step": 2}\n')
    of._check(before, count)
    assert (count.repeated, count.lost) == (1, 0)
    write("metrics.jsonl", "".join(lines[1:]))
    write("events.jsonl", '{"time": 1, "event": "start", "step": 1}\n')
    of._check(before, count)
    assert (count.repeated, count.lost) == (1 + 2, 70 + len(lines[0]) - 1)


def test_unknown_faults(soak, capsys):
    with pytest.raises(SystemExit, match="2"):
        soak.main(["--kinds=earthquake"])
    assert "got earthquake" in capsys.readouterr().err
