import jax
import pytest

from biomedlm_jax.planning import compiled
from biomedlm_jax.planning.compiled import read_program
from biomedlm_jax.planning.hlo import Program

# A loop of five iterations with a kernel call that contains newlines, an asynchronous all-gather
# that appears three times, a fused reduce-scatter, and one all-reduce after the loop.
TEXT = """HloModule step

%all-reduce-scatter.1 (p.1: bf16[64,32]) -> bf16[8,32] {
  %p.1 = bf16[64,32]{1,0} parameter(0)
  %ar.1 = bf16[64,32]{1,0} all-reduce(%p.1), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %s.1 = bf16[8,32]{1,0} dynamic-slice(%ar.1, %p.1)
}

%begin (p.2: bf16[4,32]) -> bf16[32,32] {
  %p.2 = bf16[4,32]{1,0} parameter(0)
  ROOT %ag.1 = bf16[32,32]{1,0:T(8,128)} all-gather(%p.2), channel_id=3, \
replica_groups=mesh['a'=2,'b'=8] {'b'}, dimensions={0}
}

%end (p.3: bf16[4,32]) -> bf16[32,32] {
  %p.3 = bf16[4,32]{1,0} parameter(0)
  ROOT %ag.2 = bf16[32,32]{1,0} all-gather(%p.3), channel_id=3, replica_groups=[2,8]<=[16]
}

%body (b: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
  %b = (s32[], bf16[64,32]{1,0}) parameter(0)
  %x = bf16[64,32]{1,0} get-tuple-element(%b), index=1
  %start = bf16[32,32]{1,0} fusion(%x), kind=kCustom, calls=%begin
  %dot = bf16[64,32]{1,0} fusion(%x), kind=kOutput, calls=%work, \
metadata={op_name="jit(step)/while/dot"}, backend_config={"estimated_cycles":"1000"}
  %again = bf16[64,32]{1,0} fusion(%x), kind=kLoop, calls=%work, \
metadata={op_name="jit(step)/rematted_computation/mul"}, backend_config={"estimated_cycles":"50"}
  %done = bf16[32,32]{1,0} fusion(%start), kind=kCustom, calls=%end
  %attend.12 = (bf16[64,32]{1,0}, f32[64]{0}) custom-call(%x, %dot), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={

}}, backend_config={"a":"1"}
  %rs = bf16[8,32]{1,0} fusion(%dot), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %out = (s32[], bf16[64,32]{1,0}) tuple(%b, %x)
}

%cond (c: (s32[], bf16[64,32])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  %c = (s32[], bf16[64,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%i, %five), direction=LT
}

%work (w: bf16[64,32]) -> bf16[64,32] {
  ROOT %w = bf16[64,32]{1,0} parameter(0)
}

ENTRY %main (m: bf16[64,32]) -> f32[10] {
  %m = bf16[64,32]{1,0} parameter(0)
  %loop = (s32[], bf16[64,32]{1,0}) while(%m), condition=%cond, body=%body
  ROOT %sum = f32[10]{0} all-reduce(%m), channel_id=9, replica_groups=[1,16]<=[16], \
backend_config={"estimated_cycles":"7"}
}
""".replace("\\\n", "")


def test_cycles_and_kernels_count_with_the_trip_count():
    fields = read_program(Program(TEXT))
    assert fields["cycles"] == 5 * 1050 + 7
    assert fields["recomputed_cycles"] == 5 * 50
    assert fields["kernels"] == {"attend": 5}


def test_each_collective_counts_once_with_its_bytes_and_group():
    fields = read_program(Program(TEXT))["collectives"]
    rows = {c.kind: (c.dtype, c.bytes, c.group, c.times, c.exposed) for c in fields}
    assert len(fields) == 3
    assert rows == {
        "all-gather": ("bf16", 32 * 32 * 2, 8, 5, False),
        "reduce-scatter": ("bf16", 64 * 32 * 2, 8, 5, True),
        "all-reduce": ("f32", 40, 16, 1, True),
    }
    wire = {c.kind: c.wire for c in fields}
    assert wire["reduce-scatter"] == 5 * 64 * 32 * 2 * 7 / 8
    assert wire["all-reduce"] == 2 * 40 * 15 / 16


