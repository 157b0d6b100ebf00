import json

import jax
import numpy as np
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config
from biomedlm_jax.model.language_model import map_parameters
from biomedlm_jax.settings import read_settings
from biomedlm_jax.training import provenance
from biomedlm_jax.training.pretrain import PretrainSettings
from biomedlm_jax.training.provenance import changes, check_run, run_record, weights_hash, write_run

CONFIG = GPT2Config(vocab_size=304, context_length=16, layers=2, width=32, heads=2)


def make():
    return GPT2(CONFIG, key=jax.random.key(0))


def test_every_leaf_changes_the_hash():
    model, names, hashes = make(), [], set()
    map_parameters(lambda name, variable: names.append(name) or variable, model)
    for changed in names:

        def change(name, variable, changed=changed):
            return variable.replace(variable[...] + (name == changed))

        hashes.add(weights_hash(map_parameters(change, model)))
    assert len(hashes | {weights_hash(model)}) == len(names) + 1


def test_the_hash_is_the_same_on_every_mesh():
    mesh = meshes.make_mesh(data=2, fsdp=2, tensor=2)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, meshes.abstract_sharded(make, mesh))
    assert weights_hash(jax.device_put(make(), shardings)) == weights_hash(make())


def test_the_hash_is_that_of_the_values_in_every_dtype(monkeypatch):
    narrow = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), make())
    wide = jax.tree.map(lambda leaf: leaf.astype("float32"), narrow)
    monkeypatch.setattr(provenance, "PART_BYTES", 5_000)
    assert weights_hash(narrow) == weights_hash(wide) != weights_hash(make())


def test_several_processes_hash_the_same_weights_part_by_part(monkeypatch):
    expected, sizes = weights_hash(make()), []

    def gather(part, tiled):
        sizes.append(part.nbytes)
        return np.asarray(part)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(provenance, "PART_BYTES", 5_000)  # a layer of the MLP has 16,384
    monkeypatch.setattr(provenance.multihost_utils, "process_allgather", gather)
    assert weights_hash(make()) == expected
    assert max(sizes) == 4 * 32 * 128


def test_a_run_is_resumed_with_its_own_content_wherever_it_lies(config, tmp_path):
    settings = read_settings(PretrainSettings, config)
    run, start = tmp_path / "run", {"path": "a", "weights": "w" * 64}
    assert not check_run(run, "pretrain", settings, start)
    run.mkdir()
    write_run(run, run_record("pretrain", settings, start))
    assert check_run(run, "pretrain", settings, {**start, "path": "elsewhere"})
    config.mesh.fsdp, config.data.path, config.logging.every = 4, "moved", 7
    assert check_run(run, "pretrain", read_settings(PretrainSettings, config), start)
    with pytest.raises(ValueError, match=r"weights=wwwwwwwwwwww \(now vvv\)"):
        check_run(run, "pretrain", settings, {**start, "weights": "vvv"})
    with pytest.raises(ValueError, match=r"recipe='pretrain' \(now 'text'\)"):
        check_run(run, "text", settings, start)
    config.training.seed = 3
    with pytest.raises(ValueError, match=r"training.seed=17 \(now 3\); resume it with its own"):
        check_run(run, "pretrain", read_settings(PretrainSettings, config), start)
    (run / "run.json").write_text(json.dumps({"recipe": "pretrain"})[:-1])
    with pytest.raises(ValueError, match=r"run\.json"):
        check_run(run, "pretrain", settings, start)


def test_a_start_with_tuples_is_the_one_that_was_written(config, tmp_path):
    settings = read_settings(PretrainSettings, config)
    start = {"generation": {"stop": ("a", "b")}}
    tmp_path.joinpath("run").mkdir()
    write_run(tmp_path / "run", run_record("pretrain", settings, start))
    assert check_run(tmp_path / "run", "pretrain", settings, start)


def test_changes_are_named_as_the_flags_are(config, tmp_path):
    settings = read_settings(PretrainSettings, config)
    before = run_record("pretrain", settings, {"weights": "a"})
    write_run(tmp_path, before)
    assert changes(tmp_path, before) == {}
    config.mesh.fsdp, config.logging.every = 4, 7
    now = run_record("pretrain", read_settings(PretrainSettings, config), {"weights": "b"})
    expected = {
        "logging.every": [settings.logging.every, 7],
        "mesh.fsdp": [settings.mesh.fsdp, 4],
        "started_from.weights": ["a", "b"],
    }
    assert changes(tmp_path, now) == expected
