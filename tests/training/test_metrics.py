import json
import math

import pytest

from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.training.metrics import (
    Recorder,
    flops_per_token,
    peak_flops,
    validation_metrics,
)


def test_flops_of_biomedlm():
    config = GPTConfig()
    parameters = 2_594_247_680 - 1024 * 2560
    assert flops_per_token(config) == 6 * parameters + 12 * 32 * 2560 * 1024
    # The published run: 4,340 tokens/s on an A100 are 23.1 % of 312 TFLOP/s.
    assert flops_per_token(config) * 4340 / 312e12 == pytest.approx(0.231, abs=0.001)


def test_peaks_are_found_by_device_kind():
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5") == peak_flops("TPU v5p") == 459e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") is None
    assert peak_flops("cpu") is None


def test_bits_per_byte():
    figures = validation_metrics(math.log(16), tokens=10, text_bytes=20)
    assert figures["perplexity"] == pytest.approx(16)
    assert figures["bits_per_byte"] == pytest.approx(4 * 10 / 20)


def test_the_recorder_writes_json_lines_and_tensorboard_events(tmp_path, capsys):
    recorder = Recorder(tmp_path, first_step=0, steps=10, tensorboard=True)
    recorder.write(1, {"loss": 2.5})
    recorder.write(2, {"validation_loss": 2.25})
    recorder.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 2.5},
        {"step": 2, "validation_loss": 2.25},
    ]
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert "step 1  loss 2.5" in capsys.readouterr().err
