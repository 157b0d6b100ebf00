import jax
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.chips import CHIPS, Chip
from biomedlm_jax.planning import planner
from biomedlm_jax.planning.hlo import DTYPE_BITS
from biomedlm_jax.planning.report import as_dict, markdown
from biomedlm_jax.training import state

# Op estimate of `slice_plan` in cycles, by the version of libtpu that compiled it.
RECORDED_CYCLES = {"0.0.42.1": 1_040_096, "0.0.50.1": 1_039_904}


def test_the_devices_here_report_memory_and_flops(local_plan):
    row = local_plan.rows[0]
    assert (local_plan.devices, local_plan.kernel) == (8, "xla")
    assert local_plan.tokens_per_step == 8 * 32
    # Biases, norms and the optimizer have no matmuls, so the model's FLOPs are a little more.
    assert 0.98 < row.figures.flops * 8 / local_plan.model_flops < 1
    assert row.fits
    assert row.step_seconds is None  # a CPU's compiler has no cycle estimates
    assert {c.kind for c in row.figures.collectives} & {"all-gather", "all-reduce"}
    assert row.name == "data 2 x fsdp 4"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mesh.tensor": 8, "mesh.data": 1, "mesh.fsdp": 1}, "heads of 4"),
        ({"mesh.data": 3}, "data=3, fsdp=4, tensor=1 does not make 8"),
        (
            {"mesh.data": -1, "mesh.fsdp": 32},
            r"local: .*fix: set --config\.mesh\.fsdp=N, or add --search",
        ),
        ({"training.batch_size": 12}, "batch_size=12"),
        ({"model.attention": "splash"}, "multiple of 64 wide"),
        ({"model.attention": "cudnn", "model.compute_dtype": "bfloat16"}, "on a GPU"),
        ({"model.vocab_size": None}, r"--config\.model\.vocab_size, or --config\.data\.path"),
    ],
)
def test_what_cannot_work_is_an_error_before_anything_is_compiled(
    config, values, message, monkeypatch
):
    monkeypatch.setattr(planner, "compile_figures", lambda *a, **k: pytest.fail("it compiled"))
    config.update_from_flattened_dict(values)
    with pytest.raises(ValueError, match=message):
        planner.plan(config, "local")
    with pytest.raises(ValueError, match="choose one of train, score, decode"):
        planner.plan(config, "local", step="walk")


def test_lora_needs_less_memory_and_the_table_has_its_parameters(config, local_plan):
    config.lora.rank = 8
    made = planner.plan(config, "local")
    # Of two layers: four kernels of 64 x 64, one of 64 x 256, one of 256 x 64.
    assert made.trained == 2 * 8 * (4 * (64 + 64) + 2 * (64 + 256)) == as_dict(made)["trained"]
    assert "attention kernel: xla, LoRA trains 18,432 parameters\n" in markdown(made)
    ours, full = made.rows[0], local_plan.rows[0]
    saved = sum(full.state_bytes.values()) - sum(ours.state_bytes.values())
    assert full.figures.memory["arguments"] - ours.figures.memory["arguments"] == saved > 0
    assert "LoRA" not in markdown(local_plan)
    assert planner.plan(config, "local", step="score").trained is None


def test_decoding_has_no_kernel_and_scoring_no_dropout(config, monkeypatch):
    dropouts = []

    def kernel(model, mesh):
        dropouts.append(model.attention_dropout)
        return "splash"

    config.model.attention_dropout = 0.1
    monkeypatch.setattr(planner.attention, "training_kernel", kernel)
    monkeypatch.setattr(planner, "_compile_row", lambda *a, **k: planner.Row({}, {}, {}))
    kernels = [planner.plan(config, "local", step=s).kernel for s in ("train", "score", "decode")]
    assert kernels == ["splash", "splash", "xla"]
    assert dropouts == [0.1, 0.0]


def test_token_rows_are_read_only_for_sizes_that_the_config_leaves_out(config, monkeypatch):
    rows = {"vocab_size": 512, "length": 64, "eos_id": 511}
    monkeypatch.setattr(planner, "read_manifest", lambda path: rows)
    monkeypatch.setattr(planner, "_compile_row", lambda *a, **k: planner.Row({}, {}, {}))
    config.data.path = "rows"
    assert planner.plan(config, "local").tokens_per_step == 8 * 32
    config.model.context_length = None
    assert planner.plan(config, "local").tokens_per_step == 8 * 64


