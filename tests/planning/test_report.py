import dataclasses
import json

import pytest

from biomedlm_jax.chips import Chip
from biomedlm_jax.planning.compiled import Collective, Figures
from biomedlm_jax.planning.planner import Plan, Row
from biomedlm_jax.planning.report import as_dict, markdown, plot, write_report

GIB = 2**30
FIGURES = Figures(
    compile_seconds=61.4,
    memory={"temporaries": 3 * GIB, "total": 6 * GIB},
    flops=8e12,
    kernel_flops=2e12,
    cycles=1000,
    recomputed_cycles=125,
    kernels={},
    collectives=[
        Collective("all-gather", "bf16", GIB, 4, 2, True, ""),
        Collective("all-reduce", "f32", GIB, 4, 3, False, ""),
    ],
)
FITS = Row(
    mesh={"data": 2, "fsdp": 4, "tensor": 1},
    change={},
    state_bytes={"parameters": GIB, "optimizer": 2 * GIB},
    figures=FIGURES,
    seconds={"operations": 1.5, "kernels": 0.25, "exposed collectives": 0.25},
)
NO_ROOM = Row({"data": 8}, {"model.remat": "full"}, {"parameters": GIB}, problem="out of memory")
CHIP = Chip("pebble", 1e12, 16 * GIB, 1e12, 1e11, clock=1.5e9, devices=2)
PLAN = Plan(
    topology="v5e:2x4",
    step="train",
    device_kind="pebble",
    devices=8,
    chip=CHIP,
    kernel="splash",
    tokens_per_step=4096,
    model_flops=4e12,
    steps=43200,
    rows=[FITS, NO_ROOM],
)


def test_the_table_has_every_row_and_the_assumptions():
    lines = markdown(PLAN).splitlines()
    assert lines[0] == (
        "**v5e:2x4**: 8 x pebble, train step of 4,096 tokens, 4 TFLOP (model), attention kernel: "
        "splash"
    )
    assert lines[4] == (
        "| data 2 x fsdp 4 | yes | 6.00 (1.00 + 2.00 + 3.00) | 61 | 10 | 1.500 | 12.5% | 0.250 "
        "| 2.00 | 3.00 | 2.000 | 50.0% | 2,048 | 1.0 | 96 |"  # 24 hours of 4 chips
    )
    assert lines[5] == f"| data 8, model.remat=full | no |{' - |' * 13}"
    assert "data 8, model.remat=full: out of memory" in lines
    assert {line.count("|") for line in lines[2:6]} == {16}
    assert "1.50 GHz" in lines[-1]
    assert "an assumed 40% of the peak" in lines[-1]


def test_several_slices_and_what_they_exchange():
    between = [
        Collective("all-reduce", "bf16", GIB // 4, 2, 2, False, "a"),
        Collective("all-reduce", "bf16", GIB // 8, 2, 4, False, "b"),
        Collective("all-reduce", "f32", GIB, 2, 1, False, "c"),
    ]
    figures = dataclasses.replace(FIGURES, between_slices=between)
    seconds = {**FITS.seconds, "between slices": 0.5}
    row = dataclasses.replace(FITS, figures=figures, seconds=seconds)
    chip = dataclasses.replace(CHIP, name="v5e")
    made = dataclasses.replace(PLAN, slices=2, chip=chip, rows=[row])
    lines = markdown(made).splitlines()
    assert lines[0].startswith("**v5e:2x4**: 8 x pebble in 2 slices, train step of")
    assert "| 2.500 | 40.0% |" in lines[4]  # the step is 0.5 s longer
    assert (
        "data 2 x fsdp 4: between slices, per device: all-reduce bf16 of 1.0000 GiB in 6 parts, "
        "all-reduce f32 of 1.0000 GiB in 1 parts, 0.500 s"
    ) in lines
    assert "at the published 25 Gbit/s per chip" in lines[-1]
    assert "data-centre" not in markdown(PLAN)
    row = dataclasses.replace(row, seconds={})
    text = markdown(dataclasses.replace(PLAN, slices=2, rows=[row]))
    assert text.endswith("No times: the bandwidth between slices of pebble is not published.\n")
    assert "all-reduce f32 of 1.0000 GiB in 1 parts\n" in text


def test_days_belong_to_training_only():
    assert "| 2,048 | - | - |" in markdown(dataclasses.replace(PLAN, step="score"))


def test_a_program_that_was_not_read_has_memory_and_flops_only():
    figures = Figures(61.4, FIGURES.memory, 8e12, 2e12, unread_reason="INTERNAL")
    row = dataclasses.replace(FITS, figures=figures, seconds={})
    text = markdown(dataclasses.replace(PLAN, chip=None, rows=[row]))
    assert "| 61 | 10 | - |" in text
    assert "data 2 x fsdp 4: memory and FLOPs only, program not read: INTERNAL" in text
    assert "the chip table has no entry" in text


def test_the_files(tmp_path):
    written = write_report(PLAN, tmp_path / "new" / "plan")
    assert [path.name for path in written] == ["plan.json", "plan.md", "plan.png"]
    assert json.loads(written[0].read_text()) == as_dict(PLAN)
    assert written[1].read_text() == markdown(PLAN)
    fits, no_room = as_dict(PLAN)["rows"]
    assert fits["step_seconds"] == 2.0
    assert (fits["tokens_per_second"], fits["mfu"]) == (2048, 0.5)
    assert fits["figures"]["exposed_bytes"] == 2 * GIB
    assert (no_room["fits"], no_room["figures"]) == (False, None)


def test_the_plot_labels_the_bars_and_the_memory_of_a_device():
    figure = plot(PLAN)
    assert figure is not None
    labels = [axes.get_legend_handles_labels()[1] for axes in figure.axes]
    assert labels[0] == ["operations", "kernels", "exposed collectives"]
    assert set(labels[1]) == {"HBM, 8 GiB", "parameters", "optimizer", "temporaries"}
    assert plot(dataclasses.replace(PLAN, rows=[NO_ROOM])) is None


@pytest.mark.parametrize("chip", [None, PLAN.chip])
def test_a_plan_without_times_plots_memory(chip):
    row = dataclasses.replace(FITS, seconds={})
    figure = plot(dataclasses.replace(PLAN, chip=chip, rows=[row]))
    assert figure is not None
    assert [axes.get_xlabel() for axes in figure.axes] == ["GiB per device"]
