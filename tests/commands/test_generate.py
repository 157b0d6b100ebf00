"""`biomedlm generate` called in-process."""

import json
import sys

import jax
import numpy as np
import pytest

from biomedlm_jax.cli import main
from biomedlm_jax.corpus.chat_template import chat_template
from biomedlm_jax.corpus.corpus_builder import build_corpus
from biomedlm_jax.corpus.ngrams import words
from biomedlm_jax.corpus.sources import parse_sources
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.corpus.trace import build_indexes
from biomedlm_jax.errors import counted
from biomedlm_jax.generation.generator import NOTICE, generate
from biomedlm_jax.generation.surprisal import score_text
from biomedlm_jax.interop.huggingface import export_hf
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config

LOW = {"least": 1, "documents": 3, "spans": 10}  # words of a span
TEXTS = ["the kinase binds the receptor", "a trial of the drug", "renal tissue was examined"]


@pytest.fixture(scope="module")
def world():
    tokenizer = train_tokenizer(iter(TEXTS * 9), vocab_size=280)
    config = GPT2Config(
        vocab_size=280, context_length=40, layers=1, width=32, heads=2, initializer_range=0.4
    )
    model = GPT2(config, key=jax.random.key(0))
    odd = [i for i in range(280) if not tokenizer.decode([i]).isprintable() or i > 278]
    odd += [i for i in range(280) if not tokenizer.decode([i]).isascii()]
    model.wte[...] = model.wte[...].at[np.array(odd)].set(0)  # one answer is one line
    return model, tokenizer


@pytest.fixture(scope="module")
def release(world, tmp_path_factory):
    return export_hf(*world, tmp_path_factory.mktemp("models") / "release")


def call(release, *flags: str) -> int:
    return main(["generate", f"--model={release}", *flags])


def test_a_prompt_streams_and_the_notice_can_be_silenced(world, release, capsys):
    expected = generate(*world, [TEXTS[0]], max_new_tokens=8)[0]
    flags = (f"--prompt={TEXTS[0]}", "--max_new_tokens=8")
    assert call(release, *flags) == 0
    output = capsys.readouterr()
    assert output.out == expected + "\n"
    assert NOTICE[:40] in output.err
    assert call(release, *flags, "--nonotice") == 0
    assert capsys.readouterr() == (expected + "\n", "")


@pytest.mark.slow
def test_beams_show_their_scores_and_stats_their_speed(world, release, capsys):
    expected = generate(*world, [TEXTS[0]], max_new_tokens=8, beams=3, samples=2)
    flags = (f"--prompt={TEXTS[0]}", "--max_new_tokens=8", "--beams=3", "--samples=2", "--stats")
    assert call(release, *flags) == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert [line.split("] ", 1)[1] for line in lines] == expected
    assert float(lines[0][1:].split("]")[0]) >= float(lines[1][1:].split("]")[0])
    for what in ("prefill", "decode", "MB/token"):
        assert what in output.err


def test_stats_measure_an_answer_that_is_not_streamed(world, release, capsys, monkeypatch):
    from biomedlm_jax.generation.generator import Generator

    monkeypatch.setattr(Generator, "stream", lambda *arguments: pytest.fail("it streams"))
    expected = generate(*world, [TEXTS[0]], max_new_tokens=8)[0]
    assert call(release, f"--prompt={TEXTS[0]}", "--max_new_tokens=8", "--stats") == 0
    output = capsys.readouterr()
    assert output.out == expected + "\n"
    assert "ms/step" in output.err


def test_typed_prompts_are_answered_one_by_one(world, release, capsys, monkeypatch):
    expected = generate(*world, TEXTS[:2], max_new_tokens=6)
    lines = iter([f"{TEXTS[0]}\n", "\n", "z " * 60 + "\n", f"{TEXTS[1]}\n", ""])
    monkeypatch.setattr(sys.stdin, "readline", lambda: next(lines), raising=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert call(release, "--max_new_tokens=6") == 2  # one was too long; the others are answered
    output = capsys.readouterr()
    assert output.out.splitlines() == expected
    assert "1 prompts were not answered" in output.err
    assert "the model has 40 positions" in " ".join(output.err.split())


def test_a_file_is_answered_with_the_models_settings(world, release, tmp_path, capsys):
    settings = release / "generation_config.json"
    before = settings.read_text()
    settings.write_text(json.dumps({"num_beams": 2, "length_penalty": -0.5, "eos_token_id": 279}))
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"q": text}) + "\n" for text in TEXTS))
    flags = (f"--prompts={prompts}", f"--out={out}", "--field=q", "--max_new_tokens=6")
    assert call(release, *flags) == 0
    expected = generate(*world, TEXTS, max_new_tokens=6, beams=2, length_penalty=-0.5)
    records = [json.loads(line) for line in out.open()]
    assert [r["answers"][0] for r in records] == expected
    assert all(len(r["scores"]) == 1 for r in records)
    assert call(release, *flags) == 0
    assert "0 answers made, 3 kept" in capsys.readouterr().err
    settings.write_text(before)


