"""heads.py and headcard.py against torch and transformers: scores, round trips, refusals."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from absl.testing import flagsaver
from safetensors.numpy import load_file

from biomedlm_jax import cli
from biomedlm_jax import mesh as meshes
from biomedlm_jax.commands import export_hf as export_command
from biomedlm_jax.commands import import_hf as import_command
from biomedlm_jax.interop import huggingface, verify
from biomedlm_jax.interop.heads import export_head, load_head
from biomedlm_jax.model.heads import HEADS, score_layer
from biomedlm_jax.qa.rows import add_tokens, classification_prompts
from biomedlm_jax.qa.scoring import score
from biomedlm_jax.qa.setup import Head, read_head
from biomedlm_jax.qa.tasks import Example, find_task
from biomedlm_jax.qa.tuned import load_tuned, save_tuned

CLASSES = ("maybe", "no", "yes")
KINDS = [(kind, row) for kind in HEADS for row in ("paper", "released")]
CHOICES = [
    Example("a", "Which organ does cardiology treat?", ("the heart", "liver"), 0),
    Example("b", "Which gram?", ("cardiogram", "a hepatogram", "neuro", "gastro" * 9), 1),
    Example("c", "neuropathy " * 30, ("yes", "no, cardiopathy"), 1),
    Example("d", " spaces  and\nβ-blockers, naïve [SEP] ", ("Δ", "心筋"), 0, "A context."),
    Example("e", "", ("one", "two"), 1),
]
TEXTS = [
    Example("a", "Does it work?", CLASSES, 0, "It was seen in cardiology."),
    Example("b", "Is neuropathy a pathy?", CLASSES, 1, "hepatogram " * 30),
    Example("c", "gastroscopy? " * 30, CLASSES, 2, "Short."),
    Example("d", "gastroscopy? " * 30, CLASSES, 2, "neurology " * 30),
    Example("e", "β-blockers, naïve?", CLASSES, 2, ""),
]
EXAMPLES = {"choice": CHOICES, "classification": TEXTS}
TASK = {"choice": find_task("medqa"), "classification": find_task("pubmedqa")}


@pytest.fixture(scope="module")
def tuned_of(make_model, tokenizer):
    """A function: kind and row format -> a model with its head, its tokenizer and its Head."""

    def make(kind, row_format="paper", **fields):
        grown = add_tokens(tokenizer, kind)
        size = {"vocab_size": grown.get_vocab_size(), "eos_token_id": 299, "context_length": 64}
        gpt = make_model(**{**size, **fields})
        classes = CLASSES if kind == "classification" else ()
        head = Head(kind, TASK[kind].name, row_format, max_length=40, classes=classes)
        layer = score_layer(gpt.config, kind, head.outputs, key=jax.random.key(3))
        layer.kernel[...] *= 20
        if kind == "choice":
            layer.bias[...] += 0.375
        return HEADS[kind](gpt, layer), grown, head

    return make


def exported(tuned, tokenizer, head, path, **options):
    return export_head(tuned, tokenizer, path, head=head.to_json(), **options)


def scores_here(tuned, tokenizer, head) -> list[list[float]]:
    items = score(
        tuned,
        tokenizer,
        EXAMPLES[head.kind],
        TASK[head.kind],
        mode="classifier",
        row_format=head.row_format,
        max_length=head.max_length,
    )["classifier"]
    return [item["scores"] for item in items]


def scores_of_the_card(directory, monkeypatch, head) -> list[list[float]]:
    """What the code in README.md computes, as a reader runs it: beside a directory named DIR."""
    assert directory.name == "DIR"
    (code,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.S)
    monkeypatch.chdir(directory.parent)
    names = {"__name__": "__main__"}
    exec(code, names)
    found = []
    for example in EXAMPLES[head.kind]:
        question, answers = example.question, example.options
        if head.kind == "classification":
            answers = example.context
        elif example.context:
            question = f"{example.context} {question}"
        found.append(names["scores"](question, answers).tolist())
    return found


def assert_close(found, expected, tolerance=5e-5):
    assert len(found) == len(expected)
    assert max(map(max, expected)) > 0.5  # else it would say little
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def leaves(tuned) -> dict[str, bytes]:
    found = jax.tree_util.tree_leaves_with_path(tuned)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in found}


@pytest.mark.parametrize(("kind", "row_format"), KINDS)
def test_the_cards_code_computes_the_same_scores(kind, row_format, tuned_of, tmp_path, monkeypatch):
    tuned, tokenizer, head = tuned_of(kind, row_format)
    path = exported(tuned, tokenizer, head, tmp_path / "DIR")
    assert_close(scores_of_the_card(path, monkeypatch, head), scores_here(tuned, tokenizer, head))


@pytest.mark.parametrize("kind", HEADS)
def test_folded_and_sharded_the_scores_stay(kind, tuned_of, tmp_path, monkeypatch):
    tuned, tokenizer, head = tuned_of(kind)
    options = {"fold_attention_scale": True, "max_shard_size": "20KB"}
    path = exported(tuned, tokenizer, head, tmp_path / "DIR", **options)
    assert len(list(path.glob("model-*.safetensors"))) > 2
    assert (
        json.loads((path / "config.json").read_text())["scale_attn_by_inverse_layer_idx"] is False
    )
    assert "folded into the query part" in " ".join((path / "README.md").read_text().split())
    expected = scores_here(tuned, tokenizer, head)
    assert_close(scores_of_the_card(path, monkeypatch, head), expected)
    folded, tokenizer, _ = load_tuned(path)
    assert_close(scores_here(folded, tokenizer, head), expected)


@pytest.mark.parametrize("row_format", ["paper", "released"])
def test_transformers_classifies_a_padded_batch_alike(row_format, tuned_of, tmp_path):
    tuned, tokenizer, head = tuned_of("classification", row_format)
    path = exported(tuned, tokenizer, head, tmp_path / "out")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        path, attn_implementation="eager"
    )
    assert type(model) is transformers.GPT2ForSequenceClassification
    assert model.config.id2label == dict(enumerate(CLASSES))
    assert model.config.label2id == {name: i for i, name in enumerate(CLASSES)}
    assert model.config.num_labels == 3
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    assert (theirs.pad_token, theirs.pad_token_id) == ("[PAD]", 300)
    assert model.config.pad_token_id == 300
    assert theirs.padding_side == "right"
    prompts = classification_prompts(tokenizer, TEXTS, row_format=row_format, max_length=40)
    rows = [prompt.prefix for prompt in prompts.prompts]
    assert len({*map(len, rows)}) > 1
    batch = theirs.pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
    assert_close(logits.tolist(), scores_here(tuned, tokenizer, head))


def test_tensors_are_those_of_torch(tuned_of, tmp_path):
    for kind, shape in (("choice", (1, 32)), ("classification", (3, 32))):
        tuned, tokenizer, head = tuned_of(kind)
        path = exported(tuned, tokenizer, head, tmp_path / kind)
        tensors = load_file(path / "model.safetensors")
        assert tensors["score.weight"].shape == shape
        assert ("score.bias" in tensors) == (kind == "choice")
        rest = {name for name in tensors if not name.startswith("score.")}
        assert all(name.startswith("transformer.") for name in rest)
        assert len(rest) == 4 + 3 * 12
        config = json.loads((path / "config.json").read_text())
        assert config["biomedlm_jax_head"] == head.to_json()
        assert not (path / "generation_config.json").exists()
        texts = ("a [SEP]b<|ANSWER|> [PAD]", " cardiology", "<|endoftext|>")
        theirs = transformers.AutoTokenizer.from_pretrained(path)
        assert [theirs.encode(t) for t in texts] == [tokenizer.encode(t).ids for t in texts]


@pytest.fixture
def command(capsys):
    """Run a command as a person would: (exit code, what it printed, what it complained of)."""

    def run(*arguments):
        saved = [flagsaver.save_flag_values(c.FLAGS) for c in (import_command, export_command)]
        try:
            code = cli.main([str(argument) for argument in arguments])
        finally:
            for module, values in zip((import_command, export_command), saved, strict=True):
                flagsaver.restore_flag_values(values, module.FLAGS)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture(params=list(HEADS))
def run(request, tuned_of, tmp_path):
    """A run of finetune, as far as export needs it, and what its best model is."""
    tuned, tokenizer, head = tuned_of(request.param)
    facts = {"dev_accuracy": 41.5, "epoch": 3, "started_from": {"model": "pre-trained"}}
    directory = tmp_path / "run"
    directory.mkdir()
    groups = {"training": {"epochs": 9}, "optimizer": {"learning_rate": 2e-6}, "lora": {"rank": 0}}
    (directory / "finetuning.json").write_text(json.dumps(groups))
    save_tuned(directory / "best", tuned, tokenizer, head, step=5, facts=facts)
    return directory, tuned, head


def test_commands_there_and_back(run, command, tmp_path):
    directory, tuned, head = run
    out, back, again = tmp_path / "out", tmp_path / "back", tmp_path / "again"
    code, said, error = command("export-hf", f"--model={directory}", f"--out={out}")
    assert (code, error) == (0, "")
    assert "silently ignore" in said
    assert "README.md has the code" in said
    card = (out / "README.md").read_text()
    for line in ("| dev_accuracy | 41.5 |", "| epochs | 9 |", "| learning_rate | 2e-06 |"):
        assert line in card
    assert f"with a {head.kind} head, fine-tuned on {head.task}" in " ".join(card.split())
    assert "| model | pre-trained |" in card

    code, said, error = command("import-hf", f"--source={out}", f"--out={back}")
    assert (code, error) == (0, "")
    assert "licence of the weights: not stated" in said
    for path in (directory, out, back):  # a run, a Hugging Face directory, what was imported
        loaded, _, found = load_tuned(path)
        assert found == head == read_head(back)
        assert leaves(loaded) == leaves(tuned)
        assert jax.tree.structure(loaded) == jax.tree.structure(load_tuned(directory)[0])

    code, _, _ = command("export-hf", f"--model={directory / 'best'}", f"--out={again}")
    assert code == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (out / name).read_bytes()
    code, _, _ = command("export-hf", f"--model={back}", f"--out={again}", "--overwrite")
    assert code == 0
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert f"| path | {out} |" in (again / "README.md").read_text()


def test_commands_refuse_in_one_line(run, command, tmp_path):
    directory, *_ = run
    out, best, fresh = tmp_path / "out", directory / "best", tmp_path / "fresh"
    assert command("export-hf", f"--model={directory}", f"--out={out}")[0] == 0
    before = (out / "model.safetensors").read_bytes()
    for arguments, said in [
        (("export-hf", f"--model={directory}", f"--out={out}"), "pass --overwrite"),
        (("export-hf", f"--model={directory}", f"--out={fresh}", "--step=5"), "leave out --step"),
        (("export-hf", f"--model={directory}", f"--out={best}", "--overwrite"), "not overwritten"),
        (("import-hf", f"--source={best}", f"--out={fresh}"), "already"),
        (("import-hf", f"--source={out}", f"--out={out}", "--overwrite"), "not overwritten"),
    ]:
        code, _, error = command(*arguments)
        assert (code, error.count("\n")) == (2, 1), error
        assert said in error
    assert not fresh.exists()
    assert (out / "model.safetensors").read_bytes() == before
    shutil.rmtree(best)
    code, _, error = command("export-hf", f"--model={directory}", f"--out={fresh}")
    assert code == 2
    assert "no best checkpoint yet" in error


def test_a_language_model_is_asked_for_and_a_head_is_found(run, tmp_path, edit_config):
    directory, tuned, head = run
    out = exported(tuned, load_tuned(directory)[1], head, tmp_path / "out")
    one_line = rf"^[^\n]*{head.kind} head, not a language model[^\n]*biomedlm evaluate --model="
    for path in (directory / "best", out):
        with pytest.raises(ValueError, match=one_line):
            huggingface.load(path)
    for work in (verify.verify_hf, lambda path: huggingface.import_hf(path, tmp_path / "new")):
        with pytest.raises(ValueError, match=one_line):
            work(out)
    with pytest.raises(ValueError, match=r"^[^\n]*run of finetune[^\n]*biomedlm evaluate --model"):
        huggingface.load(directory)
    config = json.loads((out / "config.json").read_text())
    del config["biomedlm_jax_head"]
    (out / "config.json").write_text(json.dumps(config))
    if head.kind == "classification":
        with pytest.raises(ValueError, match="GPT2ForSequenceClassification of others"):
            huggingface.load(out)
    else:
        with pytest.raises(ValueError, match=r"does not: got score\.bias \[1\], score\.weight"):
            huggingface.load(out)
    edit_config(out, biomedlm_jax_head=head.to_json())  # as the message advises
    assert leaves(load_tuned(out)[0]) == leaves(tuned)


def test_onto_a_mesh_and_from_it(tuned_of, tmp_path):
    tuned, tokenizer, head = tuned_of("classification", vocab_size=320)
    mesh = meshes.make_mesh(data=2, fsdp=2, tensor=2)
    path = exported(tuned, tokenizer, head, tmp_path / "out")
    loaded, _ = load_head(path, mesh=mesh)
    assert loaded.score.kernel.sharding.spec == meshes.spec("embed", None)
    assert leaves(loaded) == leaves(tuned)
    assert_close(scores_here(loaded, tokenizer, head), scores_here(tuned, tokenizer, head))
    exported(loaded, tokenizer, head, tmp_path / "from-mesh")
    file = "model.safetensors"
    assert (tmp_path / "from-mesh" / file).read_bytes() == (path / file).read_bytes()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("missing", "tensors score.weight [1, 32]; expected score.bias [1], score.weight [1, 32]"),
        ("shape", "score.bias [1], score.weight [2, 32]"),
        ("nan", "nan in tensor score.weight at [0, 0]"),
        ("block", "lacks tensors of this model: expected h.1.ln_1.bias"),
        ("tokenizer", "has no tokenizer"),
        ({"kind": "choise"}, "choice paper, choice released"),
        ({"row_format": "mine"}, "classification released"),
        ({"max_length": 0}, "expected kind, task, row_format, max_length, classes"),
        ({"max_length": "40"}, "expected kind, task, row_format, max_length, classes"),
        ({"classes": ["a", "b"]}, "a choice has none"),
        ({"kind": "classification", "classes": ["a", "a"]}, "has different names"),
        ({"kind": "classification", "classes": ["a", "b"]}, "config.json describes another head"),
    ],
)
def test_bad_directories_are_refused(spoil, said, tuned_of, tmp_path, rewrite, edit_config):
    tuned, tokenizer, head = tuned_of("choice")
    path = exported(tuned, tokenizer, head, tmp_path / "out")
    if isinstance(spoil, dict):
        edit_config(path, biomedlm_jax_head={**head.to_json(), **spoil})
    elif spoil == "tokenizer":
        for name in ("tokenizer.json", "vocab.json"):
            (path / name).unlink()
    else:

        def change(tensors):
            if spoil == "missing":
                del tensors["score.bias"]
            elif spoil == "shape":
                tensors["score.weight"] = np.zeros((2, 32), np.float32)
            elif spoil == "nan":
                tensors["score.weight"][0, 0] = np.nan
            else:
                del tensors["transformer.h.1.ln_1.bias"]

        rewrite(path, change)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        load_head(path)
    assert said in str(caught.value)


def test_what_does_not_fit_is_not_written(tuned_of, tokenizer, tmp_path, monkeypatch):
    tuned, grown, head = tuned_of("classification")
    path = tmp_path / "out"
    for entry, said in [
        ({**head.to_json(), "classes": ["no", "yes"]}, "with 3 scores for a classification head"),
        ({**head.to_json(), "kind": "choice", "classes": []}, "for a choice head"),
        ({"kind": "choice"}, "the head to export says"),
    ]:
        with pytest.raises(ValueError, match=said):
            export_head(tuned, grown, path, head=entry)
    with pytest.raises(ValueError, match=r"lacks \[PAD\]"):
        exported(tuned, tokenizer, head, path)
    real = huggingface.write_tensors

    def write(directory, shapes, get, **options):
        off = {"score.weight": np.float32(1e-6)}
        real(directory, shapes, lambda name: get(name) + off.get(name, 0), **options)

    monkeypatch.setattr(huggingface, "write_tensors", write)
    with pytest.raises(OSError, match=r"tensor score\.weight does not read back"):
        exported(tuned, grown, head, path)
    monkeypatch.undo()
    tuned.score.kernel[...] = tuned.score.kernel[...].at[0, 0].set(np.inf)
    with pytest.raises(ValueError, match=r"inf in tensor score\.weight"):
        exported(tuned, grown, head, path)
    assert list(tmp_path.iterdir()) == []
