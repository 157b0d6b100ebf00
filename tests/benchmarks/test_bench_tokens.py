import json
import os

import pytest

from biomedlm_jax.benchmarks import bench_tokens
from biomedlm_jax.benchmarks.bench_tokens import BUILD, measure, run_alone
from biomedlm_jax.benchmarks.rounds import print_result
from biomedlm_jax.corpus.tokenizer import save_tokenizer, train_tokenizer

TEXTS = [f"Patient {i} was given {i * i} mg of drug {chr(97 + i % 26)}." for i in range(60)]


def test_a_side_has_a_process_of_its_own():
    assert run_alone(os.getpid) not in (os.getpid(), run_alone(os.getpid))


@pytest.mark.slow
def test_every_side_is_measured(tmp_path, capsys, monkeypatch):
    # A process takes most of a second to start.
    monkeypatch.setattr(bench_tokens, "run_alone", lambda function, *given: function(*given))
    file = tmp_path / "texts.jsonl"  # one unit, for which no process is started
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    save_tokenizer(train_tokenizer(TEXTS, vocab_size=280), tmp_path / "tokenizer")
    beam = ["--runner=DirectRunner"]  # no pipeline for one unit
    result = measure([file], tmp_path / "tokenizer", length=16, rounds=1, beam=beam)
    assert (result["documents"], result["text_bytes"]) == (len(TEXTS), sum(map(len, TEXTS)))
    sides = result["tables"]["tokens"]
    several = [f"{BUILD}, 2 processes", f"{BUILD}, Beam"]
    assert list(sides) == [BUILD, *several, "encode_batch", "encode_batch_fast"]
    assert sides[BUILD]["ratio"] == 1
    assert [sides.pop(name)["mb_per_cpu_second"] for name in several] == [None, None]
    assert all(side["mb_per_cpu_second"] > 0 for side in sides.values())
    print_result(result)
    assert "encode_batch_fast" in capsys.readouterr().out
    with pytest.raises(ValueError, match="rounds=0"):
        measure([file], tmp_path / "tokenizer", rounds=0)
