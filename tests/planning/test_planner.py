import importlib.util
import json
import runpy
from pathlib import Path

import jax
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.chips import CHIPS, GIB, Chip
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.planning import planner, topology
from biomedlm_jax.planning.alternatives import alternatives
from biomedlm_jax.planning.hlo import DTYPE_BITS
from biomedlm_jax.planning.report import as_dict, markdown, write_report
from biomedlm_jax.planning.traced import matmul_flops
from biomedlm_jax.training import state

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config():
    """The tiny run, for all eight devices."""
    config = runpy.run_path(str(ROOT / "configs" / "tiny.py"))["get_config"]()
    config.mesh.data, config.mesh.fsdp = 2, 4
    return config


@pytest.fixture
def libtpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: it is in the extra `tpu`")


def test_the_devices_here_report_memory_and_flops(config, tmp_path):
    made = planner.plan(config, "local")
    row = made.rows[0]
    model = GPTConfig(**config.model)
    tokens = config.training.batch_size * model.context_length
    assert made.tokens_per_step == tokens
    # Every product of forward and backward: three times the weights and the attention.
    weights = 12 * model.layers * model.width**2 + model.padded_vocab_size * model.width
    attention = 4 * model.layers * model.width * model.context_length
    assert row.figures.flops == 3 * tokens * (2 * weights + attention) / 8
    assert row.figures.kernel_flops == 0
    assert row.fits
    assert row.step_seconds is None  # a CPU's compiler states no cycles
    assert row.state_bytes["optimizer"] > 1.9 * row.state_bytes["parameters"]
    used = row.figures.memory
    assert used["arguments"] >= sum(row.state_bytes.values())
    assert used["total"] >= used["arguments"] + used["temporaries"]
    assert {c.kind for c in row.figures.collectives} & {"all-gather", "all-reduce"}
    written = write_report(made, tmp_path)
    assert {path.name for path in written} >= {"plan.json", "plan.md"}
    assert json.loads((tmp_path / "plan.json").read_text())["rows"][0]["mesh"]["fsdp"] == 4
    assert "data 2 x fsdp 4" in (tmp_path / "plan.md").read_text()


def test_a_scoring_step_is_planned_too(config):
    config.model.layers = 1
    made = planner.plan(config, "local", step="score")
    assert set(made.rows[0].state_bytes) == {"parameters"}
    model = GPTConfig(**config.model)
    weights = 12 * model.width**2 + model.padded_vocab_size * model.width
    forward = 2 * weights + 4 * model.width * model.context_length
    assert made.rows[0].figures.flops == made.tokens_per_step * forward / 8


def test_recomputation_is_counted():
    def loss(x):
        return jax.checkpoint(lambda x: jax.numpy.sin(x @ x) @ x)(x).sum()

    x = jax.ShapeDtypeStruct((8, 8), "float32")
    plain, _ = matmul_flops(jax.make_jaxpr(jax.grad(lambda x: (jax.numpy.sin(x @ x) @ x).sum()))(x))
    again, _ = matmul_flops(jax.make_jaxpr(jax.grad(loss))(x))
    assert plain == 6 * 2 * 8**3
    assert again > plain


def test_meshes_worth_compiling():
    found = topology.sensible_meshes(256, GPTConfig(), batch_size=1024, least_shards=4)
    assert {"data": 8, "fsdp": 32, "tensor": 1} in found
    assert {"data": 16, "fsdp": 8, "tensor": 2} in found
    assert all(mesh["data"] * mesh["fsdp"] * mesh["tensor"] == 256 for mesh in found)
    assert not [mesh for mesh in found if mesh["fsdp"] > 64]  # 2560 / 128 is no multiple of 8
    assert not [mesh for mesh in found if mesh["fsdp"] * mesh["tensor"] < 4]


def test_a_mesh_that_cuts_the_mlp_or_the_vocabulary_unevenly_is_skipped():
    asked = {"batch_size": 8, "tensor": (1, 2, 4)}
    uneven = {
        "mlp": GPTConfig(layers=1, width=64, heads=4, mlp_width=130),
        "vocabulary": GPTConfig(layers=1, width=64, heads=4, vocab_size=90, vocab_multiple=6),
    }
    for model in uneven.values():
        assert {mesh["tensor"] for mesh in topology.sensible_meshes(8, model, **asked)} == {1, 2}


