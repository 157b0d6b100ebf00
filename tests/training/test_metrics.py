import json
import math
import sys

import jax
import pytest
from gcs import bucket, gcs_server  # noqa: F401

from biomedlm_jax.buckets import as_path
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.gpt2 import GPT2Config
from biomedlm_jax.training import metrics
from biomedlm_jax.training.metrics import (
    Recorder,
    StepTimer,
    flops_per_token,
    peak_flops,
    plot_losses,
    read_metrics,
    validation_metrics,
)


def test_flops_of_biomedlm():
    biomedlm = abstract_model(GPT2Config())
    parameters = 2_594_247_680 - 1024 * 2560
    assert flops_per_token(biomedlm, 1024) == 6 * parameters + 12 * 32 * 2560 * 1024
    # The published run: 4,340 tokens/s on an A100 are 23.1 % of 312 TFLOP/s.
    assert flops_per_token(biomedlm, 1024) * 4340 / 312e12 == pytest.approx(0.231, abs=0.001)


def test_peaks_are_found_by_device_kind():
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == 459e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") is None
    assert peak_flops("cpu") is None


def test_bits_per_byte():
    figures = validation_metrics(math.log(16), tokens=10, text_bytes=20)
    assert figures["perplexity"] == pytest.approx(16)
    assert figures["bits_per_byte"] == pytest.approx(4 * 10 / 20)
    with pytest.raises(ValueError, match="the 10 validation tokens are all special ones"):
        validation_metrics(1.0, tokens=10, text_bytes=0)


def test_the_recorder_writes_json_lines_and_tensorboard_events(tmp_path, capsys):
    recorder = Recorder(tmp_path, first_step=0, steps=10, trackers=("tensorboard",))
    recorder.write(1, {"loss": 2.5})
    recorder.write(2, {"validation_loss": 2.25})
    recorder.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 2.5},
        {"step": 2, "validation_loss": 2.25},
    ]
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert "step 1/10  loss 2.5  elapsed 0:00\n" in capsys.readouterr().err


def test_the_remaining_time_is_that_of_steps_after_the_first(tmp_path, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    recorder = Recorder(tmp_path, first_step=5, steps=20, trackers=())
    for step, now in ((6, 100.0), (8, 104.0), (10, 108.0)):  # compilation takes 98 s
        clock[0] = now
        recorder.write(step, {"loss": 2.5})
    recorder.close()
    ends = [line.split("  ", 2)[2] for line in capsys.readouterr().err.splitlines()]
    assert ends == [
        "elapsed 1:40",
        "elapsed 1:44  remaining 0:24",
        "elapsed 1:48  remaining 0:20",
    ]


def test_a_resumed_recorder_drops_lines_of_steps_that_run_again(tmp_path):
    lines = ['{"step": 4, "loss": 1.0}', '{"step": 5, "loss": 1.0}', '{"step": 6, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    Recorder(tmp_path, first_step=4, steps=10, trackers=()).close()
    assert read_metrics(tmp_path) == [{"step": 4, "loss": 1.0}]


def test_the_loss_curve_is_a_picture(tmp_path):
    recorder = Recorder(tmp_path, first_step=0, steps=10, trackers=())
    for step in range(1, 5):
        recorder.write(step, {"loss": 4.0 / step})
    recorder.write(4, {"validation_loss": 1.5})
    recorder.close()
    assert plot_losses(tmp_path).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_step_timer_counts_the_steps_between_readings(monkeypatch):
    clock = iter([10.0, 14.0, 20.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    timer = StepTimer(tokens_per_step=100, flops_per_token=6.0)
    assert timer.restarted
    assert timer.read(3) == {}
    assert timer.read(5) == {"step_seconds": 2.0, "tokens_per_second": 50.0}
    timer.restart()
    assert timer.read(6) == {}
    assert jax.devices()[0].platform == "cpu"  # hence no MFU


def test_a_recorder_in_a_bucket_writes_before_a_checkpoint_and_drops_what_runs_again(
    bucket,  # noqa: F811
    monkeypatch,
):
    monkeypatch.setattr("biomedlm_jax.files.REWRITE_SECONDS", 3600.0)
    run = as_path(bucket) / "run"
    first = Recorder(run, first_step=0, steps=10, trackers=("tensorboard",))
    for step in (1, 2, 3):
        first.write(step, {"loss": 2.5 / step})
    first.flush()  # before the checkpoint of step 3
    first.event("save", step=3)
    first.write(4, {"loss": 0.5})
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3]
    assert len(run.glob("events.out.tfevents.*")) == 1
    first.write(5, {"loss": 0.4})
    first.close()
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4, 5]
    again = Recorder(run, first_step=3, steps=10, trackers=())
    again.write(4, {"loss": 0.5})
    again.close()
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3, 4]
    assert plot_losses(run).read_bytes()[1:4] == b"PNG"


def test_a_bucket_that_fails_does_not_end_a_run(bucket, monkeypatch, capsys):  # noqa: F811
    run = as_path(bucket) / "run"
    recorder = Recorder(run, first_step=0, steps=10, trackers=("tensorboard",))
    original = type(run).write_bytes

    def fail(path, data):
        raise OSError(5, "HttpError: 503", str(path))

    monkeypatch.setattr(type(run), "write_bytes", fail)
    monkeypatch.setattr("biomedlm_jax.files.REWRITE_SECONDS", 0.0)
    recorder.write(1, {"loss": 2.5})
    recorder.event("save", step=1)
    assert "cannot write metrics.jsonl ([Errno 5] HttpError: 503" in capsys.readouterr().err
    monkeypatch.setattr(type(run), "write_bytes", original)
    recorder.write(2, {"loss": 2.5})
    recorder.close()
    assert [line["step"] for line in read_metrics(run)] == [1, 2]


def test_later_lines_are_cut_off_in_place(tmp_path, monkeypatch):
    """A full disk allows it: nothing is written."""
    monkeypatch.setattr(metrics, "write_text", lambda *_: pytest.fail("it wrote"))
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in (1, 2, 2, 3, 4)]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines) + '{"step": 5, "lo')
    assert metrics._drop_later(file, 2) == 4
    assert file.read_text().splitlines() == lines[:3]
    file.write_text('{"step": null}\n{"step": 1}\n')
    assert metrics._drop_later(file, 2) == 2
    assert metrics.read_metrics(tmp_path) == [{"step": 1}]


def test_a_closed_terminal_does_not_end_a_run(tmp_path, monkeypatch):
    class Closed:
        isatty = staticmethod(lambda: False)

        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    recorder = Recorder(tmp_path, first_step=0, steps=10, trackers=())
    recorder.write(1, {"loss": 2.0})
    recorder.close()
    assert metrics.read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize(
    ("names", "saved"),
    [
        (["start"], False),
        (["start", "save"], False),  # killed before it was complete
        (["start", "save", "start"], False),
        (["start", "save", "skip", "start"], False),
        (["start", "save", "save"], True),
        (["start", "save", "stop"], True),
    ],
)
def test_a_save_counts_once_something_came_after_its_end(tmp_path, names, saved):
    events = [json.dumps({"time": 1.0, "event": name, "step": 1}) for name in names]
    (tmp_path / "events.jsonl").write_text("\n".join(events) + "\n")
    assert metrics.has_saved(tmp_path) == saved
