import jax
import jax.numpy as jnp
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.families import abstract_model, make_config
from biomedlm_jax.planning.steps import trace_step
from biomedlm_jax.planning.topology import topology_devices
from biomedlm_jax.planning.traced import matmul_flops
from biomedlm_jax.settings import read_settings
from biomedlm_jax.training.pretrain import PretrainSettings


@pytest.fixture
def trace(config):
    mesh = meshes.make_mesh(data=2, fsdp=4)

    def of(step: str, rank: int = 0, frozen_dtype: str = "float32"):
        config.lora.update(rank=rank, frozen_dtype=frozen_dtype)
        settings = read_settings(PretrainSettings, config.to_dict())
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


@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("step", ["train", "score", "decode"])
def test_the_dtype_of_a_slice_is_that_of_its_platform(config, step):
    config.model.compute_dtype = "auto"
    settings = read_settings(PretrainSettings, config.to_dict())
    model_config = make_config(settings.model)
    assert abstract_model(model_config).config.dtype == jnp.float32  # on this machine
    mesh = meshes.make_mesh(data=2, fsdp=4, devices=topology_devices("v5e:2x4"))
    with jax.set_mesh(mesh):
        traced, _, _ = trace_step(settings, model_config, mesh, step)
    assert "dot_general" in (text := str(traced.jaxpr))
    assert "bf16[8,32,64]" in text or "bf16[8,1,64]" in text


def test_lora_has_moments_of_its_factors_only(trace):
    _, full = trace("train")
    flops, state_bytes = trace("train", rank=8)
    # On a device: a quarter of a factor's axis of the width, the whole other axis.
    part = 2 * 8 * (4 * (64 / 4 + 64) + 2 * (64 / 4 + 256)) * 4
    counters = full["optimizer"] - 2 * full["parameters"]
    assert state_bytes["optimizer"] == 2 * part + counters
    assert state_bytes["parameters"] == full["parameters"] + part
    forward = 8 * 32 * (2 * KERNELS + ATTENTION)
    assert 2 * forward < flops < 3.1 * forward


def test_frozen_matrices_take_half_the_memory_in_bfloat16(trace):
    flops, wide = trace("train", rank=8)
    same_flops, narrow = trace("train", rank=8, frozen_dtype="bfloat16")
    matrices = 2 * 12 * 64**2 + (512 + 32) * 64  # kernels, tokens and positions; four shards
    assert wide["parameters"] - narrow["parameters"] == 2 * matrices / 4
    assert (narrow["optimizer"], same_flops) == (wide["optimizer"], flops)


def test_a_scoring_step_has_the_forward_products_and_no_optimizer(trace):
    flops, state_bytes = trace("score")
    assert flops == 8 * 32 * (2 * KERNELS + ATTENTION)
    assert set(state_bytes) == {"parameters"}


def test_a_decoding_step_has_one_token_of_each_row_and_a_full_cache(trace):
    flops, state_bytes = trace("decode")
    assert flops == 8 * (2 * KERNELS + ATTENTION)
    assert state_bytes["cache"] == 8 * 2 * 2 * 32 * 64 * 4 / 8  # rows, keys and values, float32
