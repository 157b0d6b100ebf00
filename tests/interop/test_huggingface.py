import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from biomedlm_jax import mesh as meshes
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.finetuned import load_finetuned, save_finetuned
from biomedlm_jax.interop.huggingface import export_directory, export_hf, import_hf, load
from biomedlm_jax.training.checkpoint import save_model


def files_of(directory) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir()) if p.is_file()}


def test_export_writes_a_complete_directory(release):
    assert set(files_of(release)) == {
        "README.md",
        "SHA256SUMS",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    tensors = load_file(release / "model.safetensors")
    assert tensors["transformer.wte.weight"].shape == (300, 32)  # 384 inside
    assert len(tensors) == 4 + 3 * 12


def test_model_comes_back_bit_for_bit(model, tokenizer, release, tmp_path, assert_same):
    back, back_tokenizer = load(release)
    assert_same(model, back)
    assert back.config.architecture() == model.config.architecture()
    assert back_tokenizer.get_vocab() == tokenizer.get_vocab()
    run = import_hf(release, tmp_path / "run", notify=lambda line: None)
    assert files_of(run)["generation_config.json"] == files_of(release)["generation_config.json"]
    imported, _ = load(run)
    assert_same(model, imported)
    export_hf(imported, tokenizer, tmp_path / "again")
    assert (
        files_of(tmp_path / "again")["model.safetensors"] == files_of(release)["model.safetensors"]
    )
    assert files_of(tmp_path / "again")["config.json"] == files_of(release)["config.json"]


def test_shards_hold_the_same(model, tokenizer, release, tmp_path, assert_same):
    export_hf(model, tokenizer, tmp_path / "sharded", max_shard_size="30KB")
    shards = sorted((tmp_path / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert not (tmp_path / "sharded" / "model.safetensors").exists()
    whole = load_file(release / "model.safetensors")
    parts = {name: t for shard in shards for name, t in load_file(shard).items()}
    assert {n: t.tobytes() for n, t in parts.items()} == {n: t.tobytes() for n, t in whole.items()}
    assert_same(model, load(tmp_path / "sharded")[0])


def test_load_onto_a_mesh(release, model, tmp_path, assert_same):
    mesh = meshes.make_mesh(data=2, fsdp=2, tensor=2)
    run = import_hf(release, tmp_path / "run", notify=lambda line: None)
    for path in (release, run):
        loaded, _ = load(path, mesh=mesh)
        assert loaded.h.mlp.c_fc.kernel.sharding.spec == meshes.spec("layers", "embed", "mlp")
        assert_same(model, loaded)
    export_hf(loaded, None, tmp_path / "from-mesh")
    assert_same(model, load(tmp_path / "from-mesh")[0])


def test_folded_export_computes_the_same_function_without_the_flag(
    model, tokenizer, tmp_path, make_model
):
    export_hf(model, tokenizer, tmp_path / "folded", fold_attention_scale=True)
    config = json.loads((tmp_path / "folded" / "config.json").read_text())
    assert config["scale_attn_by_inverse_layer_idx"] is False
    folded, _ = load(tmp_path / "folded")
    tokens = jax.random.randint(jax.random.key(1), (2, 24), 0, 300)
    forward = jax.jit(lambda model: model(tokens))
    np.testing.assert_allclose(forward(folded), forward(model), atol=2e-5)


def test_import_says_what_it_did(release, tmp_path, rewrite):
    (release / "README.md").write_text("---\nlicense: bigscience-bloom-rail-1.0\n---\n")
    for name in ("tokenizer.json", "vocab.json"):
        (release / name).unlink()

    def halve(tensors):
        tensors.update({k: v.astype(np.float16) for k, v in tensors.items()})
        tensors["transformer.h.0.attn.masked_bias"] = np.array(-1e4, np.float16)

    rewrite(release, halve)
    messages = []
    run = import_hf(release, tmp_path / "run", notify=messages.append)
    assert "bigscience-bloom-rail-1.0, which forbids medical advice" in messages[0]
    assert "left out 1 unused tensors, such as h.0.attn.masked_bias" in messages[1]
    assert messages[2] == "converted to float32 from float16"
    assert "no tokenizer" in messages[3]
    source = json.loads((run / "config.json").read_text())["facts"]["source"]
    assert source["licence"] == "bigscience-bloom-rail-1.0"
    imported, tokenizer = load(run)
    assert tokenizer is None
    export_hf(imported, tokenizer, tmp_path / "out")
    assert "no tokenizer" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter_config.json", "adapter_config.json, which transformers applies"),
        ("spiece.model", "a tokenizer in spiece.model, which cannot be read here"),
        ("vocab.txt", "a tokenizer in vocab.txt, which cannot be read here"),
    ],
)
def test_files_that_transformers_reads_are_not_passed_over(model, tmp_path, name, message):
    source = export_hf(model, None, tmp_path / "source")
    (source / name).write_text("{}")
    for read in (load, lambda source: import_hf(source, tmp_path / "run")):
        with pytest.raises(ValueError, match=message):
            read(source)
    assert not (tmp_path / "run").exists()


def test_a_null_end_of_text_is_reported_and_can_be_set(release, tmp_path, edit_config):
    (release / "generation_config.json").unlink()
    edit_config(release, eos_token_id=None)
    lines: list[str] = []
    import_hf(release, tmp_path / "null", notify=lines.append)
    assert [line for line in lines if "has eos_token_id null: transformers ends no answer" in line]
    lines.clear()
    import_hf(release, tmp_path / "set", notify=lines.append, eos_token_id=299)
    assert not [line for line in lines if "null" in line]
    for name, end in (("null", None), ("set", 299)):
        out = export_directory(tmp_path / name, tmp_path / f"{name}-out", notify=lines.append)
        for file in ("config.json", "generation_config.json"):
            assert json.loads((out / file).read_text())["eos_token_id"] == end


def test_tokenizer_from_vocabulary_and_merges(release, tokenizer, tmp_path):
    (release / "tokenizer.json").unlink()
    run = import_hf(release, tmp_path / "run", notify=lambda line: None)
    assert (run / "tokenizer.json").exists()
    text = "neuropathy and hepatogram"
    assert load(run)[1].encode(text).ids == tokenizer.encode(text).ids


def test_tokenizer_of_another_model_is_refused(tokenizer, tmp_path, make_model):
    with pytest.raises(ValueError, match="id 299, and the model's vocabulary ends at 255"):
        export_hf(make_model(vocab_size=256), tokenizer, tmp_path / "out")
    with pytest.raises(ValueError, match="eos_token_id is 511"):
        export_hf(make_model(vocab_size=512), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 4}, "lacks tensors of this model: expected h.3."),
        ({"n_layer": 2}, "tensors that this model does not: got h.2."),
        ({"vocab_size": 301}, "got wte.weight [300, 32], expected [301, 32]"),
        ({"n_inner": 64}, "got h.0.mlp.c_fc.weight [32, 128], expected"),
        ({"model_type": "bert"}, "model_type='bert'"),
        ({"activation_function": "relu"}, "activation_function='relu'"),
        ("nan", "nan in tensor ln_f.bias at [0]"),
    ],
)
def test_bad_sources_leave_no_trace(release, tmp_path, changes, message, rewrite, edit_config):
    if changes == "nan":
        rewrite(release, lambda t: t["transformer.ln_f.bias"].fill(np.nan))
    else:
        edit_config(release, **changes)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        import_hf(release, tmp_path / "run", notify=lambda line: None)
    assert message in str(caught.value)
    with pytest.raises(ValueError, match=r"^[^\n]*$"):
        load(release)
    assert [p.name for p in tmp_path.iterdir()] == ["release"]


