import inspect
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from biomedlm_jax.benchmarks import (
    bench_convert,
    bench_generate,
    bench_load,
    bench_medqa,
    bench_packing,
    bench_readers,
    bench_score,
    bench_tokens,
    bench_train,
)
from biomedlm_jax.cli import main
from biomedlm_jax.commands.bench import ARGUMENTS, COMPARED

SIDES = {
    "biomedlm_jax": {
        "median_seconds": 1.0,
        "quartile_seconds": [1.0, 1.0],
        "mb_per_second": 1.0,
        "ratio": 1.0,
        "seconds": [1.0],
    }
}
RESULT = {
    "work": "w",
    "machine": "m",
    "versions": {"jax": "1"},
    "notes": [],
    "tables": {"t": SIDES},
}
FUNCTIONS = {
    "train": bench_train.measure,
    "score": bench_score.measure,
    "medqa": bench_medqa.measure,
    "generate": bench_generate.measure,
    "load": bench_load.measure,
    "convert": bench_convert.measure,
    "tokens": bench_tokens.measure,
    "packing": bench_packing.measure,
    "readers": bench_readers.measure,
}
OTHERS = {"tokens": {"paths"}, "readers": set(), "medqa": set()}


@pytest.fixture
def calls(monkeypatch) -> dict:
    """What each benchmark was called with."""
    given = {}
    for what, function in FUNCTIONS.items():

        def measure(what=what, **arguments):
            given[what] = arguments
            return RESULT

        inspect.signature(function).bind(**dict.fromkeys(expected(what)))
        module = f"biomedlm_jax.benchmarks.bench_{what}"
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(measure=measure))
    return given


def expected(what: str) -> set[str]:
    names = {pair.rpartition(":")[2] for pair in ARGUMENTS[what].split()}
    return names | OTHERS.get(what, {"config"})


