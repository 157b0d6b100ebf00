import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from cases import mostly_slow
from peers import random_model
from safetensors.torch import load_file, save_file

from biomedlm_jax import cli
from biomedlm_jax.corpus.chat_template import ChatTemplate
from biomedlm_jax.corpus.tokenizer import load_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop import directories
from biomedlm_jax.interop import verify as verify_module
from biomedlm_jax.interop.finetuned import save_finetuned
from biomedlm_jax.interop.huggingface import export_hf, import_hf, load
from biomedlm_jax.interop.verify import verify_hf
from biomedlm_jax.model.llama import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

REASON = "parity is with torch and transformers; pip install -e '.[dev]'"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)


@pytest.mark.slow
@pytest.mark.parametrize("flag", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("layers", "heads", "width", "mlp_width"),
    [
        pytest.param(1, 1, 16, None, marks=pytest.mark.slow),
        (4, 3, 48, 40),
        pytest.param(8, 8, 64, None, marks=pytest.mark.slow),
    ],
)
def test_parity_with_transformers(tmp_path, flag, layers, heads, width, mlp_width, make_model):
    shape = {"layers": layers, "heads": heads, "width": width, "mlp_width": mlp_width}
    model = make_model(**shape, scale_attn_by_inverse_layer_idx=flag)
    export_hf(model, None, tmp_path / "out")
    report = verify_hf(tmp_path / "out", length=24)
    assert report["eager"]["max"] <= 1e-4
    assert report["default"]["max"] <= 1e-4
    assert report["foldable_settings"] == (
        {"scale_attn_by_inverse_layer_idx": True} if flag else {}
    )
    assert len(report["eager"]["mean_per_position"]) == 24
    assert report["largest_output"] > 1


def test_flag_changes_the_function(make_model):
    tokens = np.random.default_rng(0).integers(0, 300, (2, 24))
    forward = jax.jit(lambda model: model(tokens))
    on, off = (forward(make_model(scale_attn_by_inverse_layer_idx=f)) for f in (True, False))
    assert np.abs(on - off).max() > 0.1


@pytest.mark.parametrize("flag", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_directory_that_transformers_wrote(tmp_path, flag):
    config = transformers.GPT2Config(
        vocab_size=131,
        n_positions=20,
        n_layer=3,
        n_embd=24,
        n_head=2,
        n_inner=56,
        bos_token_id=130,
        eos_token_id=130,
        initializer_range=0.2,
        scale_attn_by_inverse_layer_idx=flag,
    )
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "theirs")
    assert verify_hf(tmp_path / "theirs", length=20)["eager"]["max"] <= 1e-4
    run = import_hf(tmp_path / "theirs", tmp_path / "run", notify=lambda line: None)
    export_hf(load(run)[0], None, tmp_path / "ours")
    back = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    before, after = theirs.state_dict(), back.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_transformers_reads_the_tokenizer_and_generates(release, tokenizer):
    theirs = transformers.AutoTokenizer.from_pretrained(release)
    text = "hepatology, neurogram"
    assert theirs(text).input_ids == tokenizer.encode(text).ids
    assert (theirs.eos_token_id, theirs.bos_token_id) == (299, 299)
    model = transformers.AutoModelForCausalLM.from_pretrained(release)
    generated = model.generate(
        **theirs("neuro", return_tensors="pt"), max_new_tokens=3, do_sample=False
    )
    assert generated.shape[1] <= len(tokenizer.encode("neuro").ids) + 3


@pytest.mark.slow
def test_run_and_folded_export_agree(model, tokenizer, release, tmp_path):
    run = import_hf(release, tmp_path / "run", notify=lambda line: None)
    export_hf(model, tokenizer, tmp_path / "folded", fold_attention_scale=True)
    report = verify_hf(tmp_path / "folded", run=run)
    assert report["foldable_settings"] == {}
    assert report["rows"] == {"short": 3, "left-padded": 3}  # two random ones, one of text
    assert 0 < report["run"]["max"] <= 1e-4
    assert verify_hf(release, run=run)["run"]["max"] == 0


def test_another_function_is_an_error(release, tmp_path, rewrite):
    run = import_hf(release, tmp_path / "run", notify=lambda line: None)
    rewrite(release, lambda t: t["transformer.h.0.ln_1.bias"].__iadd__(0.01))
    with pytest.raises(ValueError, match=f"from those of {run}; expected at most 0.0001"):
        verify_hf(release, run=run)
    with pytest.raises(ValueError, match="that transformers computes; expected at most 0"):
        verify_hf(release, tolerance=0)
    with pytest.raises(ValueError, match="export it first"):
        verify_hf(run)