def test_a_search_on_a_slice_that_is_too_small_speaks_of_memory(config, monkeypatch):
    monkeypatch.setattr(planner, "chip", lambda kind: Chip("pebble", 1e12, 1e5, 1e12, 1e11))
    config.model.layers = 1
    said = []
    made = planner.plan(config, "local", search=True, tensor=(1,), say=said.append)
    assert not any(row.fits for row in made.rows)
    assert "out of memory: needs" in made.rows[0].trouble
    assert "nothing else that was tried fits; take more devices" in made.rows[0].trouble
    assert {row.mesh["fsdp"] for row in made.rows} == {8}  # those that spread the state most
    # No batch is so small that the state would fit: nothing else was compiled.
    assert len([line for line in said if line.startswith("compiling")]) == 1
    config.training.batch_size = 6
    with pytest.raises(ValueError, match="no mesh of local divides the model and 6 rows"):
        planner.plan(config, "local", search=True, tensor=(1,))


def test_decoding_has_no_kernel_and_scoring_no_dropout(monkeypatch):
    asked = []
    monkeypatch.setattr(
        planner.attention, "check_training", lambda model, mesh: asked.append(model) or "splash"
    )
    model = GPTConfig(attention_dropout=0.1)
    kernels = [planner.attention_kernel(model, None, step) for step in ("train", "score", "decode")]
    assert kernels == ["splash", "splash", "xla"]
    assert [one.attention_dropout for one in asked] == [0.1, 0.0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v9:2x2", "GENERATION:SHAPE with a generation of v4, v5e, v5p, v6e, TPU7x"),
        ("v5e:3x3", "the shapes of v5e are 1x1, 2x2"),
        ("v5e", "the shapes of v5e are"),
    ],
)
def test_an_unknown_topology_lists_the_known_ones(config, name, said):
    with pytest.raises(ValueError, match=said):
        planner.plan(config, name)


def test_without_libtpu_the_extra_is_named(config, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="install the extra `tpu`"):
        topology.topology_devices.__wrapped__("v5e:2x2")


def test_a_lock_held_by_another_process_is_said(monkeypatch):
    def refuse(**options):
        raise RuntimeError("ABORTED: The TPU is already in use by process 7: libtpu_lockfile")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(topology.topologies, "get_topology_desc", refuse)
    with pytest.raises(ValueError, match=r"another process holds libtpu; .*ALLOW_MULTIPLE"):
        topology.topology_devices.__wrapped__("v5e:2x2")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mesh.tensor": 8, "mesh.data": 1, "mesh.fsdp": 1}, "model's heads of 4"),
        ({"mesh.data": 3}, "mesh data=3, fsdp=4, tensor=1 does not make 8, the number of devices"),
        ({"training.batch_size": 12}, "batch_size=12 does not divide"),
        ({"model.attention": "splash"}, "multiple of 64 wide"),
        ({"model.attention": "cudnn", "model.compute_dtype": "bfloat16"}, "runs on a GPU"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_compiled(config, values, said, monkeypatch):
    monkeypatch.setattr(planner, "compile_figures", lambda *a, **k: pytest.fail("it compiled"))
    config.update_from_flattened_dict(values)
    with pytest.raises(ValueError, match=said):
        planner.plan(config, "local")


OUT_OF_MEMORY = {
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 31.50G of 15.75G hbm. "
    "Exceeded hbm capacity by 15.75G.\n  Largest program allocations in hbm:\n"
    '  1. Size: 12.50G\n     Operator: op_name="jit(step)/mul"\n'
    "     Shape: bf16[32,4,1024,10240]{3,2,1,0}\n     Unpadded size: 12.50G\n": (
        "needs 31.50 GiB of 15.75 GiB; ",
        "largest: bf16[32,4,1024,10240] 12.50 GiB",
    ),
    # What libtpu 0.0.52 says; it lists nothing, so the largest that are saved are named.
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (17.42G) exceeds available HBM (15.75G). HLO module: jit_step.": (
        "temporaries alone need 17.42 GiB of 15.75 GiB; ",
        "saved for the backward pass: float32[2,1,32,256] 0.00 GiB",
    ),
}


@pytest.mark.parametrize("said", OUT_OF_MEMORY)
def test_out_of_memory_names_the_arrays_and_what_would_fit(config, monkeypatch, said):
    compiled = planner.compile_figures

    def refuse(traced, **options):
        if "remat" not in str(traced.jaxpr):
            raise jax.errors.JaxRuntimeError(said)
        return compiled(traced, **options)

    monkeypatch.setattr(planner, "compile_figures", refuse)
    made = planner.plan(config, "local")
    fitting, row = made.rows
    assert fitting.change == {"model.remat": "full"}
    assert not row.fits
    for part in (*OUT_OF_MEMORY[said], "parameters 0.00 GiB"):
        assert part in row.trouble
    assert row.trouble.endswith("would fit: data 2 x fsdp 4, model.remat=full")
    assert row.trouble in markdown(made)
    assert "| data 2 x fsdp 4, model.remat=full | yes |" in markdown(made)