def test_train_is_the_default_and_the_figures_are_written(calls, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    flags = ["--layers=2", "--width=64", "--heads=4", "--length=32", "--unroll=2", "--steps=3"]
    assert main(["bench", *flags, f"--json={figures}"]) == 0
    assert set(calls["train"]) == expected("train")
    config = calls["train"]["config"]
    assert (config.layers, config.width, config.context_length, config.unroll) == (2, 64, 32, 2)
    assert config.attention_dropout == 0
    assert calls["train"]["steps"] == 3
    assert json.loads(figures.read_text()) == RESULT
    assert "m, jax 1" in capsys.readouterr().out


def test_the_kind_is_given_by_position(calls, tmp_path):
    assert main(["bench", "generate", "--batch_sizes=1,4", "--prompt=3", "--new_tokens=5"]) == 0
    assert set(calls["generate"]) == expected("generate")
    assert calls["generate"]["batch_sizes"] == (1, 4)
    assert calls["generate"]["config"].context_length == 8
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        file.write_text("text")
    assert main(["bench", "tokens", f"--input={files[0]},{files[1]}", "--tokenizer=t"]) == 0
    assert set(calls["tokens"]) == expected("tokens")
    assert calls["tokens"]["paths"] == files
    beam = "--beam_options=--runner=DirectRunner --direct_num_workers=2"
    assert main(["bench", "tokens", f"--input={files[0]}", "--tokenizer=t", beam]) == 0
    assert calls["tokens"]["beam"] == ["--runner=DirectRunner", "--direct_num_workers=2"]
    assert main(["bench", "score", "--path=p", "--hf_batch_sizes=2"]) == 0
    assert calls["medqa"]["hf_batch_sizes"] == (2,)
    assert main(["bench", "score", "--questions=7", "--hf="]) == 0
    assert (calls["score"]["questions"], calls["score"]["peers"]) == (7, [])
    assert main(["bench", "readers", "--path=p", "--rounds=2"]) == 0
    assert calls["readers"] == {"path": "p", "rounds": 2}
    assert main(["bench", "packing", "--length=64", "--batch_size=4"]) == 0
    assert set(calls["packing"]) == expected("packing")
    assert calls["packing"]["config"].context_length == calls["packing"]["length"] == 64


def test_all_writes_the_page_of_five_benchmarks(calls, tmp_path, capsys):
    out = tmp_path / "a page"
    assert (
        main(["bench", "all", "--quick", "--layers=3", "--hf=hf sdpa static", f"--out={out}"]) == 0
    )
    assert set(calls) == set(COMPARED)
    for what in COMPARED:
        assert set(calls[what]) == expected(what)
        assert (calls[what]["config"].layers, calls[what]["config"].width) == (3, 256)
    assert calls["train"]["rounds"] == 3
    assert calls["train"]["config"].context_length == 128
    assert calls["generate"]["batch_sizes"] == (1, 8)
    assert calls["load"]["peers"] == calls["score"]["peers"] == ["hf sdpa"]
    assert calls["generate"]["peers"] == ["hf sdpa static"]
    report = json.loads((out / "bench.json").read_text())
    command = f"biomedlm bench all --quick --layers=3 '--hf=hf sdpa static' '--out={out}'"
    assert sorted(report["command"].split()) == sorted(command.split())
    assert (out / "index.html").exists()
    assert "index.html, bench.md and bench.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["tokens"], "bench tokens needs --input=FILES and --tokenizer=DIR"),
        (["all", "--quick"], "bench all needs --out=DIR"),
        (["readers"], "bench readers needs --path=FILE"),
        (
            ["generate", "--batch_sizes=1,two"],
            "got --batch_sizes=1,two; expected whole numbers above 0",
        ),
        (["train", "--rounds=0"], "--rounds=0"),
        (["tokens", "--input=a", "--tokenizer=t", "--beams=3"], "--beams, which bench tokens does"),
        (["generate", "--length=9"], "got --length, which bench generate does not use; leave it"),
        (["all", "--path=p", "--out=o"], "got --path, which bench all does not use"),
        (["score", "--path=p", "--out=o"], "got --out, which bench score --path"),
        (["score", "--path=p", "--parts=tuning", "--questions=3"], "got --questions, which bench"),
        (["score", "--path=p", "--parts=tuning", "--hf_batch_sizes=3"], "--parts=tuning does not"),
        (["score", "--path=p", "--parts=scoring", "--steps=3"], "got --steps, which bench score"),
        (["train", "--overwrite"], "got --overwrite without --out, where it has no effect"),
        (["score", "--hf=hf sdpa static"], "expected 'hf ATTENTION [compile]', where ATTENTION"),
        (["load", "--hf=hf sdpa static"], "only generate has a cache that can be static"),
        (["load", "--blocks=2"], "got --blocks, which bench load does not use"),
        (["convert", "--dtype=bfloat16"], "got --dtype, which bench convert does not use"),
        (["score", "--tokenizer=t"], "got --tokenizer, which bench score does not use"),
        (["all", "--out=o", "--peers=", "--hf=foo"], "got the peer 'foo'; expected 'hf ATTENTION"),
        (["packing", "--quick"], "got --quick, which bench packing does not use"),
    ],
)
def test_bad_flags(calls, flags, message, capsys):
    assert main(["bench", *flags]) == 2
    assert message in capsys.readouterr().err
    assert calls == {}


@pytest.mark.parametrize("out", [False, True])
def test_sides_that_differ_end_with_an_error(calls, tmp_path, capsys, monkeypatch, out):
    monkeypatch.setitem(RESULT, "errors", ["peer: losses differ by 0.2", "other"])
    where = [f"--out={tmp_path}/out"] if out else []
    assert main(["bench", "train", *where]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "biomedlm bench: error: train: peer: losses differ by 0.2; 1 more above"
    assert (tmp_path / "out" / "index.html").exists() == out


@pytest.mark.parametrize("out", [False, True])
def test_sigterm_leaves_no_weights(calls, tmp_path, monkeypatch, out):
    """As Ctrl-C does: the temporary directory of a benchmark is removed."""
    folders = []

    def measure(**arguments):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            folders.append(Path(folder))
            (folders[0] / "model.safetensors").touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(9)

    module = SimpleNamespace(measure=measure)
    monkeypatch.setitem(sys.modules, "biomedlm_jax.benchmarks.bench_train", module)
    where = [f"--out={tmp_path}/out"] if out else []
    with pytest.raises(SystemExit) as error:
        main(["bench", "train", *where])
    assert error.value.code == 143
    assert folders
    assert not folders[0].exists()
    assert (tmp_path / "out" / "index.html").exists() == out