@pytest.fixture
def old_transformers(monkeypatch):
    """Make the default attention ignore the scale, as transformers 4.42 to 4.57 does."""
    from transformers.models.gpt2 import modeling_gpt2

    real = modeling_gpt2.GPT2Attention.__init__

    def init(self, config, *args, **options):
        real(self, config, *args, **options)
        if config._attn_implementation == "sdpa":
            self.scaling = self.head_dim**-0.5

    monkeypatch.setattr(modeling_gpt2.GPT2Attention, "__init__", init)


def test_transformers_that_ignores_the_scale_is_reported(release, old_transformers):
    with pytest.warns(RuntimeWarning, match="IGNORES scale_attn_by_inverse_layer_idx by default"):
        report = verify_hf(release)
    assert report["eager"]["max"] <= 1e-4
    assert report["default"]["max"] > 0.1
    assert report["default"]["ignores"] == ["scale_attn_by_inverse_layer_idx"]


def test_command(release, tmp_path, capsys, old_transformers):
    figures = tmp_path / "figures.json"
    arguments = ["verify-hf", f"--model={release}", "--length=8", f"--json={figures}"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert "max |difference|" in printed.out
    assert f"WARNING: transformers {transformers.__version__} IGNORES" in printed.err
    assert json.loads(figures.read_text())["length"] == 8
    assert cli.main(arguments) == 2
    assert "figures.json; expected a file that does not exist yet" in capsys.readouterr().err
    arguments.pop()
    assert cli.main([*arguments, "--tolerance=1e-12"]) == 2
    assert "expected at most 1e-12" in capsys.readouterr().err
    assert cli.main([*arguments, "--tensor=8"]) == 2
    assert "mesh.tensor=8, which does not divide the model's heads of 4" in capsys.readouterr().err


WINDOW = {"layers": 2, "width": 32, "heads": 4, "key_value_heads": 2, "mlp_width": 40}
WINDOW |= {"sliding_window": 7}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("choice", None),
        pytest.param("classification", None, marks=pytest.mark.slow),
        pytest.param("choice", MistralConfig(**WINDOW), marks=pytest.mark.slow),
        pytest.param("classification", MistralConfig(**WINDOW), marks=pytest.mark.slow),
    ],
)
def test_scores_of_a_head_are_those_of_transformers(
    kind, config, make_finetuned, tmp_path, rewrite
):
    model, tokenizer, head = make_finetuned(kind, config=config)
    save_finetuned(tmp_path / "run" / "model", model, tokenizer, head)
    (tmp_path / "run" / "run.json").write_text("{}")
    path = export_hf(model, tokenizer, tmp_path / "out", head=head)
    report = verify_hf(path, run=tmp_path / "run")
    assert report["eager"]["max"] <= 1e-4
    assert report["run"]["max"] == 0
    window = {} if config is None else {"longer than the window": 1}
    assert report["rows"] == {"short": 3, **window, "left-padded": 3}
    assert report["largest_output"] > 0.5
    assert "mean_per_position" not in report["eager"]
    rewrite(path, lambda t: t["score.weight"].__iadd__(0.01))
    with pytest.raises(ValueError, match=r"expected at most 0\.0001; .* the output head differs"):
        verify_hf(path, run=tmp_path / "run")


@pytest.mark.slow
def test_transformers_classifies_a_padded_batch_alike(make_finetuned, tmp_path):
    model, tokenizer, head = make_finetuned("classification")
    path = export_hf(model, tokenizer, tmp_path / "out", head=head)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        path, attn_implementation="eager"
    )
    assert type(theirs) is transformers.GPT2ForSequenceClassification
    assert theirs.config.id2label == dict(enumerate(head.classes))
    words = transformers.AutoTokenizer.from_pretrained(path)
    assert (words.pad_token, words.pad_token_id, words.padding_side) == ("[PAD]", 300, "right")
    assert theirs.config.pad_token_id == 300
    texts = ["hepatology <|ANSWER|>", "a longer text about neuropathy <|ANSWER|>"]
    rows = [tokenizer.encode(text).ids for text in texts]
    assert [words.encode(text) for text in texts] == rows
    batch = words.pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        logits = theirs(**batch).logits.numpy()
    for row, scores in zip(rows, logits, strict=True):
        ours = model(model.trunk.hidden(np.array([row], np.int32))[:, -1])
        np.testing.assert_allclose(scores, ours[0], rtol=0, atol=5e-5)


