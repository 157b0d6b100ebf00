import json
import re
import shutil
import signal
import weakref

import jax
import numpy as np
import pytest

from biomedlm_jax.cli import main
from biomedlm_jax.errors import InputError
from biomedlm_jax.finetuning import text_recipe
from biomedlm_jax.finetuning.finetune import finetune
from biomedlm_jax.interop.finetuned import Head, save_finetuned, with_head
from biomedlm_jax.interop.huggingface import load
from biomedlm_jax.training import fit
from biomedlm_jax.training.metrics import read_metrics
from biomedlm_jax.training.saved_steps import steps


def epochs(run):
    return [line for line in read_metrics(run) if "epoch" in line]


@pytest.mark.slow
def test_a_tiny_model_learns_to_answer(text_run, tmp_path):
    run, result = text_run
    assert result["rouge1"]["mean"] > 80
    assert result["examples"] == 6
    lines = epochs(run)
    assert [line["epoch"] for line in lines] == list(range(1, 11))
    assert lines[-1]["dev_loss"] < 0.5 * lines[0]["dev_loss"]
    assert result["dev_loss"] == lines[-1]["dev_loss"]
    assert "rougeL" in lines[0]
    losses = [line["loss"] for line in read_metrics(run) if "loss" in line]
    assert lines[0]["train_loss"] == pytest.approx(np.mean(losses[: len(losses) // 10]))
    assert json.loads((run / "report.json").read_text()) == result
    model, tokenizer = load(run)
    assert model.config.vocab_size == 302
    assert tokenizer.token_to_id("<|startoftext|>") == 301
    # The written model decodes by itself as it was evaluated.
    first = json.loads((run / "predictions.jsonl").open().readline())
    answers, prompts = tmp_path / "answers.jsonl", tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": first["source"] + "<|startoftext|>"}) + "\n")
    command = ["generate", f"--model={run}", f"--prompts={prompts}", "--nonotice"]
    assert main([*command, f"--out={answers}"]) == 0
    assert json.loads(answers.read_text())["answers"] == [first["answer"]]


@pytest.mark.slow
def test_a_stop_is_honoured_while_dev_sources_are_answered(
    world, text_config, short_text_run, records, tmp_path, monkeypatch
):
    config = text_config(training__epochs=2)
    (whole, expected), run, original = short_text_run, tmp_path / "run", text_recipe.answer_batches

    def interrupted(*arguments, **options):
        monkeypatch.setattr(text_recipe, "answer_batches", original)
        signal.raise_signal(signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(text_recipe, "answer_batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, world / "base", run)
    assert steps(run) == [epochs(whole)[0]["step"]]
    assert epochs(run) == []
    assert finetune(config, world / "base", run) == expected
    assert records(run) == records(whole)


@pytest.fixture(scope="module")
def lora_run(world, text_config, lora, tmp_path_factory):
    run = tmp_path_factory.mktemp("lora") / "run"
    return run, finetune(text_config(**lora, training__epochs=3), world / "base", run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["short_text_run", pytest.param("lora_run", marks=pytest.mark.slow)]
)
def test_an_interrupted_run_resumes_bit_for_bit(
    name, world, text_config, lora, interrupt, records, trained, assert_same, request, tmp_path
):
    (whole, expected), parts = request.getfixturevalue(name), tmp_path / "parts"
    changes = {**lora, "training__epochs": 3} if name == "lora_run" else {"training__epochs": 2}
    config = text_config(**changes)
    at = epochs(whole)[0]["step"] + 1  # within the second epoch
    interrupt(at)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, world / "base", parts)
    assert steps(parts)[-1] == at
    assert [line["epoch"] for line in epochs(parts)] == [1]
    assert load(parts)[0].config.vocab_size == 302  # the model of the last whole epoch
    assert finetune(config, world / "base", parts) == expected
    assert records(parts) == records(whole)
    assert_same(*(trained(run, steps(run)[-1]) for run in (whole, parts)))
    assert_same(*(load(run)[0] for run in (whole, parts)))
    for file in ("predictions.jsonl", "report.json", "model/config.json", "run.json"):
        assert (whole / file).read_bytes() == (parts / file).read_bytes()


@pytest.mark.slow
def test_low_rank_factors_learn_and_leave_the_rest(world, lora_run, trained):
    run, result = lora_run
    lines = epochs(run)
    assert result["dev_loss"] < lines[0]["dev_loss"] - 0.2
    tuned, base = load(run)[0], load(world / "base")[0]
    np.testing.assert_array_equal(tuned.wte[:300], base.wte[:300])
    np.testing.assert_array_equal(tuned.wpe[...], base.wpe[...])
    assert (tuned.h.mlp.c_fc.kernel[...] != base.h.mlp.c_fc.kernel[...]).any()
    names = {name for name in trained(run, lines[-1]["step"]) if not name.startswith("_")}
    assert names - {"score"} == {"lora", "rows"}


@pytest.mark.slow
def test_the_trained_parameters_and_what_was_left_out_are_printed(
    world, text_config, lora, tmp_path, capfd
):
    file, run = tmp_path / "texts.jsonl", tmp_path / "run"
    text = (world / "texts.jsonl").read_text()
    empty = dict.fromkeys(json.loads(text.splitlines()[0]), "")
    file.write_text(text + json.dumps(empty) + "\n")
    changes = {**lora, "training__epochs": 1, "data__train": str(file)}
    finetune(text_config(**changes), world / "base", run)
    printed = capfd.readouterr().err
    assert f"; 1 left out of {file}: empty source" in printed
    record = json.loads((run / "run.json").read_text())
    assert record["started_from"]["left_out"] == {f"{file}: empty source": 1}
    counts = re.search(r"LoRA trains ([\d,]+) of ([\d,]+) parameters", printed).groups()
    few, all_of_them = (int(count.replace(",", "")) for count in counts)
    merged = sum(leaf.size for leaf in jax.tree.leaves(load(run)[0]))
    assert few < merged
    assert all_of_them == few + merged


@pytest.mark.slow
def test_the_dev_loss_of_an_epoch_is_computed_once(world, text_config, tmp_path, monkeypatch):
    original, passes = text_recipe.StepData, []

    def counted(*arguments):
        passes.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(text_recipe, "StepData", counted)
    result = finetune(text_config(training__epochs=1), world / "base", tmp_path / "run")
    assert len(passes) == 1
    assert result["dev_loss"] == epochs(tmp_path / "run")[-1]["dev_loss"]


def test_a_resumed_run_frees_what_it_started_from_before_it_reads_its_checkpoint(
    world, text_config, short_text_run, tmp_path, monkeypatch
):
    run = shutil.copytree(short_text_run[0], tmp_path / "run")
    (run / "report.json").unlink()
    load_start, restore, started = text_recipe.load_base_model, fit.Checkpointer.restore, []

    def loaded(*arguments, **options):
        start = load_start(*arguments, **options)
        started.extend(map(weakref.ref, jax.tree.leaves(start.base)))
        return start

    def restored(checkpointer, *arguments, **options):
        assert started
        assert not any(leaf() is not None for leaf in started)
        return restore(checkpointer, *arguments, **options)

    monkeypatch.setattr(text_recipe, "load_base_model", loaded)
    monkeypatch.setattr(fit.Checkpointer, "restore", restored)
    config = text_config(training__epochs=2)
    assert finetune(config, world / "base", run) == short_text_run[1]


def test_an_interrupted_report_is_made_again(world, text_config, tmp_path, monkeypatch):
    config = text_config(training__epochs=1)

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(text_recipe, "answer_batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune(config, world / "base", tmp_path / "run")
    assert not (tmp_path / "run" / "report.json").exists()
    before = read_metrics(tmp_path / "run")
    monkeypatch.undo()
    result = finetune(config, world / "base", tmp_path / "run")
    assert result["dev_loss"] == before[-1]["dev_loss"]
    assert read_metrics(tmp_path / "run") == before


def test_a_finished_run_is_not_repeated(
    world, text_config, short_text_run, contents, monkeypatch, capfd
):
    run, expected = short_text_run
    before = contents(run)
    monkeypatch.setattr(fit, "jit_step", lambda *a, **k: pytest.fail("it compiled"))
    assert finetune(text_config(training__epochs=2), world / "base", run) == expected
    assert "finished already" in capfd.readouterr().err
    assert contents(run) == before


def test_another_model_config_or_data_do_not_touch_a_run(
    world, text_config, short_text_run, write_base, contents, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(short_text_run[0], run)
    (run / "report.json").unlink()
    before = contents(run)

    def refused(message, *, model=world / "base", **changes):
        with pytest.raises(ValueError, match=message):
            finetune(text_config(training__epochs=2, **changes), model, run)

    refused(r"optimizer.learning_rate=0.005 \(now 0.001\)", optimizer__learning_rate=1e-3)
    refused(r"a run with generation.beams=2 \(now 3\)", generation__beams=3)
    lines = (world / "texts.jsonl").read_text().splitlines()
    (tmp_path / "fewer.jsonl").write_text("".join(f"{line}\n" for line in lines[:-1]))
    refused("a run with texts=", data__train=str(tmp_path / "fewer.jsonl"))
    write_base(tmp_path / "other", layers=3)
    refused("a run with weights=", model=tmp_path / "other")
    assert contents(run) == before


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("data__train", "", "empty data.train"),
        ("data__source_tokens", 40, "row_tokens=48; expected at least 54 tokens"),
        ("data__row_tokens", 64, "expected at most the model's 48 positions"),
        ("generation__max_new_tokens", 40, "expected at most the model's 48 positions"),
        ("generation__beans", 3, "beans"),
        ("training__batch_size", 10, "batch_size=10; expected a multiple of"),
    ],
)
def test_errors_come_before_anything_is_written(world, text_config, tmp_path, name, value, message):
    config = text_config()
    group, _, key = name.partition("__")
    with config.unlocked():
        config[group][key] = value
    with pytest.raises(InputError, match=message):
        finetune(config, world / "base", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_with_a_head_is_refused(world, text_config, tmp_path):
    model, tokenizer = load(world / "base")
    head = Head(kind="choice", task="medqa", row_format="keep_end", max_length=40, classes=())
    scorer = with_head(model, head, key=jax.random.key(0))
    save_finetuned(tmp_path / "scorer", scorer, tokenizer, head)
    with pytest.raises(ValueError, match="fine-tuned model with a choice head"):
        finetune(text_config(), tmp_path / "scorer", tmp_path / "run")


@pytest.fixture(scope="module")
def chat_changes(world):
    """Changes of a chat's config: two files, one of them in parts."""
    files = tuple(str(world / name) for name in ("chats.jsonl", "alpaca.jsonl"))
    changes = {"data__train": files, "data__format": ("messages", "alpaca")}
    return {**changes, "data__weights": (1.0, 0.5), "training__epochs": 6}


@pytest.fixture(scope="module")
def chat_run(world, chat_config, chat_changes, tmp_path_factory):
    run = tmp_path_factory.mktemp("chat") / "run"
    return run, finetune(chat_config(**chat_changes), world / "chat", run)


@pytest.mark.slow
def test_a_chat_is_learned_and_transformers_has_the_same_conversation(chat_run, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, result = chat_run
    lines = epochs(run)
    assert lines[-1]["dev_loss"] < 0.7 * lines[0]["dev_loss"]
    assert result["dev_loss"] == lines[-1]["dev_loss"]
    record = json.loads((run / "run.json").read_text())
    assert record["recipe"] == "chat"
    hf = tmp_path / "hf"
    assert main(["export-hf", f"--model={run}", f"--out={hf}"]) == 0
    model = AutoModelForCausalLM.from_pretrained(hf, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(hf)
    messages = [{"role": "user", "content": "what about aspirin?"}]
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    tokens = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
    answer = tokenizer.decode(tokens[ids.shape[1] :], skip_special_tokens=True).strip()
    chats, out = tmp_path / "chats.jsonl", tmp_path / "out.jsonl"
    chats.write_text(json.dumps({"messages": messages}) + "\n")
    command = ["generate", f"--model={run}", f"--messages={chats}", "--nonotice"]
    assert main([*command, f"--out={out}", "--max_new_tokens=12"]) == 0
    line = json.loads(out.read_text())
    assert line["tokens"][0] == tokens[ids.shape[1] :].tolist()
    assert line["answers"][0].strip() == answer


@pytest.mark.slow
def test_an_interrupted_mixture_resumes_bit_for_bit(
    world, chat_config, chat_changes, chat_run, interrupt, records, trained, assert_same, tmp_path
):
    (whole, expected), parts = chat_run, tmp_path / "parts"
    at = epochs(whole)[0]["step"] + 1
    interrupt(at)
    with pytest.raises(KeyboardInterrupt):
        finetune(chat_config(**chat_changes), world / "chat", parts)
    with pytest.raises(InputError, match=r"holds a run with data\.weights"):
        finetune(
            chat_config(**{**chat_changes, "data__weights": (1.0, 1.0)}), world / "chat", parts
        )
    assert finetune(chat_config(**chat_changes), world / "chat", parts) == expected
    assert records(parts) == records(whole)
    assert_same(*(trained(run, steps(run)[-1]) for run in (whole, parts)))


@pytest.mark.slow
def test_a_llama_learns_chats_with_new_tokens(world, chat_config, lora, tmp_path):
    from biomedlm_jax.model.families import make_config, make_model

    _, tokenizer = load(world / "chat")
    sizes = {"vocab_size": 300, "context_length": 128, "layers": 1, "width": 64, "heads": 4}
    fields = {"model_type": "llama", "key_value_heads": 2, "mlp_width": 64, **sizes}
    model = make_model(make_config(fields), key=jax.random.key(0))
    save_finetuned(tmp_path / "base", model, tokenizer)
    changes = {**lora, "data__template": "chatml", "training__epochs": 2}
    changes |= {"data__added_tokens": ("<|im_start|>", "<|im_end|>"), "evaluation__examples": 0}
    changes["lora__frozen_dtype"] = "bfloat16"
    run = tmp_path / "run"
    result = finetune(chat_config(**changes), tmp_path / "base", run)
    lines = epochs(run)
    assert result["dev_loss"] < lines[0]["dev_loss"]
    tuned, tokenizer = load(run)
    assert tuned.config.vocab_size == 302
    rounded = np.asarray(model.embed_tokens[:300]).astype("bfloat16").astype(np.float32)
    np.testing.assert_array_equal(tuned.embed_tokens[:300], rounded)
    rows = np.asarray(tuned.lm_head[300:302])
    assert (rows != rows.astype("bfloat16").astype(np.float32)).any()  # trained in float32
    settings = json.loads((run / "model" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [299, tokenizer.token_to_id("<|im_end|>")]
    config = chat_config(**{**changes, "evaluation__final_examples": -1})
    report = finetune(config, tmp_path / "base", tmp_path / "without_answers")
    assert report == {"dev_loss": pytest.approx(result["dev_loss"], rel=1e-6)}
    assert (tmp_path / "without_answers" / "predictions.jsonl").read_bytes() == b""
    config.generation.max_new_tokens = 120
    with pytest.raises(InputError, match="expected at most the model's 128 positions"):
        finetune(config, tmp_path / "base", tmp_path / "other")
    assert not (tmp_path / "other").exists()
