import dataclasses
import json
import shutil
import warnings

import jax
import numpy as np
import pytest
import tiny
from cases import mostly_slow
from safetensors.numpy import load_file, save_file

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


@pytest.mark.slow
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


@pytest.fixture(params=mostly_slow(["choice", "classification"], ["choice"]))
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


def same_tensors(one, other) -> bool:
    """Whether two directories have the same names, dtypes and bits."""
    pairs = []
    for directory in (one, other):
        tensors = {}
        for file in directory.glob("*.safetensors"):
            tensors |= load_file(file)
        pairs.append({name: (t.dtype.name, t.shape, t.tobytes()) for name, t in tensors.items()})
    return pairs[0] == pairs[1]


def quietly(source, path, **options):
    return import_hf(source, path, notify=lambda line: None, **options)


def test_the_second_family_comes_back_bit_for_bit(source, tmp_path):
    transformers = pytest.importorskip("transformers")
    copy = shutil.copytree(source, tmp_path / "copy")
    generation = {"do_sample": True, "eos_token_id": [2, 7], "temperature": 0.5}
    (copy / "generation_config.json").write_text(json.dumps(generation))
    lines: list[str] = []
    run = import_hf(copy, tmp_path / "run", notify=lines.append)
    assert [line for line in lines if not line.startswith("licence")] == []
    out = export_directory(run, tmp_path / "out", notify=lines.append, max_shard_size="90KB")
    assert len([*out.glob("*.safetensors")]) > 1
    assert same_tensors(copy, out)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # the chat template is in it
        assert files_of(out)[name] == files_of(copy)[name]
    assert json.loads((out / "generation_config.json").read_text()) == generation
    theirs, ours = (transformers.AutoConfig.from_pretrained(path) for path in (copy, out))
    # The last has no meaning without a window.
    changed = ("_name_or_path", "transformers_version", "max_window_layers")
    theirs, ours = ({**config.to_dict(), **dict.fromkeys(changed)} for config in (theirs, ours))
    assert ours == theirs


@pytest.fixture(scope="module")
def bfloat16_source(llama_source, tmp_path_factory):
    path = shutil.copytree(llama_source, tmp_path_factory.mktemp("bfloat16") / "source")
    tensors = load_file(path / "model.safetensors")
    halved = {name: tensor.astype("bfloat16") for name, tensor in tensors.items()}
    save_file(halved, path / "model.safetensors", {"format": "pt"})
    return path