def test_export_of_a_broken_model_leaves_no_trace(model, tmp_path, make_model):
    broken = make_model()
    broken.ln_f.bias[...] = broken.ln_f.bias[...].at[3].set(np.nan)
    with pytest.raises(ValueError, match=r"nan in tensor ln_f.bias at \[3\]"):
        export_hf(broken, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_export_that_does_not_read_back_is_an_error(model, release, tokenizer, monkeypatch):
    from biomedlm_jax.interop import huggingface

    def write(directory, shapes, get, **options):
        real(directory, shapes, lambda name: get(name) + np.float32(1e-7), **options)

    before, real = files_of(release), huggingface.write_tensors
    monkeypatch.setattr(huggingface, "write_tensors", write)
    with pytest.raises(OSError, match=r"tensor .* does not read back"):
        export_hf(model, tokenizer, release, overwrite=True)
    assert files_of(release) == before


def test_runs_with_steps(model, tmp_path, release, make_model, assert_same):
    run = import_hf(release, tmp_path / "run", notify=lambda line: None)
    later = make_model(seed=5)
    save_model(run, later, step=7)
    assert_same(later, load(run)[0])
    assert_same(model, load(run, step=0)[0])
    with pytest.raises(InputError, match=r"no finished checkpoint of step 3"):
        load(run, step=3)
    with pytest.raises(ValueError, match="without steps"):
        load(release, step=0)


def test_commands_there_and_back(command, release, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    done = command("import-hf", f"--source={release}", f"--out={run}")
    assert (done.code, "licence of the weights" in done.out) == (0, True)
    done = command("export-hf", f"--model={run}", f"--out={out}")
    assert (done.code, "silently ignore" in done.out) == (0, True)
    card = (out / "README.md").read_text()
    assert f"| path | {release.name} |" in card
    assert str(tmp_path) not in card
    assert files_of(out)["model.safetensors"] == files_of(release)["model.safetensors"]
    done = command("export-hf", f"--model={run}", f"--out={out}")
    assert (done.code, "exists" in done.error) == (2, True)
    arguments = (f"--model={run}", f"--out={out}", "--overwrite", "--fold_attention_scale")
    done = command("export-hf", *arguments)
    assert (done.code, "silently ignore" in done.out) == (0, False)
    assert load(out)[0].config.scale_attn_by_inverse_layer_idx is False


def test_bad_input_is_one_line_and_code_2(command, release, tmp_path, rewrite):
    run = tmp_path / "run"
    shutil.copytree(release, tmp_path / "bad")
    rewrite(tmp_path / "bad", lambda t: t.pop("transformer.h.1.mlp.c_proj.bias"))
    for arguments, message in [
        (("import-hf", "--source=nowhere", f"--out={run}"), "no such directory: nowhere"),
        (("import-hf", f"--source={tmp_path / 'bad'}", f"--out={run}"), "h.1.mlp.c_proj.bias [32]"),
        (("import-hf", f"--source={release}"), "out"),
        (("import-hf", f"--source={release}", f"--out={release}", "--overwrite"), "something else"),
        (("export-hf", f"--model={run}", f"--out={tmp_path / 'o'}"), "no such directory"),
        (("export-hf", f"--model={release}", f"--out={release}"), "pass --overwrite"),
        (
            ("export-hf", f"--model={release}", "--out=o", "--max_shard_size=big"),
            "max_shard_size='big'",
        ),
    ]:
        done = command(*arguments)
        assert (done.code, done.error.count("\n")) == (2, 1)
        assert message in done.error
    assert not run.exists()


@pytest.fixture(params=["choice", "classification"])
def finetuned_run(request, make_finetuned, tmp_path):
    """A run of finetune, as far as export needs it, and its model with the Head."""
    model, tokenizer, head = make_finetuned(request.param)
    run = tmp_path / "run"
    facts = {"dev_accuracy": 41.5, "epoch": 3}
    save_finetuned(run / "model", model, tokenizer, head, step=5, facts=facts)
    groups = {"training": {"epochs": 9}, "optimizer": {"learning_rate": 2e-6}, "lora": {"rank": 0}}
    started_from = {"path": "/home/me/pre-trained", "weights": "abc"}
    record = {"recipe": "questions", **groups, "started_from": started_from}
    (run / "run.json").write_text(json.dumps(record))
    return run, model, head


def test_a_fine_tuned_model_goes_there_and_back(finetuned_run, command, tmp_path, assert_same):
    run, model, head = finetuned_run
    out, back, again = tmp_path / "out", tmp_path / "back", tmp_path / "again"
    done = command("export-hf", f"--model={run}", f"--out={out}")
    assert (done.code, done.error) == (0, "")
    card = (out / "README.md").read_text()
    for line in ("| dev_accuracy | 41.5 |", "| epochs | 9 |", "| learning_rate | 2e-06 |"):
        assert line in card
    assert f"with a {head.kind} head, fine-tuned on {head.task}" in " ".join(card.split())
    assert "| path | pre-trained |" in card
    assert "LoRA" not in card
    config = json.loads((out / "config.json").read_text())
    assert config["biomedlm_jax_head"] == head.to_json()
    assert not (out / "generation_config.json").exists()
    record = json.loads((out / "training.json").read_text())
    assert record["facts"] == {"dev_accuracy": 41.5, "epoch": 3}
    assert (record["training"], record["started_from"]) == ({"epochs": 9}, {"weights": "abc"})
    done = command("import-hf", f"--source={out}", f"--out={back}")
    assert (done.code, done.error) == (0, "")
    facts = json.loads((back / "config.json").read_text())["facts"]
    assert (facts["dev_accuracy"], facts["source"]["path"]) == (41.5, str(out))
    assert json.loads((back / "training.json").read_text()) == record
    for path in (run, out, back):
        loaded, _, record = load_finetuned(path)
        assert record == head
        assert_same(loaded, model)
    assert command("export-hf", f"--model={back}", f"--out={again}").code == 0
    assert "| learning_rate | 2e-06 |" in (again / "README.md").read_text()
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "training.json")
    for name in ("model.safetensors", *names):
        assert (again / name).read_bytes() == (out / name).read_bytes()
    with pytest.raises(ValueError, match="not a language model"):
        load(out)


def test_commands_refuse_heads_in_one_line(finetuned_run, command, tmp_path):
    run, *_ = finetuned_run
    out, model, fresh = tmp_path / "out", run / "model", tmp_path / "fresh"
    assert command("export-hf", f"--model={run}", f"--out={out}").code == 0
    for arguments, message in [
        (("export-hf", f"--model={run}", f"--out={out}"), "pass --overwrite"),
        (("export-hf", f"--model={run}", f"--out={fresh}", "--step=5"), "leave out --step"),
        (("export-hf", f"--model={run}", f"--out={model}", "--overwrite"), "something else"),
        (("import-hf", f"--source={model}", f"--out={fresh}"), "already"),
    ]:
        done = command(*arguments)
        assert (done.code, done.error.count("\n")) == (2, 1)
        assert message in done.error
    assert not fresh.exists()
    shutil.rmtree(model)
    assert "has no model yet" in command("export-hf", f"--model={run}", f"--out={fresh}").error


def test_a_head_that_does_not_fit_is_not_written(make_finetuned, tokenizer, tmp_path):
    model, grown, head = make_finetuned("classification")
    fewer = dataclasses.replace(head, classes=("no", "yes"))
    choice = dataclasses.replace(head, kind="choice", classes=())
    for other, message in [
        (fewer, "with 3 scores, and a head of kind classification with 2"),
        (choice, "a head of kind choice with 1"),
        (None, "a head of kind None"),
    ]:
        with pytest.raises(ValueError, match=message):
            export_hf(model, grown, tmp_path / "out", head=other)
    with pytest.raises(ValueError, match="with 0 scores"):
        export_hf(model.trunk, grown, tmp_path / "out", head=head)
    with pytest.raises(ValueError, match=r"lacks \[PAD\]"):
        export_hf(model, tokenizer, tmp_path / "out", head=head)
    model.score.kernel[...] = model.score.kernel[...].at[0, 0].set(np.inf)
    with pytest.raises(ValueError, match=r"inf in tensor score\.weight"):
        export_hf(model, grown, tmp_path / "out", head=head)
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_in_an_export_is_refused(release, tmp_path):
    copy = shutil.copytree(release, tmp_path / "copy")
    file = copy / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(InputError, match=r"model\.safetensors was changed after it was written"):
        load(copy)
    sums = copy / "SHA256SUMS"
    lines = [line for line in sums.read_text().splitlines() if "safetensors" not in line]
    sums.write_text("\n".join(lines) + "\n")
    load(copy)  # the change is intended
