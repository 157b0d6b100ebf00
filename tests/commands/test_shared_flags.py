import dataclasses
from collections.abc import Callable

import pytest
from absl import flags

from biomedlm_jax import distributed
from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.settings import Settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(Settings):
    rate: float = setting(0.5, help="rate in percent")
    count: int | None = setting(None, help="number of things")
    stop: bool | str = setting(False, choices=(False, True, "never"), help="when to stop")
    words: tuple[str, ...] = setting((), help="word to avoid")
    name: str = setting("a", help="name of the thing")
    hidden: int = setting(1, help="not a flag")


def parsed(define: Callable[[Flags], None], *arguments: str) -> Flags:
    values = Flags()
    define(values)
    values(["", *arguments])
    return values


def test_settings_become_flags_with_their_help_and_back():
    def define(values):
        values.define_settings(Example, exclude=("hidden",))

    values = parsed(define)
    assert values["rate"].help == "rate in percent (default 0.5)"
    assert values["words"].help == "word to avoid; repeatable."
    assert "hidden" not in values
    assert values.given_settings(Example, exclude=("hidden",)) == {}
    arguments = ["--rate=2", "--count=3", "--stop=true", "--words=a", "--words=b", "--name=x"]
    given = parsed(define, *arguments).given_settings(Example, exclude=("hidden",))
    assert given == {"rate": 2.0, "count": 3, "stop": True, "words": ("a", "b"), "name": "x"}
    assert Example(**given).stop is True
    values = parsed(define, "--stop=never")
    assert values.given_settings(Example, exclude=("hidden",)) == {"stop": "never"}


def test_the_mesh_flags_make_a_mesh():
    mesh = parsed(Flags.define_mesh, "--fsdp=2", "--tensor=2").make_mesh()
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    with pytest.raises(ValueError, match="data=3"):
        parsed(Flags.define_mesh, "--data=3").make_mesh()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), None),
        (("--distributed",), (None, 0, 1)),
        (("--coordinator=host:1", "--process_count=2", "--process_id=1"), ("host:1", 1, 2)),
    ],
)
def test_processes_start_when_the_flags_name_them(arguments, expected, monkeypatch):
    started = []

    def start(coordinator, *, process_id, process_count, start_timeout, silence_timeout):
        assert (start_timeout, silence_timeout) == (300, 60)
        started.append((coordinator, process_id, process_count))

    monkeypatch.setattr(distributed, "start_processes", start)
    with parsed(Flags.define_processes, *arguments).joined():
        assert started == ([expected] if expected else [])


def test_a_process_count_needs_a_coordinator():
    values = parsed(Flags.define_processes, "--process_count=2")
    with pytest.raises(ValueError, match="--coordinator=HOST:PORT"), values.joined():
        pass


def test_required_flags_and_outputs():
    values = Flags()
    values.define_config()
    values.define_model(repeated=True)
    values.define_out("the report")
    values.define_dtype()
    values.define_json()
    values.define("sizes", ["1"], "sizes")
    values.define("count", None, "number", kind=int, least=1)
    with pytest.raises(flags.IllegalFlagValueError, match="--config"):
        values([""])
    config = "--config=configs/pretrain.py:tiny"
    values(["", config, "--model=a", "--model=b", "--out=o", "--sizes=2,3", "--count=4"])
    assert (values.model, values.out, values.overwrite) == (["a", "b"], "o", False)
    assert values.pick("sizes", "count") == {"sizes": ["2", "3"], "count": 4}
    assert values["overwrite"].help == "Replace the report in --out."
