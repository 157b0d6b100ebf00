import jax
import numpy as np

from biomedlm_jax import mesh as meshes
from biomedlm_jax.training.recipe import StepData


def test_batches_of_a_step_come_again_after_a_restore():
    mesh = meshes.make_mesh(data=2, fsdp=2, tensor=2)
    layout = meshes.sharding(mesh, "batch", None)

    def make_batch(step):
        return {"x": np.full((4, 3), step, np.float32)}

    data = StepData(make_batch, layout, lambda step: np.arange(2) + 10 * step)
    first, second = next(data), next(data)
    assert second["x"].sharding == layout
    position = data.position()
    third = next(data)
    data.restore(position)
    for array, value in ((first, 0), (second, 1), (third, 2), (next(data), 2), (data.at(7), 7)):
        np.testing.assert_array_equal(np.asarray(array["x"]), np.full((4, 3), value))
    assert data.position() == {"step": 3}  # `at` leaves it as it is
    assert data.rows_of(4) == [40, 41]
    assert all(type(number) is int for number in data.rows_of(4))  # as JSON needs
    assert isinstance(first["x"], jax.Array)