SIZES = {"n_positions": 20, "n_layer": 3, "n_embd": 24, "n_head": 2, "initializer_range": 0.2}


def save_theirs(directory, cls=transformers.GPT2LMHeadModel, **fields):
    """A tiny random model as transformers saves it."""
    ids = {"bos_token_id": 130, "eos_token_id": 130}
    config = transformers.GPT2Config(**{"vocab_size": 131, **SIZES, **ids, **fields})
    torch.manual_seed(0)
    theirs = cls(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(directory)


def change_tensors(directory, change) -> dict:
    """Apply `change(tensors)` to model.safetensors and return the tensors."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, {"format": "pt"})
    return tensors


def change_config(directory, change) -> None:
    file = directory / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def to_bin(directory, *, parameters=False, **options) -> None:
    tensors = change_tensors(directory, lambda tensors: None)
    (directory / "model.safetensors").unlink()
    if parameters:
        tensors = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    torch.save(tensors, directory / "pytorch_model.bin", **options)


def shard(directory, *, name="model.safetensors", change=lambda tensors: None) -> None:
    """Two shards and an index that still lists the tied head and a mask."""
    tensors, kind = change_tensors(directory, change), name.rpartition(".")[2]
    (directory / "model.safetensors").unlink()
    weight_map = {name: f"s{i % 2}.{kind}" for i, name in enumerate(sorted(tensors))}
    for file in (f"s0.{kind}", f"s1.{kind}"):
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        if kind == "bin":
            torch.save(part, directory / file)
        else:
            save_file(part, directory / file, {"format": "pt"})
    weight_map["lm_head.weight"] = f"s0.{kind}"
    weight_map.setdefault("transformer.h.0.attn.bias", f"s1.{kind}")
    (directory / f"{name}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def without_metadata(directory) -> None:
    """float16 as the safetensors package writes it of numpy arrays, with masks of bytes."""
    tensors = change_tensors(directory, functools.partial(add_masks, dtype=torch.uint8))
    halves = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    save_file({k: v.contiguous() for k, v in halves.items()}, directory / "model.safetensors")


def rename_sizes(config) -> None:
    for name, alias in (
        ("n_embd", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("n_positions", "max_position_embeddings"),
    ):
        config[alias] = config.pop(name)


def only_the_head(tensors) -> None:
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")


def add_masks(tensors, *, dtype=torch.float32) -> None:
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 20, 20).to(dtype)
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)


def add_value_head(tensors) -> None:
    tensors["v_head.summary.weight"] = torch.randn(1, 24)
    tensors["v_head.summary.bias"] = torch.randn(1)


CHECKPOINTS = {
    "as saved": save_theirs,
    "scale by layer, narrow MLP": lambda d: save_theirs(
        d, scale_attn_by_inverse_layer_idx=True, n_inner=40
    ),
    "embedding stored as lm_head only": lambda d: (
        save_theirs(d),
        change_tensors(d, only_the_head),
    ),
    "torch file": lambda d: (save_theirs(d), to_bin(d)),
    "torch file of the old format": lambda d: (
        save_theirs(d),
        to_bin(d, _use_new_zipfile_serialization=False),
    ),
    "torch file of parameters": lambda d: (save_theirs(d), to_bin(d, parameters=True)),
    "index that lists more": lambda d: (save_theirs(d), shard(d)),
    "torch shards, boolean masks": lambda d: (
        save_theirs(d),
        shard(d, name="pytorch_model.bin", change=functools.partial(add_masks, dtype=torch.bool)),
    ),
    "float16, masks of bytes, no metadata": lambda d: (save_theirs(d), without_metadata(d)),
    "value head": lambda d: (save_theirs(d), change_tensors(d, add_value_head)),
    "double heads": lambda d: save_theirs(d, transformers.GPT2DoubleHeadsModel),
    "token classification": lambda d: save_theirs(d, transformers.GPT2ForTokenClassification),
    "without a prefix": lambda d: save_theirs(d, transformers.GPT2Model),
    "masks": lambda d: (save_theirs(d), change_tensors(d, add_masks)),
    "gelu_pytorch_tanh": lambda d: save_theirs(d, activation_function="gelu_pytorch_tanh"),
    "gelu_fast": lambda d: save_theirs(d, activation_function="gelu_fast"),
    "other names of sizes": lambda d: (save_theirs(d), change_config(d, rename_sizes)),
    "float16": lambda d: (
        save_theirs(d),
        change_tensors(d, lambda t: t.update({k: v.half() for k, v in t.items()})),
    ),
    "several ends, padding, other entries": lambda d: (
        save_theirs(d, eos_token_id=[7, 9], bos_token_id=5, pad_token_id=200),
        change_config(d, lambda c: c.update(task_specific_params={"a": [1]}, my_note="kept")),
    ),
    "ids that are null": lambda d: (
        save_theirs(d),
        change_config(d, lambda c: c.update(eos_token_id=None, bos_token_id=None)),
    ),
    "no ids": lambda d: (
        save_theirs(d),
        change_config(d, lambda c: (c.pop("eos_token_id"), c.pop("bos_token_id"))),
    ),
}
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


COMMON = ("scale by layer, narrow MLP", "no ids")
COMMON += ("float16, masks of bytes, no metadata", "several ends, padding, other entries")


@pytest.mark.parametrize("name", mostly_slow(CHECKPOINTS, COMMON))
@pytest.mark.filterwarnings("ignore:.*of another head")
def test_checkpoints_compute_what_transformers_computes(name, tmp_path):
    source = tmp_path / "source"
    CHECKPOINTS[name](source)
    report = verify_hf(source, length=20)
    assert report["eager"]["max"] <= 1e-4
    assert report["largest_output"] > 0.5
    run = import_hf(source, tmp_path / "run", notify=lambda line: None)
    code = cli.main(["export-hf", f"--model={run}", f"--out={tmp_path / 'out'}"])
    assert code == 0
    ours, again = (load(path)[0] for path in (source, tmp_path / "out"))
    assert ours.config == again.config
    assert all(map(np.array_equal, *map(jax.tree.leaves, (ours, again))))
    before, after = (
        json.loads((d / "config.json").read_text()) for d in (source, tmp_path / "out")
    )
    ours = {"architectures", "dtype", "torch_dtype", "activation_function"}
    ours |= {"hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"}
    kept = {key: value for key, value in before.items() if key not in ours}
    assert {key: after[key] for key in kept} == kept
    first = source / "generation_config.json"
    if first.exists() and name != "no ids":
        last = tmp_path / "out" / "generation_config.json"
        assert json.loads(last.read_text()) == json.loads(first.read_text())
    theirs = [transformers.AutoConfig.from_pretrained(d) for d in (source, tmp_path / "out")]
    if name != "no ids":
        for key in IDS:
            assert getattr(theirs[0], key) == getattr(theirs[1], key), key


def test_what_is_left_out_is_named(tmp_path):
    CHECKPOINTS["value head"](tmp_path / "source")
    with pytest.warns(RuntimeWarning, match="left out v_head.summary.bias, v_head.summary.weight"):
        load(tmp_path / "source")
    lines = []
    import_hf(tmp_path / "source", tmp_path / "run", notify=lines.append)
    assert "left out v_head.summary.bias, v_head.summary.weight of another head" in lines


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tie_word_embeddings": False},
            "an output head of its own; GPT-2's is the embedding here",
        ),
        ({"layer_norm_epsilon": float("inf")}, "config.json has NaN or Infinity, which JSON lacks"),
        ({"quantization_config": {"bits": 4}}, "config.json has quantization_config={'bits': 4}"),
        ({"hidden_size": 32}, "hidden_size=32 and n_embd=24, names of one setting"),
        (
            {"eos_token_id": 50256},
            "has eos_token_id=50256 and vocab_size=131; import it with biomedlm import-hf --eos",
        ),
        ({"eos_token_id": [7, 131]}, "has eos_token_id=[7, 131] and vocab_size=131"),
        (
            {"bos_token_id": -1},
            "has bos_token_id=-1 and vocab_size=131; import it with biomedlm import-hf --bos",
        ),
    ],
)
def test_other_functions_and_ids_are_refused(tmp_path, changes, message):
    save_theirs(tmp_path / "source")
    change_config(tmp_path / "source", lambda config: config.update(changes))
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        load(tmp_path / "source")
    assert message in str(caught.value)


def test_an_end_out_of_range_can_be_given(tmp_path, command, capsys):
    save_theirs(tmp_path / "source", eos_token_id=50256, bos_token_id=50256)
    capsys.readouterr()  # transformers' progress
    arguments = ("import-hf", f"--source={tmp_path / 'source'}", f"--out={tmp_path / 'run'}")
    refused = command(*arguments)
    assert (refused.code, refused.error.count("\n")) == (2, 1)
    assert str(tmp_path / "source" / "config.json") in refused.error
    assert command(*arguments, "--eos_token_id=7", "--bos_token_id=5").code == 0
    config = load(tmp_path / "run")[0].config
    assert (config.eos_token_id, config.bos_token_id) == (7, 5)
    model, _ = load(tmp_path / "source", eos_token_id=7)
    assert (model.config.eos_token_id, model.config.bos_token_id) == (7, 7)
    assert verify_hf(tmp_path / "source", length=20, eos_token_id=7)["eager"]["max"] <= 1e-4


@pytest.fixture
def started(release, tokenizer):
    """A release whose texts begin with <|startoftext|> and end with </s>, and a padding token."""
    for file in release.glob("*token*"):
        file.unlink()
    vocabulary = tokenizer.get_vocab()
    names = {299: "<|startoftext|>", 298: "</s>"}
    by_id = {i: names.get(i, token) for token, i in vocabulary.items()}
    (release / "vocab.json").write_text(json.dumps({by_id[i]: i for i in sorted(by_id)}))
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    kept = [" ".join(pair) for pair in merges if vocabulary["".join(pair)] < 298]
    (release / "merges.txt").write_text("\n".join(["#version: 0.2", *kept]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "</s>", "pad_token": "[PAD]"}
    (release / "special_tokens_map.json").write_text(json.dumps({**special, "unk_token": "</s>"}))
    (release / "added_tokens.json").write_text(json.dumps({"[PAD]": 300}))
    ids = {"bos_token_id": 299, "eos_token_id": 298, "pad_token_id": 300}
    (release / "generation_config.json").write_text(json.dumps({**ids, "num_beam_groups": 1}))
    change_config(release, lambda config: config.update(ids))
    return release


@pytest.mark.slow
def test_begin_end_and_padding_are_three_things(started, tmp_path):
    from biomedlm_jax.generation.surprisal import score_text

    assert verify_hf(started)["texts_with_equal_ids"] > 12
    run = import_hf(started, tmp_path / "run", notify=lambda line: None)
    for path in (started, run):
        model, tokenizer = load(path)
        assert (model.config.bos_token_id, model.config.eos_token_id) == (299, 298)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            started, attn_implementation="eager"
        ).eval()
        scored = score_text(model, tokenizer, "neuropathy")
        ids = torch.tensor([[299, *scored.tokens]])
        with torch.no_grad():
            expected = theirs(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])
        np.testing.assert_allclose(scored.log_probabilities, expected[:, 0], atol=1e-4)
    out = tmp_path / "out"
    assert cli.main(["export-hf", f"--model={run}", f"--out={out}"]) == 0
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"):
        assert (out / name).read_bytes() == (started / name).read_bytes()
    assert json.loads((out / "generation_config.json").read_text()) == json.loads(
        (started / "generation_config.json").read_text()
    )
    assert verify_hf(out, run=run)["run"]["max"] == 0
    with pytest.raises(ValueError, match="got token id 300; expected 0 to 299"):
        score_text(*load(out), "neuro[PAD]")
    text = "[PAD]neuropathy"
    assert load_tokenizer(out).encode(text).ids == load_tokenizer(started).encode(text).ids


def test_other_ids_than_transformers_are_an_error(release, monkeypatch):
    from biomedlm_jax.interop import verify

    changed = load_tokenizer(release)
    changed.add_tokens(["IL-10"])
    monkeypatch.setattr(verify, "read_tokenizer", lambda path, config: changed)
    with pytest.raises(ValueError, match=r"IL-10.* is \[.*\] here and \[.*\] in transformers"):
        verify_hf(release)


def test_chats_are_compared(release, monkeypatch):
    def compared() -> int:
        return verify_module.compare_ids(load_tokenizer(release), release)

    texts, file = compared(), release / "chat_template.jinja"
    text = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    file.write_text(text)
    assert compared() == texts + 8
    refused = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    file.write_text(refused + text)
    assert compared() == texts + 6
    render = ChatTemplate.render
    monkeypatch.setattr(ChatTemplate, "render", lambda self, *given: render(self, *given) + "\n")
    with pytest.raises(InputError, match=r"the chat 'user:  Why\? .* here and \[.* in transf"):
        compared()


def test_a_token_that_only_transformers_has_is_an_error(release, monkeypatch):
    from biomedlm_jax.interop import verify

    own = load_tokenizer(release)
    file = release / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "extra_special_tokens": ["<|x|>"]}))
    monkeypatch.setattr(verify, "read_tokenizer", lambda path, config: own)
    with pytest.raises(ValueError, match=r"<\|x\|>.* is \[.*\] here and \[.*\] in transformers"):
        verify_hf(release)


TINY = {"vocab_size": 131, "context_length": 64, "layers": 3, "width": 32, "heads": 4}
TINY |= {"mlp_width": 40, "key_value_heads": 2}
ROPE = {
    "rope_type": "llama3",
    "rope_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_original_context_length": 8,
}
# Two models have all switches.
SWITCHES = {
    "qwen3": Qwen3Config(
        **TINY,
        **ROPE,
        head_dim=8,
        attention_bias=True,
        sliding_window=9,
        tie_word_embeddings=True,
        rms_norm_epsilon=1e-5,
    ),
    "mistral": MistralConfig(**TINY, sliding_window=7, rope_theta=5e5, pad_token_id=0),
}
FEW = {"batch": 1, "length": 16}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Of each model, an exported directory and the run that it was imported to."""
    place = tmp_path_factory.mktemp("switches")
    pairs = {}
    for name, config in SWITCHES.items():
        release = export_hf(random_model(config), None, place / name)
        pairs[name] = release, import_hf(release, place / f"{name} run", notify=lambda line: None)
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_slow(SWITCHES, ["qwen3"]))
def test_every_kind_of_rows_and_every_layer_is_compared(name, exports):
    (release, run), window = exports[name], SWITCHES[name].sliding_window
    report = verify_hf(release, run=run, **FEW)
    assert report["rows"] == {"short": 1, "longer than the window": 1, "left-padded": 1}
    assert report["lengths"]["longer than the window"] == window + 16
    assert report["run"]["max"] == 0
    after = ["embedding", "layer 0", "layer 1", "layer 2 and the final norm"]
    for whose in ("eager", "run"):
        assert report[whose]["max_per_kind"].keys() == report["rows"].keys()
        assert [layer["after"] for layer in report[whose]["layers"]] == after
        assert report[whose]["layers"][0]["max"] == 0
        assert max(layer["relative"] for layer in report[whose]["layers"]) < 1e-5
    assert 0 < report["eager"]["layers"][1]["max"] < 1e-4
    assert report["default"]["max"] <= 1e-4


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(LlamaConfig(**TINY, mlp_bias=True), marks=pytest.mark.slow),
        Qwen2Config(**TINY, tie_word_embeddings=True),
    ],
    ids=["llama", "qwen2"],
)
def test_other_model_types_are_verified(config, tmp_path):
    release = export_hf(random_model(config), None, tmp_path / "release")
    report = verify_hf(release, **FEW)
    assert report["rows"] == {"short": 1, "left-padded": 1}
    assert report["eager"]["max"] <= 1e-4
    assert report["largest_output"] > 1


