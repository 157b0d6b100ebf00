"""lora_files.py: factors go to peft and come from it, with equal logits."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import optax
import pytest
from cases import mostly_slow
from safetensors.numpy import load_file, save_file

from biomedlm_jax.corpus.tokenizer import copy_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.finetuned import save_finetuned
from biomedlm_jax.interop.huggingface import export_hf, import_hf, load
from biomedlm_jax.interop.lora_files import export_adapter, is_adapter
from biomedlm_jax.model.lora import Adapter
from biomedlm_jax.model.vocabulary import grow_vocabulary
from biomedlm_jax.training.checkpoint import Checkpointer, save_model
from biomedlm_jax.training.state import init_state

torch = pytest.importorskip("torch", reason="peft is for torch")
peft = pytest.importorskip("peft", reason="parity is with peft")

RANK, ALPHA, STEP = 3, 5.0, 4
TOKENS = np.random.default_rng(0).integers(0, 300, (2, 20))


@pytest.fixture(scope="module")
def bases(tiny_source, model, tokenizer, tmp_path_factory):
    """A function: model type -> Hugging Face directory of a tiny model."""
    gpt2 = export_hf(model, tokenizer, tmp_path_factory.mktemp("gpt2") / "base")
    return lambda name: gpt2 if name == "gpt2" else tiny_source(name)


# With joined kernels, a head of its own, and a tied one.
@pytest.fixture(params=mostly_slow(["gpt2", "llama", "qwen2"], ["llama"]))
def base(request, bases):
    return bases(request.param)


def quietly(source, path, **options):
    return import_hf(source, path, notify=lambda line: None, **options)


def logits_here(path) -> np.ndarray:
    model, _ = load(path, compute_dtype="float32", attention="xla")
    return np.asarray(jax.jit(lambda model: model(TOKENS))(model))


def logits_of(model) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.numpy()


def make_run(path, base, *, added: int = 0, recipe: str = "text"):
    """A finished LoRA run as fine-tuning leaves it; factors and rows are random."""
    model, tokenizer = load(base)
    if added:
        tokenizer = copy_tokenizer(tokenizer)
        tokenizer.add_special_tokens([f"<|{i}|>" for i in range(added)])
        model = grow_vocabulary(model, added, key=jax.random.key(5))
    adapter = Adapter(model, added=added, rank=RANK, alpha=ALPHA, key=jax.random.key(1))
    random = np.random.default_rng(2)
    adapter = jax.tree.map(
        lambda leaf: jax.numpy.asarray(0.2 * random.standard_normal(leaf.shape, np.float32)),
        adapter,
    )
    save_model(path, adapter, step=STEP)
    save_finetuned(path / "model", adapter.merged(model), tokenizer, step=STEP)
    record = {"recipe": recipe, "lora": {"rank": RANK, "alpha": ALPHA}}
    record["started_from"] = {"path": str(base)}
    (path / "run.json").write_text(json.dumps(record))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("added", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_factors_of_a_run_in_peft_and_back(base, added, tmp_path):
    run = make_run(tmp_path / "run", base, added=added)
    out = export_adapter(run, tmp_path / "adapter")
    assert is_adapter(out)
    here = logits_here(run)
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    assert np.abs(here[..., :300] - logits_here(base)[..., :300]).max() > 0.1
    np.testing.assert_allclose(logits_of(theirs), here, rtol=0, atol=1e-4)
    merged = quietly(out, tmp_path / "merged", base=base)
    np.testing.assert_allclose(logits_here(merged), here, rtol=0, atol=2e-5)
    ours, back = load(run)[0], load(merged)[0]
    assert back.config.vocab_size == ours.config.vocab_size
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(back), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    assert load(merged)[1].get_vocab() == load(run)[1].get_vocab()
    # From a run as the base, and from what peft saves of it.
    theirs.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    if added:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(out / name, tmp_path / "saved" / name)
    base_run = quietly(base, tmp_path / "base-run")
    again = quietly(tmp_path / "saved", tmp_path / "again", base=base_run)
    np.testing.assert_allclose(logits_here(again), here, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_factors_of_a_pre_training_run(bases, tmp_path):
    """Its checkpoints have the factors beside the merged model; the newest is taken."""
    base, run = bases("llama"), tmp_path / "run"
    finished = make_run(tmp_path / "finished", base)
    model, tokenizer = load(finished)
    save_finetuned(run, model, tokenizer)
    shutil.rmtree(run / "checkpoints")
    shutil.copy(finished / "run.json", run)
    trained = Adapter(load(base)[0], added=0, rank=RANK, alpha=ALPHA, key=jax.random.key(1))
    checkpointer = Checkpointer(run, keep=3)
    for step in (2, 3):
        trained.lora.factors["mlp.up_proj"]["b"][...] += 0.1
        state = dataclasses.replace(init_state(trained, optax.sgd(0.1)), step=jax.numpy.int32(step))
        checkpointer.save(state, {}, merged=trained.merged(load(base)[0]))
    checkpointer.close()
    for step, value in ((None, 0.2), (2, 0.1)):
        out = export_adapter(run, tmp_path / "out", step=step, overwrite=True)
        tensors = load_file(out / "adapter_model.safetensors")
        b = tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
        np.testing.assert_allclose(b, np.full((80, RANK), value), rtol=1e-6)
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(
        export_adapter(run, tmp_path / "newest"), attn_implementation="eager"
    )
    np.testing.assert_allclose(logits_of(theirs), logits_here(run), rtol=0, atol=1e-4)


def test_a_joined_kernel_is_exact(bases, tmp_path):
    """The three updates of GPT-2's c_attn are those of one adapter of three times the rank."""
    run = make_run(tmp_path / "run", bases("gpt2"))
    out = export_adapter(run, tmp_path / "adapter")
    tensors = load_file(out / "adapter_model.safetensors")
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["rank_pattern"] == {"attn.c_attn": 3 * RANK}
    assert settings["alpha_pattern"] == {"attn.c_attn": 3 * ALPHA}
    assert settings["fan_in_fan_out"] is True
    a, b = (tensors[f"base_model.model.transformer.h.1.attn.c_attn.lora_{x}.weight"] for x in "AB")
    assert (a.shape, b.shape) == ((9, 32), (96, 9))
    for part in range(3):
        rows, ranks = slice(32 * part, 32 * part + 32), slice(3 * part, 3 * part + 3)
        block = b[rows].copy()
        assert np.all(block[:, ranks] != 0)
        block[:, ranks] = 0
        assert not block.any()


