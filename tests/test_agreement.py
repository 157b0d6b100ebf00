import json
import os
import socket

import jax
import pytest
from processes import Process

from biomedlm_jax import agreement
from biomedlm_jax.errors import InputError

PROGRAM = """
import json, sys
from biomedlm_jax import agreement, distributed
from biomedlm_jax.errors import InputError

number = int(sys.argv[2])
distributed.start_processes(
    sys.argv[1], process_id=number, process_count=2, start_timeout=60, silence_timeout=30
)
calls = []
def read():
    calls.append(number)
    return {"steps": [4, 8], "by": number}
results = {
    "gathered": agreement.all_gather({"text": "ä" * (1 + 50 * number), "none": None}),
    "first": agreement.from_first_process(read),
    "calls": calls,
}
agreement.check_agreement({"data": {"seed": 3}, "a": [1, 2]})
try:
    agreement.check_agreement({"data": {"seed": 99 * number}, "a": [1], "name": "x" * number})
except InputError as error:
    results["error"] = str(error)
with distributed.fail_together(silence_timeout=30):  # all arrive before one ends
    print(json.dumps(results))
"""


@pytest.mark.slow
def test_two_processes():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    xla = {"XLA_FLAGS": os.environ["FAST_COMPILATION"]}
    started = [Process(["-c", PROGRAM, address, number], env=xla) for number in range(2)]
    try:
        texts = [process.communicate(240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], texts
    results = [json.loads(out.splitlines()[-1]) for out, _ in texts]  # Gloo prints, too
    for number, result in enumerate(results):
        both = [{"text": "ä", "none": None}, {"text": "ä" * 51, "none": None}]
        assert result["gathered"] == both
        assert result["first"] == {"steps": [4, 8], "by": 0}
        assert result["calls"] == [0][number:]  # the other process reads nothing
        assert result["error"] == (
            "process 1 of 2 differs from process 0: data.seed=99 (process 0: 0), "
            'name="x" (process 0: ""); start all processes with the same command, data and packages'
        )


def test_one_process_agrees_with_itself():
    assert agreement.all_gather({"a": 1}) == [{"a": 1}]
    assert agreement.from_first_process(lambda: [1, 2]) == [1, 2]
    agreement.check_agreement({"a": {"b": float}})  # not even JSON is needed


def differing(monkeypatch, *facts) -> str:
    monkeypatch.setattr(agreement, "all_gather", lambda _: [*facts])
    monkeypatch.setattr(jax, "process_count", lambda: len(facts))
    with pytest.raises(InputError) as error:
        agreement.check_agreement(facts[0])
    return str(error.value)


def test_the_first_process_that_differs_is_named(monkeypatch):
    same = {"model": {"layers": 2}, "seed": 0}
    other = {"model": {"layers": 3}, "seed": 0}
    message = differing(monkeypatch, same, same, other, {})
    assert message.startswith("process 2 of 4 differs from process 0: model.layers=3 (process")
    assert "seed" not in message


def test_what_one_process_lacks_is_null_and_long_values_are_cut(monkeypatch):
    message = differing(monkeypatch, {"a": "x" * 500}, {"b": {"c": 1}})
    assert f'a=null (process 0: "{"x" * 59}...)' in message
    assert "b.c=1 (process 0: null)" in message
    assert len(differing(monkeypatch, {}, {f"n{i}": i for i in range(1000)})) < 300


def test_the_versions_are_of_what_is_imported():
    versions = agreement.versions()
    assert versions["jax"] == jax.__version__
    assert {"python", "biomedlm-jax", "numpy", "grain"} <= {*versions}
    assert json.loads(json.dumps(versions)) == versions


@pytest.mark.parametrize(("bad_input", "kind"), [(True, InputError), (False, OSError)])
def test_an_error_of_process_0_is_raised_in_all(monkeypatch, bad_input, kind):
    """In process 1, simulated by what it receives."""
    monkeypatch.setattr(agreement.jax, "process_count", lambda: 2)
    monkeypatch.setattr(agreement.jax, "process_index", lambda: 1)
    monkeypatch.setattr(agreement, "all_gather", lambda _: [[None, [bad_input, "it is damaged"]]])
    with pytest.raises(kind, match="it is damaged"):
        agreement.from_first_process(lambda: pytest.fail("process 0 reads"))