def test_the_command_prints_and_writes_every_layer(exports, tmp_path, command):
    release, run = exports["mistral"]
    figures = tmp_path / "figures.json"
    done = command("verify-hf", f"--model={release}", f"--run={run}", "--data=4", "--fsdp=2")
    assert done.code == 0, done.error
    assert "  longer than the window rows  max |difference| " in done.out
    assert "  hidden states after layer 2 and the final norm differ by " in done.out
    done = command("verify-hf", f"--model={release}", "--length=9", f"--json={figures}")
    assert len(json.loads(figures.read_text())["eager"]["layers"]) == 4


@pytest.mark.slow
def test_the_command_writes_every_layer_of_what_differs(exports, tmp_path, command):
    release, run = exports["qwen3"]
    changed, figures = shutil.copytree(release, tmp_path / "changed"), tmp_path / "figures.json"
    (changed / "SHA256SUMS").unlink(missing_ok=True)
    change_tensors(changed, swap_key_value_heads)
    arguments = ("--batch=1", "--length=16", f"--run={run}", f"--json={figures}")
    done = command("verify-hf", f"--model={changed}", *arguments)
    assert done.code == 2
    assert "are those after layer 1" in done.error.splitlines()[-1]
    differences = [layer["relative"] for layer in json.loads(figures.read_text())["run"]["layers"]]
    assert differences[:2] == [0, 0]
    assert min(differences[2:]) > 0.01
    assert f"  hidden states after layer 1 differ by {differences[2]:.1e} of their size" in done.out


