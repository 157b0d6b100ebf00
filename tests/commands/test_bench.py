import inspect
import json
import sys
from types import SimpleNamespace

import pytest

from biomedlm_jax.benchmarks import (
    bench_decode,
    bench_packing,
    bench_readers,
    bench_tokens,
    bench_train,
)
from biomedlm_jax.cli import main
from biomedlm_jax.commands.bench import ARGUMENTS, KINDS

SIDES = {"ours": {"median_seconds": 1.0, "ratio": 1.0, "seconds": [1.0]}}
RESULT = {"work": "w", "machine": "m", "versions": {"jax": "1"}, "tables": {"t": SIDES}}


@pytest.fixture
def calls(monkeypatch) -> dict:
    """What each benchmark was called with; `questions` is not imported: its peers are large."""
    given = {}
    modules = {"train": bench_train, "decode": bench_decode, "tokens": bench_tokens}
    modules |= {"packing": bench_packing, "readers": bench_readers}
    for what in KINDS:

        def measure(what=what, **arguments):
            given[what] = arguments
            return RESULT

        name = f"biomedlm_jax.benchmarks.bench_{what}"
        if what in modules:
            inspect.signature(modules[what].measure).bind(**dict.fromkeys(expected(what)))
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(measure=measure))
    return given


def expected(what: str) -> set[str]:
    names = {pair.rpartition(":")[2] for pair in ARGUMENTS[what].split()}
    return names | {{"tokens": "paths", "questions": "path", "readers": "path"}.get(what, "config")}


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
    assert main(["bench", "decode", "--batch_sizes=1,4", "--prompt=3", "--new_tokens=5"]) == 0
    assert set(calls["decode"]) == expected("decode")
    assert calls["decode"]["batch_sizes"] == (1, 4)
    assert calls["decode"]["config"].context_length == 8
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        file.write_text("text")
    assert main(["bench", "tokens", f"--input={files[0]},{files[1]}", "--tokenizer=t"]) == 0
    assert set(calls["tokens"]) == expected("tokens")
    assert calls["tokens"]["paths"] == files
    beam = "--beam_options=--runner=DirectRunner --direct_num_workers=2"
    assert main(["bench", "tokens", f"--input={files[0]}", "--tokenizer=t", beam]) == 0
    assert calls["tokens"]["beam"] == ["--runner=DirectRunner", "--direct_num_workers=2"]
    assert main(["bench", "questions", "--path=p", "--hf_batch_sizes=2"]) == 0
    assert calls["questions"]["hf_batch_sizes"] == (2,)
    assert main(["bench", "readers", "--path=p", "--rounds=2"]) == 0
    assert calls["readers"] == {"path": "p", "rounds": 2}
    assert main(["bench", "packing", "--length=64", "--batch_size=4"]) == 0
    assert set(calls["packing"]) == expected("packing")
    assert calls["packing"]["config"].context_length == calls["packing"]["length"] == 64


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["tokens"], "bench tokens needs --input and --tokenizer"),
        (["questions"], "bench questions needs --path"),
        (
            ["decode", "--batch_sizes=1,two"],
            "got --batch_sizes=1,two; expected whole numbers above 0",
        ),
        (["train", "--rounds=0"], "--rounds=0"),
        (["tokens", "--input=a", "--tokenizer=t", "--beams=3"], "--beams, which bench tokens does"),
        (["decode", "--length=9"], "got --length, which bench decode does not use; leave it out"),
    ],
)
def test_bad_flags(calls, flags, message, capsys):
    assert main(["bench", *flags]) == 2
    assert message in capsys.readouterr().err
    assert calls == {}