def test_an_empty_prompt_and_several_ends_are_those_of_transformers(world, release, capsys):
    from transformers import AutoModelForCausalLM

    settings, tokenizer = release / "generation_config.json", world[1]
    before = settings.read_text()
    written = []
    for ends in ([279], [279, "third"]):
        ends = [written[0][2] if end == "third" else end for end in ends]
        settings.write_text(json.dumps({"bos_token_id": 70, "eos_token_id": ends}))
        theirs = AutoModelForCausalLM.from_pretrained(release, attn_implementation="eager")
        tokens = theirs.generate(max_new_tokens=6, do_sample=False, pad_token_id=0)[0].tolist()
        assert tokens[0] == 70
        written.append(tokens[1:])
        capsys.readouterr()
        assert call(release, "--prompt=", "--max_new_tokens=6", "--nonotice") == 0
        kept = written[-1][:-1] if written[-1][-1] in ends else written[-1]
        assert capsys.readouterr().out == tokenizer.decode(kept) + "\n"
    assert len(written[1]) <= 3
    settings.write_text(before)


def test_ctrl_c_in_a_file_keeps_what_is_done(release, tmp_path, capsys, monkeypatch):
    from biomedlm_jax.generation.generator import Generator

    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    real = Generator.answers

    def interrupted(self, batch, *args, numbers, **kwargs):
        if 1 in numbers:
            raise KeyboardInterrupt
        return real(self, batch, *args, numbers=numbers, **kwargs)

    monkeypatch.setattr(Generator, "answers", interrupted)
    flags = (f"--prompts={prompts}", f"--out={out}", "--batch_size=1", "--max_new_tokens=6")
    assert call(release, *flags) == 130
    assert len(out.read_text().splitlines()) == 1
    monkeypatch.undo()
    assert call(release, *flags) == 0
    assert "2 answers made, 1 kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 2, "fsdp": 4}, marks=pytest.mark.slow),
        {"data": -1, "tensor": 2},
    ],
)
def test_all_devices_give_the_same_answers(world, release, tmp_path, capsys, monkeypatch, sizes):
    from biomedlm_jax.generation import terminal

    meshes, original = [], terminal.load

    def kept(path, *, mesh, **options):
        meshes.append(dict(mesh.shape))
        return original(path, mesh=mesh, **options)

    monkeypatch.setattr(terminal, "load", kept)
    flags = tuple(f"--{name}={size}" for name, size in sizes.items())
    wanted = {"data": 8, "fsdp": 1, "tensor": 1, **sizes}
    wanted["data"] = 8 // (wanted["fsdp"] * wanted["tensor"])
    prompts, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    options = (f"--prompts={prompts}", f"--out={out}", "--max_new_tokens=8")
    assert call(release, *options, *flags) == 0
    expected = generate(*world, TEXTS, max_new_tokens=8)  # on one device
    assert [json.loads(line)["answers"] for line in out.open()] == [[text] for text in expected]
    capsys.readouterr()
    assert call(release, f"--prompt={TEXTS[0]}", "--max_new_tokens=8", "--nonotice", *flags) == 0
    assert capsys.readouterr().out == expected[0] + "\n"
    assert call(release, f"--score={TEXTS[0]}", *flags) == 0
    score = capsys.readouterr().out.split("perplexity ")[1]
    assert float(score) == pytest.approx(score_text(*world, TEXTS[0]).perplexity, abs=0.01)
    assert meshes == [wanted] * 3


def test_a_text_is_scored_in_colours(release, tmp_path, capsys):
    page = tmp_path / "score.html"
    assert call(release, f"--score={TEXTS[0]}", f"--html={page}") == 0
    message = capsys.readouterr().out
    assert TEXTS[0] in message
    assert "perplexity" in message
    assert "perplexity" in page.read_text()
    page.write_text("mine")
    assert call(release, f"--score={TEXTS[0]}", f"--html={page}") == 2
    assert "exists; name another file, or pass --overwrite" in capsys.readouterr().err
    assert page.read_text() == "mine"
    assert call(release, f"--score={TEXTS[0]}", f"--html={page}", "--overwrite") == 0
    assert "perplexity" in page.read_text()


