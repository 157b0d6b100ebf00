"""heads.py: the record of a head, fine-tuned directories written, read and refused."""

import json

import jax
import numpy as np
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.interop.finetuned import (
    Head,
    load_finetuned,
    read_facts,
    read_head,
    save_finetuned,
)
from biomedlm_jax.interop.huggingface import export_hf, load
from biomedlm_jax.model.heads import HEADS
from biomedlm_jax.model.language_model import named_leaves


@pytest.mark.parametrize("kind", HEADS)
def test_save_and_load(kind, make_finetuned, assert_same, tmp_path):
    model, tokenizer, head = make_finetuned(kind)
    path = tmp_path / "run" / "model"
    facts = {"dev_accuracy": 41.5}
    assert read_facts(path) == {}
    save_finetuned(path, model, tokenizer, head, step=5, facts=facts)
    (tmp_path / "run" / "run.json").write_text("{}")
    for directory in (path, tmp_path / "run"):
        loaded, words, record = load_finetuned(directory)
        assert_same(loaded, model)
        assert jax.tree.structure(loaded) == jax.tree.structure(model)
        assert words.get_vocab() == tokenizer.get_vocab()
        assert record == read_head(directory) == head
    assert read_facts(path) == facts
    with pytest.raises(ValueError, match=f"a {kind} head, not a language model"):
        load(tmp_path / "run")
    save_finetuned(path, model, tokenizer, head, step=6)  # replaces it
    assert read_facts(path) == {}
    path.rename(path.with_name(".model.123.old"))  # a crash between two renames
    assert read_facts(path) == {}
    assert read_head(path) == head


def test_a_language_model_of_a_fine_tuning_run(model, tokenizer, assert_same, tmp_path):
    generation = {"max_new_tokens": 7}
    save_finetuned(
        tmp_path / "run" / "model",
        model,
        tokenizer,
        step=9,
        files={"generation_config.json": generation},
    )
    (tmp_path / "run" / "run.json").write_text("{}")
    assert_same(load(tmp_path / "run")[0], model)
    assert_same(load(tmp_path / "run", step=9)[0], model)
    written = tmp_path / "run" / "model" / "generation_config.json"
    assert json.loads(written.read_text()) == generation
    assert read_head(tmp_path / "run") is None
    with pytest.raises(ValueError, match="has no head; fine-tune it first"):
        load_finetuned(tmp_path / "run")


def test_a_failed_save_leaves_the_old_model(make_finetuned, tmp_path, monkeypatch):
    from biomedlm_jax.interop import finetuned

    model, tokenizer, head = make_finetuned("choice")
    save_finetuned(tmp_path / "model", model, tokenizer, head, facts={"epoch": 1})

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(finetuned, "save_model", fail)
    with pytest.raises(OSError, match="disk full"):
        save_finetuned(tmp_path / "model", model, tokenizer, head, facts={"epoch": 2})
    assert read_facts(tmp_path / "model") == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_onto_a_mesh_and_from_it(make_finetuned, assert_same, tmp_path):
    model, tokenizer, head = make_finetuned("classification", vocab_size=320)
    mesh = meshes.make_mesh(data=2, fsdp=2, tensor=2)
    path = export_hf(model, tokenizer, tmp_path / "out", head=head)
    loaded, *_ = load_finetuned(path, mesh=mesh)
    assert loaded.score.kernel.sharding.spec == meshes.spec("embed", None)
    assert_same(loaded, model)
    export_hf(loaded, tokenizer, tmp_path / "from-mesh", head=head)
    file = "model.safetensors"
    assert (tmp_path / "from-mesh" / file).read_bytes() == (path / file).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "choise"}, "got head.kind='choise'; expected one of choice, classification"),
        ({"row_format": "mine"}, "expected one of keep_end, released"),
        ({"max_length": 0}, "got head.max_length=0; expected at least 1"),
        ({"max_length": "40"}, "got head.max_length='40'; expected a whole number"),
        ({"classes": ["a", "b"]}, "a choice has none"),
        ({"kind": "classification", "classes": ["a", "a"]}, "has different names"),
        ({"kind": "classification", "classes": "ab"}, "expected a tuple"),
        ({"more": 1}, "got head.more, which is unknown"),
    ],
)
def test_bad_records_are_refused(changes, message):
    good = {
        "kind": "choice",
        "task": "t",
        "row_format": "keep_end",
        "max_length": 40,
        "classes": [],
    }
    assert Head.from_json(good, where="here").to_json() == good
    former = {**good, "row_format": "paper"}  # its name until it was named what it does
    assert Head.from_json(former, where="here").to_json() == good
    with pytest.raises(ValueError, match=r"^here: [^\n]*$") as caught:
        Head.from_json({**good, **changes}, where="here")
    assert message in str(caught.value)
    with pytest.raises(ValueError, match="here: head lacks kind"):
        Head.from_json({}, where="here")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "lacks tensors of this model: expected score.bias [1]"),
        ("shape", "got score.weight [2, 32], expected [1, 32]"),
        ("nan", "nan in tensor score.weight at [0, 0]"),
        ("block", "lacks tensors of this model: expected h.1.ln_1.bias"),
        ("tokenizer", "has no tokenizer"),
        ("head", "a choice has none"),
    ],
)
def test_damaged_directories_are_refused(
    damage, message, make_finetuned, tmp_path, rewrite, edit_config
):
    model, tokenizer, head = make_finetuned("choice")
    path = export_hf(model, tokenizer, tmp_path / "out", head=head)

    def change(tensors):
        if damage == "missing":
            del tensors["score.bias"]
        elif damage == "shape":
            tensors["score.weight"] = np.zeros((2, 32), np.float32)
        elif damage == "nan":
            tensors["score.weight"][0, 0] = np.nan
        else:
            del tensors["transformer.h.1.ln_1.bias"]

    if damage == "head":
        edit_config(path, biomedlm_jax_head={**head.to_json(), "classes": ["a", "b"]})
    elif damage == "tokenizer":
        for name in ("tokenizer.json", "vocab.json"):
            (path / name).unlink()
    else:
        rewrite(path, change)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        load_finetuned(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("exported", [False, True])
def test_matrices_are_read_as_bfloat16_onto_a_mesh(exported, make_finetuned, tmp_path):
    model, tokenizer, head = make_finetuned("classification")
    path = save_finetuned(tmp_path / "run", model, tokenizer, head)
    if exported:
        path = tmp_path / "hf"
        export_hf(model, tokenizer, path, head=head)
    mesh = meshes.make_mesh(fsdp=4, tensor=2)
    with pytest.warns(RuntimeWarning, match=rf"bfloat16 rounds [\d,]+ of [\d,]+ numbers of {path}"):
        loaded, *_ = load_finetuned(path, mesh=mesh, dtype="bfloat16")
    wide, narrow = named_leaves(model), named_leaves(loaded)
    assert narrow["score.kernel"].dtype == narrow["trunk.ln_f.scale"].dtype == "float32"
    for name, leaf in narrow.items():
        matrix = "trunk" in name and name.endswith(("kernel", "wte", "wpe"))
        assert leaf.dtype == ("bfloat16" if matrix else "float32")
        assert leaf.sharding.mesh == mesh
        np.testing.assert_array_equal(leaf, np.asarray(wide[name]).astype(leaf.dtype))