@pytest.mark.parametrize("name", mostly_slow(["gpt2", "llama"], ["llama"]))
def test_an_adapter_that_peft_trained(name, bases, tmp_path):
    """Some kernels, ranks and alphas of their own, one factor A for query, key and value."""
    import transformers

    base = bases(name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    if name == "gpt2":
        targets, pattern = ["c_attn", "mlp.c_proj"], {"c_attn": 5, r"h\.0\.mlp\.c_proj": 2}
    else:
        targets, pattern = ["q_proj", "o_proj", "down_proj"], {r"layers\.1\.self_attn\.q_proj": 5}
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=7,
        target_modules=targets,
        rank_pattern=pattern,
        alpha_pattern={"o_proj": 11, "c_proj": 3},
        init_lora_weights=False,
        fan_in_fan_out=name == "gpt2",
        modules_to_save=["lm_head", "embed_tokens"] if name == "llama" else None,
    )
    theirs = peft.get_peft_model(theirs, config)
    random = np.random.default_rng(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                values = 0.1 * random.standard_normal(parameter.shape, np.float32)
                parameter.copy_(torch.from_numpy(values))
    theirs.save_pretrained(tmp_path / "adapter")
    lines: list[str] = []
    run = import_hf(tmp_path / "adapter", tmp_path / "run", notify=lines.append)  # names its base
    np.testing.assert_allclose(logits_here(run), logits_of(theirs), rtol=0, atol=1e-4)
    assert any(
        line.startswith("merged ") and "LoRA updates of the PEFT adapter" in line for line in lines
    )
    facts = json.loads((run / "config.json").read_text())["facts"]["source"]
    assert facts["adapter"] == str(tmp_path / "adapter")


def edit(directory, **changes):
    file = directory / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    (directory / "SHA256SUMS").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def exported(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return export_adapter(make_run(folder / "run", bases("llama"), added=1), folder / "adapter")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "has peft_type='IA3'; expected plain LoRA: merge it with peft"),
        ({"use_dora": True}, "has use_dora, a variant of LoRA"),
        ({"use_rslora": True}, "has use_rslora, a variant of LoRA"),
        ({"task_type": "SEQ_CLS"}, "has task_type='SEQ_CLS', a model with a head"),
        ({"bias": "lora_only"}, "has trained biases"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the base"),
        ({"layer_replication": [[0, 2]]}, "has layer_replication=[[0, 2]]; expected plain LoRA"),
        ({"r": 4}, "has factors {'A': (3, 48), 'B': (48, 3)} of model.layers.0.self_attn.q_proj"),
        ({"lora_alpha": "8"}, "has lora_alpha='8' for model.layers.0.self_attn.q_proj"),
        ({"rank_pattern": {"(": 3}}, "has rank_pattern '(': which is no regular expression"),
        ({"trainable_token_indices": None}, "has trainable_token_indices=None"),
        ({"trainable_token_indices": {"embed_tokens": [400], "lm_head": [7]}}, "has no row 400 of"),
        ({"trainable_token_indices": {"embed_tokens": [1, 2], "lm_head": [7]}}, "for 2 ids"),
        (
            {"base_model_name_or_path": "owner/name"},
            "a PEFT adapter of 'owner/name', which is no dir",
        ),
    ],
)
def test_what_is_not_plain_lora_is_refused(changes, message, exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    edit(copy, **changes)
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        quietly(copy, tmp_path / "run")
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", (3,), "of another kind"),
        ("model.layers.9.self_attn.q_proj.lora_A.weight", (3, 48), "the base model has no such"),
        ("model.layers.0.mlp.up_proj.lora_A.weight", (3, 47), "{'A': (3, 47), 'B': (80, 3)}"),
        ("model.norm.weight", (47,), "has norm.weight of shape [47], and the base [48]"),
        ("model.norm.weight", (48,), "not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(key, shape, message, exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    file = copy / "adapter_model.safetensors"
    value = np.nan if message == "not finite" else 1
    save_file({**load_file(file), f"base_model.model.{key}": np.full(shape, value, "f4")}, file)
    with pytest.raises(InputError, match="was changed after it was written"):
        quietly(copy, tmp_path / "run")
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match=r"^[^\n]*$") as caught:
        quietly(copy, tmp_path / "run")
    assert message in str(caught.value)


def test_runs_without_factors_are_refused(bases, make_finetuned, exported, tmp_path, command):
    run, out = tmp_path / "run", tmp_path / "out"
    save_finetuned(run / "model", *make_finetuned("choice"), step=STEP)
    record = {"recipe": "questions", "lora": {"rank": 2, "alpha": 4.0}}
    (run / "run.json").write_text(json.dumps(record))
    flags = ("export-hf", f"--out={out}", "--adapter")
    plain = quietly(bases("llama"), tmp_path / "plain")
    lora = make_run(tmp_path / "lora", bases("llama"))
    for arguments, message in (
        ((*flags, f"--model={run}"), "has a choice head, which an adapter here has not; leave out"),
        ((*flags, f"--model={plain}"), "is no run that was trained with LoRA; leave out --adapter"),
        ((*flags, f"--model={lora}", "--step=9"), "no checkpoint of step 9, but of [4]; choose"),
        ((*flags, f"--model={lora}", "--dtype=float16"), "got --dtype with --adapter"),
        (("export-hf", f"--out={out}", f"--model={lora}", "--base=x"), "--base without --adapter"),
        (
            ("export-hf", f"--out={out}", f"--model={exported}"),
            "is a PEFT adapter, without the model",
        ),
        (("import-hf", f"--out={out}", f"--source={plain}", "--base=x"), "which is for an adapter"),
        (
            ("import-hf", f"--out={out}", f"--source={exported}", "--resize_embeddings"),
            "got --resize_embeddings, which is for a model only",
        ),
    ):
        done = command(*arguments)
        assert (done.code, done.error.count("\n")) == (2, 1)
        assert message in done.error
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "base"),
    [("org/llama", "hf://org/llama"), ("{here}", "{here}"), ("/nowhere", "DIR"), (None, "DIR")],
)
def test_every_command_refuses_an_adapter_with_the_command_that_merges_it(
    name, base, exported, bases, tmp_path, command
):
    here, adapter = str(bases("llama")), shutil.copytree(exported, tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = name and name.format(here=here)
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    chats, out = tmp_path / "chats.jsonl", tmp_path / "out"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    others = [{"role": "user", "content": "c"}, turns[1]]
    for file, one in ((chats, turns), (tmp_path / "dev.jsonl", others)):
        file.write_text(json.dumps({"messages": one}) + "\n")
    tune = ("finetune", "--config=configs/finetune.py:instruct", f"--config.data.train={chats}")
    tune += ("--config.data.format=messages", f"--workdir={out}")
    tune += (f"--config.data.dev={tmp_path / 'dev.jsonl'}",)
    started = ("pretrain", "--config=configs/pretrain.py:continued", f"--workdir={out}")
    questions = [
        {"id": f"{split}{n}", "question": f"{split} {n}?", "options": ["a", "b"]}
        for split in ("dev", "test")
        for n in range(2)
    ]
    for split in ("dev", "test"):
        lines = [json.dumps(q | {"label": 0}) for q in questions if split in q["id"]]
        (tmp_path / f"questions/{split}.jsonl").parent.mkdir(exist_ok=True)
        (tmp_path / f"questions/{split}.jsonl").write_text("\n".join(lines) + "\n")
    score = ("evaluate", f"--task=jsonl:{tmp_path / 'questions'}", f"--out={out}")
    for words in (
        (*tune, f"--model={adapter}"),
        (*tune, f"--model={adapter}", "--show_mask"),
        (*started, "--config.data.path=nowhere", f"--init={adapter}"),
        ("generate", f"--model={adapter}", "--prompt=hi"),
        (*score, f"--model={here}", f"--versus={adapter}"),
        (*score, f"--model={adapter}"),
        ("verify-hf", f"--model={adapter}"),
    ):
        done = command(*words)
        assert done.code == 2
        fix = f"biomedlm import-hf --source={adapter} --base={base.format(here=here)} --out=RUN"
        assert f"{adapter} is a PEFT adapter, without the model that it changes" in done.error
        assert f"merge it first: {fix}, then use RUN" in done.error.splitlines()[-1]
    assert not out.exists()


def test_commands_there_and_back(bases, tmp_path, command):
    base, run, out = bases("llama"), tmp_path / "run", tmp_path / "out"
    make_run(run, base)
    other = quietly(base, tmp_path / "other")
    with pytest.warns(RuntimeWarning, match="a run directory, which peft cannot read"):
        assert (
            command(
                "export-hf", f"--model={run}", f"--out={out}", "--adapter", f"--base={other}"
            ).code
            == 0
        )
    arguments = ("--adapter", f"--base={base}", "--overwrite", f"--step={STEP}")
    assert command("export-hf", f"--model={run}", f"--out={out}", *arguments).code == 0
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        base
    )
    card = (out / "README.md").read_text()
    assert "LoRA factors of rank 3 for the llama model" in card
    done = command("import-hf", f"--source={out}", f"--base={other}", f"--out={tmp_path / 'back'}")
    assert (done.code, done.error) == (0, "")
    assert f"LoRA updates of the PEFT adapter {out} into {other}" in done.out
    np.testing.assert_allclose(logits_here(tmp_path / "back"), logits_here(run), rtol=0, atol=2e-5)
