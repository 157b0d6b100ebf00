import atexit

import jax
import numpy as np
import pytest

from biomedlm_jax.benchmarks import release
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.model.families import make_model
from biomedlm_jax.model.gpt2 import GPT2Config

CONFIG = GPT2Config(
    layers=1, width=16, heads=2, vocab_size=32, context_length=8, compute_dtype="bfloat16", unroll=1
)


def test_the_directory_has_the_weights_of_one_seed_and_is_removed():
    with release.random_release(CONFIG) as path:
        model, tokenizer = load(path, **release.execution_of(CONFIG))
    assert not path.exists()
    assert tokenizer is None
    assert model.config == CONFIG
    expected = make_model(CONFIG, key=jax.random.key(0))
    assert all(map(np.array_equal, jax.tree.leaves(model), jax.tree.leaves(expected)))


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_what_threads_write_after_an_interrupt_is_removed_at_the_end(monkeypatch, interrupt):
    at_end = []
    monkeypatch.setattr(atexit, "register", lambda *call, **options: at_end.append((call, options)))
    with pytest.raises(interrupt), release.random_release(CONFIG) as path:
        raise interrupt
    assert not path.parent.exists()
    late = path.parent / "checkpoint" / "step"
    late.mkdir(parents=True)  # as a thread of the checkpoint does
    (((remove, *arguments), options),) = at_end
    remove(*arguments, **options)
    assert not path.parent.exists()


def test_apart_another_process_writes_it(monkeypatch):
    def measure_alone(module, name, work):
        assert module == "release"
        assert name != "biomedlm_jax"  # whose process has the GPU
        release.make_side(name, **work)["export"]()

    monkeypatch.setattr(release, "measure_alone", measure_alone)
    with release.random_release(CONFIG, apart=True) as path:
        assert (path / "model.safetensors").exists()