def refuse(message, unless="no such text"):
    compiled = planner.compile_figures

    def compile_figures(traced, **options):
        if unless in str(traced.jaxpr):
            return compiled(traced, **options)
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")

    return compile_figures


def test_a_mesh_that_does_not_fit_names_what_would(config, monkeypatch):
    config.model.layers = 1
    monkeypatch.setattr(planner, "compile_figures", refuse("no", unless="remat"))
    made = planner.plan(config, "local")
    fitting, row = made.rows
    assert fitting.change == {"model.remat": "full"}
    assert not row.fits
    problem = row.problem or ""
    assert problem.startswith("out of memory: does not fit; parameters 0.00 GiB")
    assert problem.endswith("; fits: data 2 x fsdp 4, model.remat=full")
    assert "| data 2 x fsdp 4, model.remat=full | yes |" in markdown(made)


def test_when_nothing_fits_the_row_says_so(config, monkeypatch):
    lines = []
    monkeypatch.setattr(planner, "compile_figures", refuse("no"))
    made = planner.plan(config, "local", progress=lines.append)
    assert len(made.rows) == 1
    assert "fits: nothing that was tried; use more devices" in str(made.rows[0].problem)
    # The config's mesh, more shards, and full rematerialisation.
    assert [line for line in lines if line.startswith("compiling")] == [
        "compiling data 2 x fsdp 4 for local",
        "compiling fsdp 8 for local",
        "compiling data 2 x fsdp 4, model.remat=full for local",
    ]
    lines.clear()
    made = planner.plan(config, "local", suggest=False, progress=lines.append)
    assert [line for line in lines if line.startswith("compiling")] == [
        "compiling data 2 x fsdp 4 for local"
    ]
    assert "fits:" not in str(made.rows[0].problem)


def test_a_search_on_a_slice_that_is_too_small_names_the_memory(config, monkeypatch):
    monkeypatch.setattr(planner, "chip", lambda kind: Chip("pebble", 1e12, 1e5, 1e12, 1e11))
    config.model.layers = 1
    lines = []
    made = planner.plan(config, "local", search=True, tensor=(1,), progress=lines.append)
    assert "out of memory: needs" in str(made.rows[0].problem)
    assert {row.mesh["fsdp"] for row in made.rows} == {8}  # the most shards there are
    # No batch is so small that the state would fit: nothing else was compiled.
    assert len([line for line in lines if line.startswith("compiling")]) == 1
    config.training.batch_size = 6
    with pytest.raises(ValueError, match="no mesh of local divides the model and 6 rows"):
        planner.plan(config, "local", search=True, tensor=(1,))


def test_the_op_estimate_of_a_small_step_is_the_recorded_one(slice_plan, libtpu):
    if libtpu not in RECORDED_CYCLES:
        pytest.skip(f"no op estimate is recorded for libtpu {libtpu}")
    cycles, recorded = slice_plan[0].rows[0].figures.cycles, RECORDED_CYCLES[libtpu]
    assert abs(cycles / recorded - 1) < 0.01, (
        f"the training step's op estimate on v5e:2x4 is {cycles:,} cycles, {recorded:,} were "
        f"recorded ({cycles / recorded - 1:+.1%}). If the change is not intended, compare --hlo of "
        "`biomedlm plan` before and after it. If it is, plan biomedlm_2_7b and its variant _fast "
        f"for v5e:16x16, update docs/benchmarks.md, and set RECORDED_CYCLES[{libtpu!r}] = {cycles}"
    )


