import json

import jax
import numpy as np
import pytest

from biomedlm_jax import cli
from biomedlm_jax.interop.finetuned import save_finetuned
from biomedlm_jax.interop.huggingface import export_hf, import_hf, load
from biomedlm_jax.interop.verify import verify_hf

REASON = "parity is with torch and transformers; pip install -e '.[dev]'"
torch = pytest.importorskip("torch", reason=REASON)
transformers = pytest.importorskip("transformers", reason=REASON)


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize(
    ("layers", "heads", "width", "mlp_width"), [(1, 1, 16, None), (4, 3, 48, 40), (8, 8, 64, None)]
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


@pytest.mark.parametrize("flag", [True, False])
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


def test_run_and_folded_export_agree(model, tokenizer, release, tmp_path):
    run = import_hf(release, tmp_path / "run", notify=lambda line: None)
    export_hf(model, tokenizer, tmp_path / "folded", fold_attention_scale=True)
    report = verify_hf(tmp_path / "folded", run=run)
    assert report["foldable_settings"] == {}
    assert report["rows"] == 3  # two random ones, one of text
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
    assert cli.main([*arguments, "--tolerance=1e-12"]) == 2
    assert "expected at most 1e-12" in capsys.readouterr().err
    assert cli.main([*arguments, "--tensor=8"]) == 2
    assert "mesh.tensor=8, which does not divide the model's heads of 4" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["choice", "classification"])
def test_scores_of_a_head_are_those_of_transformers(kind, make_finetuned, tmp_path, rewrite):
    model, tokenizer, head = make_finetuned(kind)
    save_finetuned(tmp_path / "run" / "model", model, tokenizer, head)
    (tmp_path / "run" / "run.json").write_text("{}")
    path = export_hf(model, tokenizer, tmp_path / "out", head=head)
    report = verify_hf(path, run=tmp_path / "run")
    assert report["eager"]["max"] <= 1e-4
    assert report["run"]["max"] == 0
    assert report["rows"] == 3
    assert report["largest_output"] > 0.5
    assert "mean_per_position" not in report["eager"]
    rewrite(path, lambda t: t["score.weight"].__iadd__(0.01))
    with pytest.raises(ValueError, match=r"expected at most 0\.0001"):
        verify_hf(path, run=tmp_path / "run")


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