def test_when_nothing_fits_it_is_said(config, monkeypatch):
    tried = []

    def refuse(traced, **options):
        tried.append(traced)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no")

    monkeypatch.setattr(planner, "compile_figures", refuse)
    made = planner.plan(config, "local")
    assert len(made.rows) == 1
    assert "nothing else that was tried fits; take more devices" in made.rows[0].trouble
    assert len(tried) == 3  # the mesh asked for, more shards, and model.remat=full


def test_alternatives_are_more_shards_fewer_rows_and_less_that_is_saved(config):
    model = GPTConfig(**config.model)
    config.training.batch_size = 32
    tried = [{"data": 4, "fsdp": 2, "tensor": 1}]
    kinds = alternatives(config, model, tried, step="train")
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
    assert alternatives(config, model, tried, step="decode") == kinds[:1]


def test_links_are_one_direction_of_one_dimension():
    assert CHIPS["TPU v5 lite"].ring_bandwidth == 100e9
    assert CHIPS["TPU7x"].device_memory == 96 * GIB


@pytest.mark.parametrize(
    ("name", "data", "fsdp"),
    [("v5e:16x16", 8, 32), ("v6e:16x16", 8, 32), ("v5p:4x4x4", 2, 32), ("v4:4x4x4", 2, 32)],
)
def test_the_meshes_of_the_guide_can_be_made_as_a_run_makes_them(libtpu, name, data, fsdp):
    mesh = meshes.make_mesh(data=data, fsdp=fsdp, devices=topology.topology_devices(name))
    assert dict(mesh.shape) == {"data": data, "fsdp": fsdp, "tensor": 1}


def test_an_option_that_the_tpu_compiler_does_not_know_is_left_out(libtpu, monkeypatch, caplog):
    device = topology.topology_devices("v5e:2x2")[0]
    options = {"xla_tpu_no_such_option": "1"} | state.COMPILER_OPTIONS["v5e"]
    monkeypatch.setitem(state.COMPILER_OPTIONS, "v5e", options)
    known = state.compiler_options.__wrapped__(device)
    assert set(known) == set(options) - {"xla_tpu_no_such_option"}
    assert "the compiler refused xla_tpu_no_such_option=1" in caplog.text


def test_a_step_for_a_tpu_slice_that_is_not_here(config, libtpu, tmp_path):
    model = {"width": 256, "heads": 2, "mlp_width": 1024, "context_length": 256, "layers": 3}
    model |= {"compute_dtype": "auto", "remat": "query,key,value,attention,residual,norm,mlp_input"}
    config.model.update(model)
    config.mesh.data, config.mesh.fsdp = 2, 2
    made = planner.plan(config, "v5e:2x2", hlo=tmp_path)
    figures = made.rows[0].figures
    assert made.kernel == "splash"
    # One kernel a layer forward and one backward, and no scores in memory.
    assert sorted(figures.kernels.values()) == [3, 3]
    assert [path.name for path in tmp_path.glob("*")] == ["v5e-2x2_train_data2xfsdp2.hlo"]
    text = next(tmp_path.glob("*.hlo")).read_text()
    assert "[2,2,256,256]" not in text
    assert "bf16[2,2,256,128]" in text
    kernels = [256 * 256] * 4 + [256 * 1024] * 2  # of a layer: query, key, value, c_proj; MLP
    gathered = [c for c in figures.collectives if c.kind == "all-gather" and c.bytes >= 2**17]
    # Each kernel of a layer is gathered in bfloat16, once forward and once backward.
    inside = [c for c in gathered if c.times == 3]
    assert {c.dtype for c in inside} == {"bf16"}
    # The embedding too, in one piece; the positions are gathered as they are added, in float32.
    assert {c.dtype for c in gathered if c.bytes > 256 * 256 * 4} == {"bf16"}
    assert sorted(c.bytes // 2 for c in inside) == sorted(2 * kernels)
    # Its gradient is scattered over `fsdp`, so that only half of it is reduced over `data`.
    numbers = {"reduce-scatter": 0, "all-reduce": 0}
    for c in figures.collectives:
        if c.times == 3 and c.kind in numbers:
            numbers[c.kind] += c.bytes * 8 // DTYPE_BITS[c.dtype]
    assert numbers["reduce-scatter"] == sum(kernels)
    vectors = 16 * 1024  # more than there are in the gradients of biases and LayerNorms
    assert sum(kernels) / 2 <= numbers["all-reduce"] < sum(kernels) / 2 + vectors
    assert figures.recomputed_cycles < 0.08 * figures.cycles
    assert made.rows[0].step_seconds > 0
    assert made.rows[0].mfu < 1
    assert "op s" in markdown(made)
    assert as_dict(made)["rows"][0]["figures"]["exposed_bytes"] == figures.exposed()
    assert meshes.platform() == "cpu"  # nothing of the slice stays behind