def test_a_step_for_a_tpu_slice_that_is_not_here(slice_plan):
    made, text = slice_plan
    row = made.rows[0]
    figures = row.figures
    assert made.kernel == "splash"
    # One kernel for each layer forward and one backward, and no attention logits in memory.
    assert sorted(figures.kernels.values()) == [3, 3]
    assert "[2,2,256,256]" not in text
    assert "bf16[2,2,256,128]" in text
    kernels = [256 * 256] * 4 + [256 * 1024] * 2  # of a layer: query, key, value, c_proj; MLP
    gathered = [c for c in figures.collectives if c.kind == "all-gather" and c.bytes >= 2**17]
    # Each kernel of a layer is gathered in bfloat16 over `fsdp`, once forward and once backward.
    inside = [c for c in gathered if c.times == 3]
    assert {(c.dtype, c.group) for c in inside} == {("bf16", 4)}
    assert sorted(c.bytes // 2 for c in inside) == sorted(2 * kernels)
    # The embedding too, in one piece; the positions are gathered as they are added, in float32.
    assert {c.dtype for c in gathered if c.bytes > 256 * 256 * 4} == {"bf16"}
    # The gradient is scattered over `fsdp`, so that only a quarter of it is reduced over `data`.
    numbers = {"reduce-scatter": 0, "all-reduce": 0}
    for c in figures.collectives:
        if c.times == 3 and c.kind in numbers:
            numbers[c.kind] += c.bytes * 8 // DTYPE_BITS[c.dtype]
    assert numbers["reduce-scatter"] == sum(kernels)
    vectors = 16 * 1024  # more than there are in the gradients of biases and LayerNorms
    assert sum(kernels) / 4 <= numbers["all-reduce"] < sum(kernels) / 4 + vectors
    assert figures.recomputed_cycles < 0.08 * figures.cycles
    assert row.step_seconds > 0
    assert as_dict(made)["rows"][0]["mfu"] < 1
    assert "op s" in markdown(made)
    exposed = as_dict(made)["rows"][0]["figures"]["exposed_bytes"]
    assert exposed == figures.collective_bytes(exposed=True)
    assert meshes.platform() == "cpu"  # the slice's platform does not stay


@pytest.mark.slow
def test_a_step_for_two_slices_sends_each_gradient_between_them_once(two_slices_plan, slice_plan):
    made, _ = two_slices_plan
    (row,) = made.rows
    assert (made.devices, made.slices, slice_plan[0].slices) == (8, 2, 1)
    assert row.mesh == slice_plan[0].rows[0].mesh
    # All that shards the state stays inside a slice of four chips.
    assert {c.group for c in row.figures.collectives} == {4}
    between = row.figures.between_slices
    assert {(c.kind, c.dtype, c.group) for c in between} == {("all-reduce", "f32", 2)}
    # A chip sends its quarter of every kernel's gradient. The loop sends a layer's while it
    # computes the next one's: its first iteration sends zeros, and the last layer's follow it.
    layer, vectors = 4 * 256 * 256 + 2 * 256 * 1024, 3 * (9 * 256 + 1024) + 2 * 256
    inside = sum(c.bytes for c in between if c.times == 3) // 4
    assert layer // 4 <= inside <= layer // 4 + vectors // 3
    # The embedding's two gradients, of the lookup and of the head; that of the positions, whose 64
    # columns are padded to 128; biases and norms.
    after = sum(c.bytes for c in between if c.times == 1) // 4
    least = layer // 4 + (2 * 512 + 256) * 64
    assert least <= after <= least + 256 * 64 + vectors
    assert len(between) == sum(c.times in (1, 3) for c in between)
    seconds = row.seconds["between slices"]
    # 6.4 Tbit/s for 256 chips; each of two slices sends all of it
    assert seconds == pytest.approx(4 * (3 * inside + after) / 3.125e9)
    assert "between slices" not in slice_plan[0].rows[0].seconds
    text = markdown(made)
    assert "8 x TPU v5 lite in 2 slices, train step" in text
    assert "data 2 x fsdp 4: between slices, per device: all-reduce f32 of 0.00" in text


@pytest.mark.slow
def test_without_a_published_bandwidth_between_slices_there_is_no_time(two_slices_plan):
    figures = two_slices_plan[0].rows[0].figures
    v4 = CHIPS["TPU v4"]
    assert planner.estimate_seconds(figures, v4, slices=2) == {}
    assert set(planner.estimate_seconds(figures, v4)) == {
        "operations",
        "kernels",
        "exposed collectives",
    }


def test_an_option_that_the_tpu_compiler_does_not_know_is_left_out(libtpu, monkeypatch, caplog):
    device = planner.topology_devices("v5e:2x4")[0]
    options = {"xla_tpu_no_such_option": "1"} | state.COMPILER_OPTIONS["v5e"]
    monkeypatch.setitem(state.COMPILER_OPTIONS, "v5e", options)
    known = state.compiler_options.__wrapped__(device)
    assert set(known) == set(options) - {"xla_tpu_no_such_option"}
    assert "the compiler refused xla_tpu_no_such_option=1" in caplog.text
