import json
import math
from types import SimpleNamespace

import pytest

from biomedlm_jax.errors import InputError
from biomedlm_jax.training.config import FaultSettings
from biomedlm_jax.training.skips import SkippedUpdates

GOOD = {"loss": 2.5, "grad_norm": 1.0}
NAN = {"loss": math.nan, "grad_norm": math.nan}
INFINITE_NORM = {"loss": 2.5, "grad_norm": math.inf}


class Data:
    """Rows [10, 11] for the first step, [20, 21] for the second, ..."""

    def rows_of(self, index: int) -> list[int]:
        return [10 * (index + 1), 10 * (index + 1) + 1]


class Recorder:
    def __init__(self):
        self.events, self.lines = [], []

    def event(self, name, **facts):
        self.events.append(json.loads(json.dumps({"event": name, **facts}, allow_nan=False)))

    def print_line(self, text):
        self.lines.append(text)


@pytest.fixture
def make(tmp_path):
    """make(last_step, **settings) returns the counter and what it records into."""

    def make_one(last_step=None, *, counts=None, **settings):
        recorder, checkpointer = Recorder(), SimpleNamespace(last_step=last_step)
        chosen = FaultSettings(**settings)
        skips = SkippedUpdates(tmp_path, recorder, chosen, checkpointer, **(counts or {}))
        return skips, recorder

    return make_one


def test_a_good_step_records_nothing(make, tmp_path):
    skips, recorder = make()
    skips.check(1, GOOD, True, 2.5, Data())  # equal to the limit
    assert (skips.counts(), recorder.events, recorder.lines) == (
        {"count": 0, "in_a_row": 0},
        [],
        [],
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("figures", [NAN, INFINITE_NORM], ids=["loss", "norm"])
def test_a_skipped_update_is_recorded_with_its_rows(make, tmp_path, figures):
    skips, recorder = make()
    skips.check(7, figures, False, math.inf, Data())
    record = json.loads((tmp_path / "skipped" / "7.json").read_text())
    texts = {name: str(value) for name, value in figures.items()}
    assert record == {"reason": "not finite", **texts, "step": 7, "rows": [70, 71]}
    (event,) = recorder.events
    assert event == {**record, "event": "skip", "rows": []}
    (line,) = recorder.lines
    values = f"loss {figures['loss']:g} and gradient norm {figures['grad_norm']:g}"
    assert line == (
        f"step 7 has {values}, not finite; the update is skipped, its rows are in skipped/7.json"
    )
    assert skips.counts() == {"count": 1, "in_a_row": 1}


def test_a_spike_that_was_applied_is_an_event_only(make, tmp_path):
    skips, recorder = make(spike="log")
    skips.check(9, GOOD, True, 2.0, Data())
    assert [event["event"] for event in recorder.events] == ["spike"]
    assert recorder.events[0]["reason"] == "above the limit of 2"
    assert recorder.lines == ["step 9 has loss 2.5 and gradient norm 1, above the limit of 2"]
    assert (skips.count, list(tmp_path.iterdir())) == (0, [])


def test_a_spike_that_was_skipped_counts_as_one(make, tmp_path):
    skips, recorder = make(spike="skip")
    skips.check(9, GOOD, False, 2.0, Data())
    assert skips.counts() == {"count": 1, "in_a_row": 1}
    assert recorder.events[0]["event"] == "skip"
    assert json.loads((tmp_path / "skipped" / "9.json").read_text())["rows"] == [90, 91]


def test_a_spike_ends_the_run_if_that_is_wanted(make):
    skips, recorder = make(8, spike="stop")
    with pytest.raises(InputError, match=r"step 9 has loss 2.5 .*above .* checkpoint is step 8;"):
        skips.check(9, GOOD, True, 2.0, Data())
    assert recorder.events[0]["event"] == "spike"
    skips.check(10, NAN, False, 2.0, Data())  # no spike: it is skipped


def test_too_many_in_a_row_end_the_run(make):
    skips, _ = make(2, skipped_in_a_row=3)
    for step, applied in enumerate([False, False, True, False, False], start=1):
        skips.check(step, GOOD if applied else NAN, applied, math.inf, Data())
    assert skips.counts() == {"count": 4, "in_a_row": 2}
    expected = (
        "3 updates in a row were skipped, until step 6 with loss nan and gradient norm nan; the "
        "last good checkpoint is step 2; --replay=RUN/skipped/6.json looks for the cause; "
    )
    with pytest.raises(InputError) as error:
        skips.check(6, NAN, False, math.inf, Data())
    assert str(error.value).replace(str(skips._workdir), "RUN").startswith(expected)


def test_a_resumed_run_goes_on_counting(make):
    skips, _ = make(skipped_in_a_row=3)
    for step in (1, 2):
        skips.check(step, NAN, False, math.inf, Data())
    resumed, _ = make(counts=json.loads(json.dumps(skips.counts())), skipped_in_a_row=3)
    with pytest.raises(InputError, match=r"3 updates in a row .* no step is saved"):
        resumed.check(3, NAN, False, math.inf, Data())
