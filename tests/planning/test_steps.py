import jax
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.families import make_config
from biomedlm_jax.planning.steps import trace_step
from biomedlm_jax.planning.traced import matmul_flops
from biomedlm_jax.settings import read_settings
from biomedlm_jax.training.pretrain import PretrainSettings


@pytest.fixture
def trace(config):
    settings = read_settings(PretrainSettings, config.to_dict())
    mesh = meshes.make_mesh(data=2, fsdp=4)

    def of(step: str):
        with jax.set_mesh(mesh):
            traced, _, state_bytes = trace_step(settings, make_config(settings.model), mesh, step)
        return matmul_flops(traced.jaxpr)[0], state_bytes

    return of


# The tiny model: layers 2, width 64, length 32, vocabulary 512; 8 rows.
KERNELS, ATTENTION = 12 * 2 * 64**2 + 512 * 64, 4 * 2 * 64 * 32


def test_a_training_step_has_three_times_the_forward_products(trace):
    flops, state_bytes = trace("train")
    assert flops == 3 * 8 * 32 * (2 * KERNELS + ATTENTION)
    assert state_bytes["optimizer"] > 1.9 * state_bytes["parameters"]


def test_a_scoring_step_has_the_forward_products_and_no_optimizer(trace):
    flops, state_bytes = trace("score")
    assert flops == 8 * 32 * (2 * KERNELS + ATTENTION)
    assert set(state_bytes) == {"parameters"}


def test_a_decoding_step_has_one_token_of_each_row_and_a_full_cache(trace):
    flops, state_bytes = trace("decode")
    assert flops == 8 * (2 * KERNELS + ATTENTION)
    assert state_bytes["cache"] == 8 * 2 * 2 * 32 * 64 * 4 / 8  # rows, keys and values, float32
