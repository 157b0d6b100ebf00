import dataclasses
import importlib
import json
from collections.abc import Callable

import jax
import pytest
from absl import flags

from biomedlm_jax import allocator, distributed
from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.corpus.documents import Skipped
from biomedlm_jax.settings import Settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example(Settings):
    rate: float = setting(0.5, help="rate in percent")
    count: int | None = setting(None, help="number of things")
    stop: bool | str = setting(False, choices=(False, True, "never"), help="when to stop")
    words: tuple[str, ...] = setting((), help="word to avoid")
    name: str = setting("a", help="name of the thing")
    hidden: int = setting(1, help="not a flag")


def parsed(groups: str, *arguments: str, define: Callable[[Flags], None] | None = None) -> Flags:
    values = Flags(*groups.split())
    if define:
        define(values)
    values(["", *arguments])
    return values


def test_settings_become_flags_with_their_help_and_back():
    def define(values):
        values.define_settings(Example, exclude=("hidden",))

    values = parsed("", define=define)
    assert values["rate"].help == "rate in percent (default 0.5)"
    assert values["words"].help == "word to avoid; repeatable."
    assert "hidden" not in values
    assert values.given_settings(Example) == {}
    arguments = ["--rate=2", "--count=3", "--stop=true", "--words=a", "--words=b", "--name=x"]
    given = parsed("", *arguments, define=define).given_settings(Example)
    assert given == {"rate": 2.0, "count": 3, "stop": True, "words": ("a", "b"), "name": "x"}
    assert Example(**given).stop is True
    values = parsed("", "--stop=never", define=define)
    assert values.given_settings(Example) == {"stop": "never"}


def test_the_loading_flags_are_arguments_of_a_loader():
    loading = parsed("mesh dtype", "--fsdp=2", "--tensor=2", "--dtype=bfloat16").loading()
    assert dict(loading["mesh"].shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert loading["compute_dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="data=3"):
        parsed("mesh", "--data=3").loading()
    assert set(parsed("mesh").loading()) == {"mesh"}


@pytest.mark.parametrize("name", ["evaluate", "generate", "export_hf", "verify_hf"])
def test_commands_that_load_a_model_have_the_same_flags(name):
    command = importlib.import_module(f"biomedlm_jax.commands.{name}")
    loading = parsed("mesh" if name.endswith("_hf") else "mesh dtype")  # those are in float32
    for flag in {*loading} - {"flagfile", "undefok"}:
        assert command.FLAGS[flag].help == loading[flag].help
    if name != "export_hf":  # whose dtype is that of the files
        assert ("dtype" in command.FLAGS) == ("dtype" in loading)


def test_sizes_are_whole_numbers_above_0():
    def define(values):
        values.define_sizes("sizes", (1, 8), "sizes")

    assert parsed("", define=define).sizes == (1, 8)
    assert parsed("", define=define)["sizes"].default_as_str == "'1,8'"
    assert parsed("", "--sizes=2", define=define).sizes == (2,)
    assert parsed("", "--sizes=", define=define).sizes == ()
    for bad in ("1,0", "-1", "1.5", "two", "1,,2"):
        with pytest.raises(flags.IllegalFlagValueError, match="whole numbers above 0"):
            parsed("", f"--sizes={bad}", define=define)


def test_the_flags_of_a_corpus_select_documents(tmp_path):
    for name, subset in (("a", "Github"), ("b", "PubMed Central"), ("c", "PubMed Abstracts")):
        record = {"title": name, "meta": {"body": "x"}, "kind": {"name": subset}}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n{\n")
    values = Flags("input")
    paths = [tmp_path / f"{name}.jsonl" for name in "abc"]
    arguments = [f"--input={paths[0]},{paths[1]}", f"--input={paths[2]}", "--on_error=skip"]
    arguments += ["--text_field=title,meta.body", "--subset_field=kind.name"]
    values(["", *arguments, "--subsets=PubMed Central,PubMed Abstracts"])
    skipped = Skipped()
    assert values.input_paths() == paths
    texts = [document.text for document in values.read_input(skipped)]
    assert texts == ["b\n\nx", "c\n\nx"]
    assert (skipped.bad, skipped.subsets) == (3, {"Github": 1})


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
    with parsed("processes", *arguments).multiprocess_run():
        assert started == ([expected] if expected else [])


def test_freed_memory_is_kept_before_there_are_devices(monkeypatch):
    calls = []
    monkeypatch.setattr(allocator, "keep_freed_memory", lambda: calls.append("memory"))
    monkeypatch.setattr(jax, "process_count", lambda: calls.append("devices") or 1)
    with parsed("processes").multiprocess_run():
        assert calls[:2] == ["memory", "devices"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--process_count=2"], "--process_count needs --coordinator=HOST:PORT"),
        (["--process_id=3"], "--process_id needs --coordinator=HOST:PORT"),
        (["--coordinator=host:1", "--distributed"], "expected one of them"),
    ],
)
def test_flags_of_processes_that_contradict(arguments, message):
    values = parsed("processes", *arguments)
    with pytest.raises(ValueError, match=message), values.multiprocess_run():
        pass


def test_required_flags_and_outputs():
    values = Flags("config", "models", "out", "dtype", "json")
    values.define("sizes", ["1"], "sizes")
    values.define("count", None, "number", kind=int, least=1)
    with pytest.raises(flags.IllegalFlagValueError, match="--config"):
        values([""])
    config = "--config=configs/pretrain.py:tiny"
    values(["", config, "--model=a", "--model=b", "--out=o", "--sizes=2,3", "--count=4"])
    assert (values.model, values.out, values.overwrite) == (["a", "b"], "o", False)
    assert values.pick("sizes", "count") == {"sizes": ["2", "3"], "count": 4}
    assert values["overwrite"].help == "Replace what this command wrote to --out before."
    assert values["model"].help.endswith("several seeds; repeatable.")