# What libtpu writes for four reduce-scatters, two and two together: all have one channel.
TOGETHER = """HloModule step

%all-reduce-scatter.6 (a: bf16[64,32], b: bf16[64,32]) -> (bf16[8,32], bf16[8,32]) {
  %a = bf16[64,32]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  %ar.6 = (bf16[64,32]{1,0}, bf16[64,32]{1,0}) all-reduce(%a, %b), channel_id=1, \
replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %s.6 = (bf16[8,32]{1,0}, bf16[8,32]{1,0}) tuple(%a, %b)
}

%all-reduce-scatter.7 (c: bf16[64,32], d: bf16[32,64]) -> (bf16[8,32], bf16[32,8]) {
  %c = bf16[64,32]{1,0} parameter(0)
  %d = bf16[32,64]{1,0} parameter(1)
  %ar.7 = (bf16[64,32]{1,0}, bf16[32,64]{1,0}) all-reduce(%c, %d), channel_id=1, \
replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %s.7 = (bf16[8,32]{1,0}, bf16[32,8]{1,0}) tuple(%c, %d)
}

ENTRY %main (m: bf16[64,32], n: bf16[32,64]) -> (bf16[8,32], bf16[32,8]) {
  %m = bf16[64,32]{1,0} parameter(0)
  %n = bf16[32,64]{1,0} parameter(1)
  %rs.6 = (bf16[8,32]{1,0}, bf16[8,32]{1,0}) fusion(%m, %m), kind=kCustom, \
calls=%all-reduce-scatter.6
  ROOT %rs.7 = (bf16[8,32]{1,0}, bf16[32,8]{1,0}) fusion(%m, %n), kind=kCustom, \
calls=%all-reduce-scatter.7
}
""".replace("\\\n", "")


def test_reduce_scatters_that_share_a_channel_count_one_by_one():
    fields = read_program(Program(TOGETHER))["collectives"]
    assert [(c.kind, c.bytes, c.exposed) for c in fields] == [
        ("reduce-scatter", 2 * 64 * 32 * 2, True)
    ] * 2


# A permutation, starts of several arrays at once, and a choice by truth and one by index.
STARTS = """HloModule step

%yes (y: f32[8]) -> f32[8] {
  %y = f32[8]{0} parameter(0)
  ROOT %ry = f32[8]{0} all-reduce(%y), channel_id=1, replica_groups=[1,4]<=[4], \
backend_config={"estimated_cycles":"10"}
}

%no (n: f32[8]) -> f32[8] {
  %n = f32[8]{0} parameter(0)
  ROOT %rn = f32[8]{0} negate(%n), backend_config={"estimated_cycles":"5"}
}

ENTRY %main (m: f32[8], p: pred[]) -> f32[8] {
  %m = f32[8]{0} parameter(0)
  %p = pred[] parameter(1)
  %cp = f32[8]{0} collective-permute(%m), channel_id=2, source_target_pairs={{0,1},{1,0}}
  %cps = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%m), channel_id=3, \
source_target_pairs={{0,1},{1,0}}
  %ags = ((f32[8]{0}, bf16[4]{0}), (f32[32]{0}, bf16[16]{0})) all-gather-start(%m, %q), \
channel_id=4, replica_groups=[1,4]<=[4], dimensions={0}
  %ag1 = (f32[8]{0}, f32[32]{0}) all-gather-start(%m), channel_id=5, replica_groups=[1,4]<=[4]
  %ars = (f32[8]{0}, f32[2]{0}) all-reduce-start(%m, %r), channel_id=6, replica_groups=[1,4]<=[4]
  %if = f32[8]{0} conditional(%p, %m, %m), true_computation=%yes, false_computation=%no
  ROOT %pick = f32[8]{0} conditional(%i, %m, %m), branch_computations={%no, %no}
}
""".replace("\\\n", "")


def test_a_permutation_sends_all_its_bytes():
    fields = read_program(Program(STARTS))["collectives"]
    permutes = [(c.bytes, c.wire, c.exposed) for c in fields if c.kind == "collective-permute"]
    assert permutes == [(32, 32, True), (32, 32, False)]


def test_a_start_of_several_arrays_counts_all_results():
    fields = read_program(Program(STARTS))["collectives"]
    gathers = [c.bytes for c in fields if c.kind == "all-gather"]
    assert gathers == [32 * 4 + 16 * 2, 32 * 4]
    assert [c.bytes for c in fields if c.kind == "all-reduce" and not c.exposed] == [8 * 4 + 2 * 4]


def test_the_branches_of_a_choice_count_by_truth_and_by_index():
    fields = read_program(Program(STARTS))
    assert fields["cycles"] == 10 + 5 + 2 * 5
    assert [c.group for c in fields["collectives"] if c.exposed and c.kind == "all-reduce"] == [4]
    text = STARTS.replace("true_computation=%yes, ", "")
    with pytest.raises(ValueError, match="conditional if does not name its branches"):
        read_program(Program(text))


