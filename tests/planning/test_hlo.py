import pytest

from biomedlm_jax.planning.compiled import read_program
from biomedlm_jax.planning.hlo import Program, array_bytes

# A loop of five turns with a kernel whose call holds raw newlines, an asynchronous gather that
# shows up three times, a fused reduce-scatter, and one plain all-reduce after the loop.
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


def test_cycles_and_kernels_count_as_often_as_the_loop_turns():
    found = read_program(Program(TEXT))
    assert found["cycles"] == 5 * 1050 + 7
    assert found["recomputed_cycles"] == 5 * 50
    assert found["kernels"] == {"attend": 5}


def test_each_exchange_counts_once_with_its_bytes_and_its_group():
    found = read_program(Program(TEXT))["collectives"]
    rows = {c.kind: (c.dtype, c.bytes, c.group, c.times, c.exposed) for c in found}
    assert len(found) == 3
    assert rows == {
        "all-gather": ("bf16", 32 * 32 * 2, 8, 5, False),
        "reduce-scatter": ("bf16", 64 * 32 * 2, 8, 5, True),
        "all-reduce": ("f32", 40, 16, 1, True),
    }
    wire = {c.kind: c.wire for c in found}
    assert wire["reduce-scatter"] == 5 * 64 * 32 * 2 * 7 / 8
    assert wire["all-reduce"] == 2 * 40 * 15 / 16


def test_a_kernel_call_of_several_lines_is_one_operation():
    names = [i.name for i in Program(TEXT).computations["body"]]
    assert names == ["b", "x", "start", "dot", "again", "done", "attend.12", "rs", "out"]


def test_a_count_that_cannot_be_read_is_not_guessed():
    text = TEXT.replace("direction=LT", "direction=NE")
    with pytest.raises(ValueError, match="the loop loop has the condition"):
        read_program(Program(text))
    with pytest.raises(ValueError, match="no ENTRY"):
        Program("not a program")


def test_bytes_of_types():
    assert array_bytes("(bf16[4,2]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)}, u32[3])") == [16, 4, 12]
