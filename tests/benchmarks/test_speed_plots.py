"""Every plot is a PNG that grows with its rows; a person has looked at them."""

import io

import pytest
from matplotlib.image import imread

from biomedlm_jax.benchmarks import speed_plots

SIDES = {
    name: {"median_seconds": 1.0, "quartile_seconds": [0.9, 1.2], "mb_per_second": 3.0 * n}
    for n, name in enumerate(("biomedlm_jax", "peer"), start=1)
}
STEP = {"a": {"forward_seconds": 1.0, "backward_seconds": 2.0, "update_seconds": -0.1}}
MEMORY = {"a": {"after_imports_gb": 0.4, "peak_gb": 1.2}}
SHARES = {"a": {"gflops_per_second": 3.0, "share_6N": 0.3, "share_b": 0.4, "share_c": 0.35}}


def more(rows: dict) -> dict:
    (row,) = rows.values()
    return {**rows, **{str(number): row for number in range(4)}}


@pytest.mark.parametrize(
    ("plot", "few", "many"),
    [
        (speed_plots.speed_plot, {"load": SIDES}, {"load": SIDES, "convert": SIDES}),
        (speed_plots.step_plot, STEP, more(STEP)),
        (speed_plots.memory_plot, {"load": MEMORY}, {"load": more(MEMORY)}),
        (lambda rows: speed_plots.utilisation_plot(rows, "peak"), SHARES, more(SHARES)),
    ],
)
def test_a_plot_has_room_for_its_rows(plot, few, many):
    small, large = (imread(io.BytesIO(plot(rows)), format="png") for rows in (few, many))
    assert small.shape[0] < large.shape[0]
    assert small.shape[1] == large.shape[1]
    assert small.std() > 0