def test_a_bfloat16_source_stays_bfloat16_when_asked(bfloat16_source, tmp_path):
    transformers = pytest.importorskip("transformers")
    run = quietly(bfloat16_source, tmp_path / "run")
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(load(run)[0]))
    for origin, dtype in ((run, "source"), (run, "bfloat16"), (bfloat16_source, "source")):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # nothing is rounded
            out = export_directory(origin, tmp_path / "out", dtype=dtype, overwrite=True)
        assert same_tensors(out, bfloat16_source)
        assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
        assert "| tensors | bfloat16, safetensors |" in (out / "README.md").read_text()
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert str(model.dtype) == "torch.bfloat16"
    plain = export_directory(run, tmp_path / "plain", notify=lambda line: None)
    for one, other in zip(*(jax.tree.leaves(load(path)[0]) for path in (plain, out)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_mixed_shards_of_torch_files_keep_each_dtype(llama_source, tmp_path):
    torch = pytest.importorskip("torch")
    path = shutil.copytree(llama_source, tmp_path / "source")
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    kinds = {"norm": torch.float32, "mlp": torch.float16}
    halved = {
        name: torch.from_numpy(tensor).to(
            next((kind for part, kind in kinds.items() if part in name), torch.bfloat16)
        )
        for name, tensor in tensors.items()
    }
    for layer in range(2):
        halved[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(6)
    names, weight_map = sorted(halved), {}
    for number in range(3):
        file = f"pytorch_model-{number + 1:05}-of-00003.bin"
        torch.save({name: halved[name] for name in names[number::3]}, path / file)
        weight_map |= dict.fromkeys(names[number::3], file)
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    lines: list[str] = []
    run = import_hf(path, tmp_path / "run", notify=lines.append)
    unused = "left out 2 unused tensors, such as layers.0.self_attn.rotary_emb.inv_freq"
    assert unused in lines
    assert "converted to float32 from bfloat16, float16, float32" in lines
    for origin in (run, path):
        out = export_directory(origin, tmp_path / "out", dtype="source", overwrite=True)
        back = {}
        for file in out.glob("*.safetensors"):
            back |= pytest.importorskip("safetensors.torch").load_file(file)
        assert {*back} == {*tensors}
        for name, tensor in back.items():
            assert tensor.dtype == halved[name].dtype
            assert torch.equal(tensor, halved[name])
    again = quietly(out, tmp_path / "again")  # from safetensors, with float32 and bfloat16 mixed
    for one, other in zip(*(jax.tree.leaves(load(run)[0]) for run in (run, again)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_dtype_that_loses_bits_is_told(llama_source, tmp_path, command):
    run = quietly(llama_source, tmp_path / "run")
    with pytest.warns(RuntimeWarning, match=r"bfloat16 rounds [\d,]+ of [\d,]+ numbers, by 0\.00"):
        out = export_directory(run, tmp_path / "out", dtype="bfloat16", notify=print)
    theirs, ours = (load_file(path / "model.safetensors") for path in (llama_source, out))
    assert all(np.array_equal(ours[name], theirs[name].astype("bfloat16")) for name in theirs)
    with pytest.warns(RuntimeWarning, match="float16 rounds"):
        done = command("export-hf", f"--model={run}", f"--out={tmp_path / 'f'}", "--dtype=float16")
    assert done.code == 0
    made = save_finetuned(tmp_path / "made", load(run)[0], None)
    done = command("export-hf", f"--model={made}", f"--out={tmp_path / 'no'}", "--dtype=source")
    assert (done.code, "was not imported" in done.error) == (2, True)


def test_numbers_beyond_float16_are_refused(llama_source, tmp_path):
    model, _ = load(llama_source)
    model.norm.scale[...] = model.norm.scale[...].at[3].set(70_000)
    with pytest.raises(InputError, match=r"norm.weight has 70000, more than float16 can hold"):
        export_hf(model, None, tmp_path / "out", dtype="float16")
    with pytest.raises(InputError, match="got dtype='int8'; expected one of float32"):
        export_hf(model, None, tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out").exists()


def test_ids_of_the_tokenizer_win_over_the_config(llama_source, tmp_path, edit_config, command):
    """PMC-LLaMA has 0, 1 and -1 in its config, and a tokenizer with 1 and 2."""
    path, run, out = (tmp_path / name for name in ("source", "run", "out"))
    shutil.copytree(llama_source, path)
    edit_config(path, bos_token_id=0, eos_token_id=1, pad_token_id=-1)
    lines: list[str] = []
    import_hf(path, run, notify=lines.append)
    config = load(run)[0].config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, None)
    assert "bos_token_id is 1, the tokenizer's <s>; config.json has 0" in lines
    assert "eos_token_id is 2, the tokenizer's </s>; config.json has 1" in lines
    assert "pad_token_id is none; config.json has -1" in lines
    export_directory(run, out, notify=lines.append)
    fields = json.loads((out / "config.json").read_text())
    assert [fields[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, None]
    # Without an import both contradictions are warnings; given ids are taken.
    with pytest.warns(RuntimeWarning) as caught:
        assert load(path)[0].config.pad_token_id is None
    texts = [str(one.message) for one in caught]
    for part in ("</s> as id 2", "<s> as id 1, and the model's bos_token_id is 0: import it"):
        assert [text for text in texts if part in text]
    edit_config(path, eos_token_id=400)
    flags = ("import-hf", f"--source={path}", f"--out={run}", "--overwrite")
    assert command(*flags, "--eos_token_id=5").code == 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        export_directory(run, out, overwrite=True, notify=lines.append)
    text = (
        "the tokenizer has </s> as id 2, and the model's eos_token_id is 5: answers end at id 5, "
    )
    assert [str(one.message) for one in caught] == [f"{text}not at </s>"]
    with pytest.warns(RuntimeWarning, match="answers end at id 5"):
        assert load(run)[0].config.eos_token_id == 5
    assert command(*flags).code == 0  # an id out of range, too
    assert load(run)[0].config.eos_token_id == 2


def test_a_list_of_ends_with_that_of_the_tokenizer_stays(llama_source, tmp_path, edit_config):
    path = shutil.copytree(llama_source, tmp_path / "source")
    edit_config(path, eos_token_id=[7, 2])
    lines: list[str] = []
    run = import_hf(path, tmp_path / "run", notify=lines.append)
    assert load(run)[0].config.end_ids == (7, 2)
    assert not [line for line in lines if "eos_token_id" in line]


@pytest.mark.parametrize(
    "model_type", mostly_slow(["llama", "qwen2"], ["qwen2"])
)  # a head of its own, and a tied one
def test_a_tokenizer_larger_than_the_embedding(model_type, tmp_path, edit_config, command):
    tokenizers = pytest.importorskip("tokenizers")
    source, run, out = (tmp_path / name for name in ("source", "run", "out"))
    tiny.directory_of(model_type, source)
    file = source / "tokenizer.json"
    larger = tokenizers.Tokenizer.from_file(str(file))
    larger.add_special_tokens(["[PAD]", "<|end|>"])
    larger.save(str(file))
    config = json.loads((source / "tokenizer_config.json").read_text())
    names = {str(400 + i): tiny.flags(name) for i, name in enumerate(("[PAD]", "<|end|>"))}
    config["added_tokens_decoder"] |= names
    tiny.write(source, tokenizer_config={**config, "pad_token": "[PAD]", "eos_token": "<|end|>"})
    edit_config(source, pad_token_id=400)
    flags = ("import-hf", f"--source={source}", f"--out={run}")
    for arguments in (flags, ("export-hf", f"--model={source}", f"--out={out}")):
        done = command(*arguments)
        assert (done.code, done.error.count("\n")) == (2, 1)
        assert "--resize_embeddings" in done.error or "has id 401" in done.error
    done = command(*flags, "--resize_embeddings")
    assert done.code == 0, done.error
    assert "added 2 vocabulary rows for the tokenizer's ids, each the mean" in done.out
    model, _ = load(run)
    config = model.config
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id) == (402, 401, 400)
    before = load_file(source / "model.safetensors")
    for rows, name in (
        (model.embed_tokens, "model.embed_tokens.weight"),
        (model.lm_head, "lm_head.weight"),
    ):
        if rows is not None:
            np.testing.assert_array_equal(rows[:400], before[name])
            mean = before[name].astype(np.float64).mean(0)
            np.testing.assert_allclose(rows[400:402], [mean, mean], rtol=0, atol=1e-8)
            assert not np.any(rows[402:])
    assert command("export-hf", f"--model={run}", f"--out={out}").code == 0
    assert load(out)[0].config == config
    assert command(*flags, "--resize_embeddings", "--overwrite").code == 0


def test_unknown_and_old_types(llama_source, tmp_path, edit_config):
    path = shutil.copytree(llama_source, tmp_path / "source")
    fields = json.loads((path / "config.json").read_text())
    edit_config(path, model_type="mixtral", architectures=["MixtralForCausalLM"])
    known = "'mixtral'; the known model families are gpt2, llama, mistral, qwen2, qwen3"
    with pytest.raises(InputError, match=known):
        quietly(path, tmp_path / "run")
    # The first conversions: other names, no grouped heads, nothing about RoPE.
    model = tiny.transformers_model("llama", num_key_value_heads=4, head_dim=12)
    model.save_pretrained(path)
    later = ("rope_parameters", "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias")
    later += ("max_position_embeddings", "tie_word_embeddings", "attention_dropout", "dtype")
    old = {name: value for name, value in fields.items() if name not in later}
    old |= {"max_sequence_length": 64, "architectures": ["LLaMAForCausalLM"]}
    old |= {"model_type": "llama", "torch_dtype": "float16", "transformers_version": "4.27.0.dev0"}
    tiny.write(path, config=old)
    run = quietly(path, tmp_path / "run")
    config = load(run)[0].config
    assert (config.context_length, config.key_value_heads, config.rope_theta) == (64, 4, 10_000)
    out = export_directory(run, tmp_path / "out", notify=lambda line: None)
    assert same_tensors(path, out)
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 64
    edit_config(path, max_position_embeddings=32)
    with pytest.raises(InputError, match="names of one setting"):
        quietly(path, tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("source", mostly_slow(tiny.TYPES, ["llama"]), indirect=True)
def test_classifiers_of_the_second_family_score_alike(source, make_finetuned, tmp_path):
    """transformers reads the last token that is not padding, on either side."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    finetuned, grown, head = make_finetuned("classification", source=source)
    out = export_hf(finetuned, grown, tmp_path / "out", head=head)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    name = transformers.CONFIG_MAPPING[finetuned.config.model_type].__name__.removesuffix("Config")
    assert type(theirs).__name__ == f"{name}ForSequenceClassification"
    words = transformers.AutoTokenizer.from_pretrained(out)
    texts = ["cardiology", "neurosis and hyperase", "the itisgen of the cardiitis"]
    with torch.no_grad():
        ours = []
        for text in texts:
            ids = np.array([grown.encode(text).ids])
            ours.append(np.asarray(finetuned(finetuned.trunk.hidden(ids)[:, -1]))[0])
        for side in ("right", "left"):
            batch = words(texts, return_tensors="pt", padding=True, padding_side=side)
            scores = theirs(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            np.testing.assert_allclose(scores.numpy(), ours, rtol=0, atol=1e-4)
    back, _, record = load_finetuned(out)
    assert record == head
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(finetuned), strict=True):
        np.testing.assert_array_equal(one, other)