def test_an_answer_is_traced_to_documents(world, release, tmp_path, capsys, monkeypatch):
    answer = generate(*world, [TEXTS[0]], max_new_tokens=8)[0]
    rows = [{"text": f"Title\n\n{answer} and more", "pmid": "12"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_corpus(parse_sources([f"text:{tmp_path / 'a.jsonl'}"]), tmp_path / "corpus")
    flags = (f"--prompt={TEXTS[0]}", "--max_new_tokens=8", "--nonotice")
    assert call(release, *flags, f"--trace={tmp_path / 'corpus'}") == 2
    assert "is missing; fix: biomedlm trace --build" in capsys.readouterr().err
    build_indexes(tmp_path / "corpus")
    monkeypatch.setattr("biomedlm_jax.corpus.trace.Tracer.trace.__kwdefaults__", {**LOW})
    assert call(release, *flags, f"--trace={tmp_path / 'corpus'}") == 0
    output = capsys.readouterr().out
    assert output.startswith(answer + "\n")
    count = len(words(answer))
    assert f"{count} of {counted(count, 'word')} (100%) are in 1 span" in output
    assert "PMID 12: Title" in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt=a", "--trace=nowhere"], "nowhere is no corpus"),
        (["--score=a", "--trace=b"], "--trace with --score"),
        (["--prompt=a", "--prompts=b"], "--prompt and --prompts"),
        (["--prompts=b"], "--prompts without --out"),
        (["--out=b"], "--out without --prompts"),
        (["--html=b"], "--html without --score"),
        (["--score=a", "--overwrite"], "--overwrite without --html"),
        (["--prompts=nowhere", "--out=b"], "no such file: nowhere"),
        (["--score=a", "--beams=3"], "--beams with --score"),
        (["--score=a", "--stop=b"], "--stop with --score"),
        (["--score=a", "--temperature=0.5"], "--temperature with --score"),
        (["--score=a", "--stats"], "--stats with --score"),
        (["--score=a", "--truncate=left"], "--truncate with --score"),
        (["--score=a", "--max_new_tokens=3"], "--max_new_tokens with --score"),
        (["--prompt=a", "--field=b"], "--field without --prompts"),
        (["--batch_size=3"], "--batch_size without --prompts"),
        (["--prompt=a", "--early_stopping=soon"], "one of false, true, never"),
        (["--prompt=a", "--top_k=5"], "it needs a temperature above 0"),
        (["--prompt=a", "--beams=3", "--temperature=1"], "beam search does not sample"),
        (["--prompt=a", "--heat=1"], "heat"),
        (["--prompt=a", "--max_new_tokens=many"], "many"),
        (["--prompt=a", "--max_new_tokens=40"], "the model has 40 positions"),
        (["--prompt=" + "z " * 60, "--max_new_tokens=4"], "--truncate=left"),
        (["--prompt=a", "--truncate=right"], "right"),
        (["--score="], "got an empty text"),
        (
            ["--prompt=a", "--tensor=4"],
            "mesh.tensor=4, which does not divide the model's heads of 2",
        ),
        (["--prompt=a", "--data=3"], "does not make 8, the number of devices"),
        (["--score=a", "--fsdp=0"], "sizes are at least 1"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_input_is_one_line_before_anything_is_compiled(release, capsys, flags, message):
    from biomedlm_jax.generation import decoding

    before = sum(decoding.compiles.values())
    assert call(release, "--nonotice", *flags) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert sum(decoding.compiles.values()) == before


def test_a_tokenizer_that_does_not_fit(world, tmp_path, capsys):
    from biomedlm_jax.corpus.tokenizer import save_tokenizer

    export_hf(world[0], None, tmp_path / "hf")
    larger = train_tokenizer(iter([str(TEXTS), *TEXTS] * 9), vocab_size=300)
    save_tokenizer(larger, tmp_path / "hf")
    assert call(tmp_path / "hf", "--prompt=a") == 2
    assert "id 299" in capsys.readouterr().err


def test_a_chat_answers_each_line_with_its_history(world, release, tmp_path, capsys, monkeypatch):
    (model, tokenizer), file = world, tmp_path / "own.jinja"
    file.write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    lines = iter(["the kinase\n", "a trial\n", ""])
    monkeypatch.setattr(sys.stdin, "readline", lambda: next(lines), raising=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert call(release, "--chat", f"--template={file}", "--max_new_tokens=4", "--nonotice") == 0
    template, messages, answers = chat_template(tokenizer, str(file)), [], []
    for text in ("the kinase", "a trial"):
        messages.append({"role": "user", "content": text})
        answers += generate(model, tokenizer, [template.render(messages)], max_new_tokens=4)
        messages.append({"role": "assistant", "content": answers[-1].strip()})
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in answers)
    assert call(release, "--chat", "--nonotice") == 2
    assert "has no chat template; fix: set template to one of alpaca" in capsys.readouterr().err


def test_nan_logits(world, tmp_path, capsys):
    export_hf(*world, tmp_path / "hf")
    from safetensors.numpy import load_file, save_file

    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.ln_f.weight"] += np.float32(3e38)  # finite, its products are not
    save_file(tensors, file, {"format": "pt"})
    (tmp_path / "hf" / "SHA256SUMS").unlink()
    assert call(tmp_path / "hf", "--prompt=a", "--max_new_tokens=4", "--nonotice") == 2
    assert "NaN at step 0 of prompt 0" in capsys.readouterr().err