def in_config(**changes):
    return lambda folder: change_config(folder, lambda config: config.update(changes))


def in_tensors(change):
    return lambda folder: change_tensors(folder, change)


def swap_key_value_heads(tensors):
    for part in ("k_proj", "v_proj"):
        for kind in ("weight", "bias"):
            name = f"model.layers.1.self_attn.{part}.{kind}"
            tensors[name] = tensors[name].roll(len(tensors[name]) // 2, 0)


def without_biases(folder):
    in_config(attention_bias=False)(folder)
    in_tensors(lambda t: [t.pop(n) for n in [*t] if n.endswith(".bias")])(folder)


def with_another_head(folder):
    in_config(tie_word_embeddings=False)(folder)
    rows = "model.embed_tokens.weight"
    in_tensors(lambda t: t.update({"lm_head.weight": t[rows].flip(0)}))(folder)


def without_head_norms(folder):
    in_config(model_type="llama", mlp_bias=False)(folder)
    in_tensors(lambda t: [t.pop(n) for n in [*t] if n[-13:] in ("q_norm.weight", "k_norm.weight")])(
        folder
    )


THETA = {"rope_theta": 2e4, "rope_parameters": {"rope_type": "default", "rope_theta": 2e4}}
FULL = {"use_sliding_window": False, "sliding_window": None, "layer_types": ["full_attention"] * 3}
# What is wrong in an exported directory -> the model, the change, and what is reported.
MUTANTS = {
    "eps": ("qwen3", in_config(rms_norm_eps=1e-6), "rms_norm_epsilon=1e-06 here and 1e-05 in it"),
    "theta": ("mistral", in_config(**THETA), "after layer 0; .* rope_theta=20000.0 here and 50000"),
    "scaling": (
        "qwen3",
        in_config(rope_scaling=None, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
        "after layer 0; settings that differ: rope_type='default' here and 'llama3' in it",
    ),
    "a window longer by one": (
        "qwen3",
        in_config(sliding_window=10),
        "after layer 0; settings that differ: sliding_window=10 here and 9 in it",
    ),
    "no window": ("qwen3", in_config(**FULL), "sliding_window=None here and 9 in it"),
    "no window of Mistral": (
        "mistral",
        in_config(sliding_window=None),
        "sliding_window=None here and 7 in it",
    ),
    "order of key/value heads": ("qwen3", in_tensors(swap_key_value_heads), "after layer 1$"),
    "a bias that is zero": (
        "qwen3",
        in_tensors(lambda t: t["model.layers.1.self_attn.v_proj.bias"].zero_()),
        "after layer 1$",
    ),
    "no biases": ("qwen3", without_biases, "after layer 0; .* attention_bias=False here and True"),
    "a norm of keys that is lost": (
        "qwen3",
        in_tensors(lambda t: t["model.layers.2.self_attn.k_norm.weight"].fill_(1)),
        "after layer 2 and the final norm$",
    ),
    "no norms of queries and keys": (
        "qwen3",
        without_head_norms,
        "after layer 0; .* model_type='llama' here and 'qwen3' in it",
    ),
    "a head of its own": (
        "qwen3",
        with_another_head,
        "the output head differs; .* tie_word_embeddings=False here and True in it",
    ),
    "a tied head": (
        "mistral",
        lambda d: (
            in_config(tie_word_embeddings=True)(d),
            in_tensors(lambda t: t.pop("lm_head.weight"))(d),
        ),
        "the output head differs; .* tie_word_embeddings=True here and False in it",
    ),
}


WRONG = ("scaling", "order of key/value heads")


@pytest.mark.parametrize("name", mostly_slow(MUTANTS, WRONG))
def test_a_wrong_switch_in_a_directory_is_reported(name, exports, tmp_path):
    of_model, change, reported = MUTANTS[name]
    release, run = exports[of_model]
    changed = shutil.copytree(release, tmp_path / "changed")
    (changed / "SHA256SUMS").unlink(missing_ok=True)
    change(changed)
    with pytest.raises(ValueError, match=f"from those of {run};.*{reported}") as caught:
        verify_hf(changed, run=run, **FEW)
    assert "\n" not in str(caught.value)


# What this library would read wrongly of a right directory.
READINGS = {
    "eps": ("qwen3", {"rms_norm_epsilon": 1e-6}),
    "theta": ("mistral", {"rope_theta": 1e4}),
    "scaling": ("qwen3", dict.fromkeys(ROPE) | {"rope_type": "default"}),
    "window": ("mistral", {"sliding_window": 8}),
    "no window": ("mistral", {"sliding_window": None}),
}


def read_wrongly(monkeypatch, changes):
    read = directories.config_from_hf
    wrong = lambda *args, **options: dataclasses.replace(read(*args, **options), **changes)  # noqa: E731
    monkeypatch.setattr(directories, "config_from_hf", wrong)


@pytest.mark.parametrize("name", mostly_slow(READINGS, ["eps", "theta"]))
def test_a_setting_that_is_read_wrongly_is_reported(name, exports, monkeypatch):
    of_model, changes = READINGS[name]
    read_wrongly(monkeypatch, changes)
    setting = next(iter(changes))
    reported = f"that transformers computes; .* after layer 0; settings that differ: .*{setting}="
    with pytest.raises(ValueError, match=reported):
        verify_hf(exports[of_model][0], **FEW)


@pytest.mark.parametrize(
    ("scale", "reported"),
    [
        (
            0.01,
            "the outputs of .* after layer 0; settings that differ: rms_norm_epsilon=1e-06 here",
        ),
        (1e3, "has rms_norm_epsilon=1e-06 here and 1e-05 in transformers; outputs on .* agree"),
    ],
)
def test_an_epsilon_is_compared_where_it_changes_no_output(scale, reported, tmp_path, monkeypatch):
    model = random_model(SWITCHES["mistral"])
    model.embed_tokens[...] *= scale
    release = export_hf(model, None, tmp_path / "release")
    assert verify_hf(release, **FEW)["eager"]["max"] <= 1e-4
    read_wrongly(monkeypatch, {"rms_norm_epsilon": 1e-6})
    with pytest.raises(ValueError, match=reported):
        verify_hf(release, **FEW)


def in_layer_1(name, change):
    def changed(model):
        layers = model.layers
        for part in name.split("."):
            layers = getattr(layers, part)
        layers[...] = layers[...].at[1].set(change(layers[1]))

    return changed


def flip_head(model):
    model.lm_head[...] = model.lm_head[...].at[:131].set(model.lm_head[130::-1])


# What would be wrong in this library's model of a right directory.
PARTS = {
    "order of key/value heads": (
        "qwen3",
        in_layer_1("self_attn.k_proj.kernel", lambda k_DxE: jax.numpy.roll(k_DxE, 8, 1)),
        "after layer 1",
    ),
    "bias": ("qwen3", in_layer_1("self_attn.o_proj.bias", jax.numpy.zeros_like), "after layer 1"),
    "norm of queries": (
        "qwen3",
        in_layer_1("self_attn.q_norm.scale", jax.numpy.ones_like),
        "after layer 1",
    ),
    "head": ("mistral", flip_head, "so the output head differs"),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_wrong_here_is_reported(name, exports, monkeypatch):
    of_model, change, reported = PARTS[name]
    load_right = verify_module._load

    def load_wrong(*args, **options):
        model, tokenizer = load_right(*args, **options)
        change(model)
        return model, tokenizer

    monkeypatch.setattr(verify_module, "_load", load_wrong)
    with pytest.raises(ValueError, match=f"that transformers computes; .*{reported}$"):
        verify_hf(exports[of_model][0], **FEW)


def test_states_are_compared_where_the_head_hides_a_difference(tmp_path):
    model = random_model(SWITCHES["mistral"])
    model.lm_head[...] *= 1e-6
    release = export_hf(model, None, tmp_path / "release")
    run = import_hf(release, tmp_path / "run", notify=lambda line: None)
    (release / "SHA256SUMS").unlink(missing_ok=True)
    change_tensors(release, lambda t: t["model.layers.1.self_attn.v_proj.weight"].mul_(0.9))
    reported = "the hidden states of .* of their size from those of .*; .* after layer 1$"
    with pytest.raises(ValueError, match=reported):
        verify_hf(release, run=run, **FEW)