# What libtpu writes for an all-reduce over two slices, in a loop of four iterations.
BETWEEN = """HloModule step, num_partitions=4

%body (b: (s32[], f32[64,8,128])) -> (s32[], f32[64,8,128]) {
  %b = (s32[], f32[64,8,128]{2,1,0}) parameter(0)
  %x = f32[64,8,128]{2,1,0} get-tuple-element(%b), index=1
  %t = token[] after-all()
  %send.1 = (f32[64,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%x, %t), channel_id=8, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name=\
"xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.86_0",\
_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.1 = (f32[64,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%t), channel_id=7, \
is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.1 = token[] send-done(%send.1), channel_id=8, is_host_transfer=true
  %recv-done.1 = (f32[64,8,128]{2,1,0:T(8,128)}, token[]) recv-done(%recv.1), channel_id=7
  ROOT %out = (s32[], f32[64,8,128]{2,1,0}) tuple(%b, %x)
}

%cond (c: (s32[], f32[64,8,128])) -> pred[] {
  %c = (s32[], f32[64,8,128]{2,1,0}) parameter(0)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (m: f32[64,8,128]) -> (s32[], f32[64,8,128]) {
  %m = f32[64,8,128]{2,1,0} parameter(0)
  ROOT %loop = (s32[], f32[64,8,128]{2,1,0}) while(%m), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"4"}}
}
""".replace("\\\n", "")


def test_a_collective_between_slices_is_read_once_from_its_send():
    fields = read_program(Program(BETWEEN))
    assert fields["collectives"] == []
    (between,) = fields["between_slices"]
    assert (between.kind, between.dtype, between.group, between.times) == (
        "all-reduce",
        "f32",
        2,
        4,
    )
    assert between.total == 4 * 64 * 8 * 128 * 4
    assert between.wire == between.total  # each of two slices sends half twice
    (four,) = read_program(Program(BETWEEN.replace("{1,2}x", "{1,2,3,4}x")))["between_slices"]
    assert (four.group, four.wire) == (4, 1.5 * four.total)
    for old, new in (("ALL_REDUCE", "ALL_GATHER"), ("{1,2}x", "all x")):
        with pytest.raises(ValueError, match="between slices is of an unknown kind"):
            read_program(Program(BETWEEN.replace(old, new)))


GROUPS = {
    "replica_groups=mesh['a'=2,'b'=8] {'b'}": 8,
    "replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}": 4,
    "replica_groups=mesh['a'=8] {'a':(2)4}": 4,
    "replica_groups=[4,2]<=[2,4]T(1,0), use_global_device_ids=true": 2,
    "replica_groups={{0,1,2},{3,4,5}}": 3,
    "replica_groups={}": 8,
}


@pytest.mark.parametrize("groups", GROUPS)
def test_every_form_of_groups(groups):
    text = TEXT.replace("replica_groups=[1,16]<=[16]", groups)
    text = text.replace("HloModule step", "HloModule step, num_partitions=8")
    reductions = [c for c in read_program(Program(text))["collectives"] if c.kind == "all-reduce"]
    assert [c.group for c in reductions] == [GROUPS[groups]]


def test_groups_of_an_unknown_form_are_an_error():
    text = TEXT.replace("replica_groups=[1,16]<=[16]", "replica_groups=iota(16)")
    with pytest.raises(ValueError, match="no known replica_groups"):
        read_program(Program(text))


def test_a_program_that_cannot_be_printed_or_read_has_a_reason_and_a_defect_raises(monkeypatch):
    class Compiled:
        def as_text(self) -> str | None:
            return "no program"

    def refuse(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: operands")

    text, fields = compiled.read_compiled(Compiled())
    assert text == "no program"
    assert "no ENTRY" in fields["unread_reason"]
    monkeypatch.setattr(Compiled, "as_text", lambda self: None)
    reason = compiled.read_compiled(Compiled())[1]["unread_reason"]
    assert reason == "the backend does not print programs"
    monkeypatch.setattr(Compiled, "as_text", refuse)
    assert compiled.read_compiled(Compiled())[1]["unread_reason"] == "INTERNAL: operands"
    monkeypatch.setattr(Compiled, "as_text", lambda self: STARTS)
    monkeypatch.setattr(compiled, "read_program", lambda program: {}["no such name"])
    with pytest.raises(KeyError):
        compiled.read_compiled(Compiled())


def test_memory_is_the_sum_of_its_parts(local_plan):
    used = local_plan.rows[0].figures.memory
    assert used["arguments"] >= sum(local_plan.rows[0].state_bytes.values())
    parts = ("arguments", "results", "temporaries", "code")
    assert used["total"] == sum(used[name] for name in parts)
