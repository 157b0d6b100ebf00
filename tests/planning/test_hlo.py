import pytest

from biomedlm_jax.planning.hlo import Program, array_bytes

TEXT = """HloModule step, is_scheduled=true, num_partitions=8

%body (b: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
  %b = (s32[], /*index=1*/bf16[64,32]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[64,32]{1,0} get-tuple-element(%b), index=1
  %attend.12 = (bf16[64,32]{1,0}, f32[64]{0}) custom-call(%x, %x), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={

}}, backend_config={"estimated_cycles":"30"}
  ROOT %out = (s32[], bf16[64,32]{1,0}) tuple(%b, %x)
}

%cond (c: (s32[], bf16[64,32])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  %c = (s32[], bf16[64,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%i, %five), direction=LT
}

ENTRY %main (m: bf16[64,32]) -> f32[10] {
  %m = bf16[64,32]{1,0} parameter(0)
  ROOT %loop = (s32[], bf16[64,32]{1,0}) while(%m), condition=%cond, body=%body, \
metadata={op_name="jit(step)/while"}
}
""".replace("\\\n", "")


def test_instructions_with_their_operands_and_attributes():
    program = Program(TEXT)
    assert (program.entry, program.devices) == ("main", 8)
    body = {i.name: i for i in program.computations["body"]}
    assert list(body) == ["b", "x", "attend.12", "out"]  # a call of several lines is one
    call = body["attend.12"]
    assert (call.opcode, call.operands, call.cycles) == ("custom-call", ["x", "x"], 30)
    assert call.attribute("custom_call_target") == "tpu_custom_call"
    assert body["x"].attribute("calls") == ""
    assert body["b"].opcode == "parameter"
    assert program.computations["main"][1].attribute("op_name") == "jit(step)/while"


def test_a_loop_body_is_executed_with_the_trip_count():
    executions = {i.name: (where, times) for i, where, times in Program(TEXT).executed()}
    assert executions["attend.12"] == ("body", 5)
    assert executions["loop"] == ("main", 1)
    stated = 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    executions = Program(TEXT.replace("body=%body", stated)).executed()
    assert {times for i, _, times in executions if i.name == "x"} == {7}


def test_a_trip_count_that_cannot_be_read_is_not_guessed():
    text = TEXT.replace("direction=LT", "direction=NE")
    with pytest.raises(ValueError, match="trip count of the loop loop is unknown"):
        list(Program(text).executed())
    with pytest.raises(ValueError, match="no ENTRY"):
        Program("not a program")


def test_bytes_of_types():
    assert array_bytes("(bf16[4,2]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)}, u32[3])") == [16, 4, 12]
