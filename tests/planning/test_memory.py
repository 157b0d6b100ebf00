import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.families import abstract_model, make_config
from biomedlm_jax.planning.memory import alternatives, out_of_memory_message, saved_parts
from biomedlm_jax.planning.steps import trace_step
from biomedlm_jax.settings import read_settings
from biomedlm_jax.training.pretrain import PretrainSettings

MESSAGES = {
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 31.50G of 15.75G hbm. "
    "Exceeded hbm capacity by 15.75G.\n  Largest program allocations in hbm:\n"
    '  1. Size: 12.50G\n     Operator: op_name="jit(step)/mul"\n'
    "     Shape: bf16[32,4,1024,10240]{3,2,1,0}\n     Unpadded size: 12.50G\n": (
        "needs 31.50 GiB of 15.75 GiB; parameters 1.00 GiB",
        "largest: bf16[32,4,1024,10240] 12.50 GiB",
    ),
    # From libtpu 0.0.52, which lists no arrays: the largest saved ones are named instead.
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (17.42G) exceeds available HBM (15.75G). HLO module: jit_step.": (
        "temporaries alone need 17.42 GiB of 15.75 GiB; ",
        "saved for the backward pass: float32[2,1,32,256] 0.00 GiB",
    ),
    "RESOURCE_EXHAUSTED: no": ("out of memory: does not fit; ",),
    "needs 3.00 of 2.00 GiB": ("out of memory: needs 3.00 of 2.00 GiB; ",),
}


def traced(config, **mesh):
    settings = read_settings(PretrainSettings, config.to_dict())
    model = make_config(settings.model)
    mesh = meshes.make_mesh(**mesh)
    step, _, _ = trace_step(settings, model, mesh, "train")
    return step.jaxpr, mesh, model


@pytest.mark.parametrize("message", MESSAGES)
def test_a_shortage_names_the_need_the_state_and_the_arrays(config, message):
    text = out_of_memory_message(message, {"parameters": 2**30}, *traced(config, data=2, fsdp=4))
    for part in MESSAGES[message]:
        assert part in text
    assert "\n" not in text


def test_saved_arrays_are_cut_as_the_devices_hold_them(config):
    config.model.remat = "query,mlp_input"
    shapes = {shape for shape, _ in saved_parts(*traced(config, data=1, fsdp=2, tensor=4))}
    # Of 8 rows 4, of 4 heads 1, of 256 units of the MLP 64.
    assert {"float32[2,4,1,32,16]", "float32[2,4,32,64]"} <= shapes


def test_alternatives_are_more_shards_fewer_rows_and_less_that_is_saved(config):
    config.training.batch_size = 32
    settings = read_settings(PretrainSettings, config.to_dict())
    model = abstract_model(make_config(settings.model))
    tried = [{"data": 4, "fsdp": 2, "tensor": 1}]
    kinds = alternatives(settings, model, tried, step="train")
    assert kinds[0] == [
        ({"data": 2, "fsdp": 4, "tensor": 1}, {}),
        ({"data": 1, "fsdp": 8, "tensor": 1}, {}),
    ]
    assert [change for _, change in kinds[1]] == [
        {"training.accumulation": 2},
        {"training.accumulation": 4},
    ]
    assert kinds[2] == [(tried[0], {"model.remat": "full"})]
    assert kinds[3][0][1] == {"model.remat": "full", "training.accumulation": 2}
    assert alternatives(settings, model, tried, step="decode") == kinds[:1]
