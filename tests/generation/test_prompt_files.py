import gzip
import json

import jax
import pytest
from chats import CHAT, save

from biomedlm_jax.corpus.chat_template import chat_template
from biomedlm_jax.corpus.tokenizer import load_tokenizer, train_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.generation.chat import Chat
from biomedlm_jax.generation.generator import Generator
from biomedlm_jax.generation.options import Options
from biomedlm_jax.generation.prompt_files import answer_file, read_prompts
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config

TEXTS = ["the kinase", "a trial of the drug", "renal tissue", "was examined", "the receptor"]
OPTIONS = Options(max_new_tokens=6, temperature=1.5, seed=5, samples=2)


def make_generator(*, seed: int = 0, **fields) -> Generator:
    tokenizer = train_tokenizer(iter(TEXTS * 9), vocab_size=280)
    shape = {"vocab_size": 280, "context_length": 32, "layers": 1, "width": 32, "heads": 2}
    config = GPT2Config(**shape, initializer_range=0.4, **fields)
    return Generator(GPT2(config, key=jax.random.key(seed)), tokenizer)


@pytest.fixture(scope="module")
def generator():
    return make_generator()


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "in.jsonl"
    lines = [json.dumps({"prompt": text, "id": f"q{i}"}) for i, text in enumerate(TEXTS)]
    file.write_text("\n".join(lines) + "\n\n")
    return file


def answers(generator, source, out, **options):
    message = []
    counts = answer_file(
        generator, source, out, OPTIONS, batch_size=2, notify=message.append, **options
    )
    return counts, message


def test_every_prompt_has_its_line(generator, source, tmp_path):
    out = tmp_path / "out.jsonl"
    assert answers(generator, source, out)[0] == {"kept": 0, "made": 5}
    records = [json.loads(line) for line in out.open()]
    assert [(r["index"], r["id"], r["prompt"]) for r in records] == [
        (i, f"q{i}", text) for i, text in enumerate(TEXTS)
    ]
    assert all(len(r["answers"]) == len(r["tokens"]) == 2 for r in records)


def test_an_interrupted_file_is_resumed_to_the_same_bytes(generator, source, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    answers(generator, source, whole)
    real, calls = generator.answers, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(generator, "answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answers(generator, source, out)
    monkeypatch.undo()
    assert len(out.read_text().splitlines()) == 2
    with out.open("a") as file:
        file.write('{"index": 2, "pro')  # cut off by a crash; only that is written to again
    monkeypatch.setattr(type(out), "write_bytes", lambda *_: pytest.fail("answers written again"))
    counts, message = answers(generator, source, out)
    assert counts == {"kept": 2, "made": 3}
    assert "has 2 of 5 answers" in message[0]
    assert out.read_bytes() == whole.read_bytes()
    assert answers(generator, source, out)[0] == {"kept": 5, "made": 0}


def test_other_line_separators_are_part_of_a_prompt(generator, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    texts = ["a\u2028b", "a\u2029\u0085b"]
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    source.write_text("\r\n".join(lines), encoding="utf-8", newline="")
    assert [prompt for prompt, _ in read_prompts(source)] == texts
    assert answers(generator, source, out)[0]["made"] == 2
    assert "\u2028" in out.read_text(encoding="utf-8")
    assert answers(generator, source, out)[0] == {"kept": 2, "made": 0}


def test_a_text_file_has_one_prompt_a_line(generator, tmp_path):
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_bytes("\ufeffthe kinase\r\n\n a\u2028b \n".encode())
    assert [prompt for prompt, _ in read_prompts(source)] == ["the kinase", " a\u2028b "]
    assert answers(generator, source, out)[0]["made"] == 2
    source.write_bytes("a\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"in\.txt:1: NUL character at 1: not UTF-8 text"):
        read_prompts(source)
    lines = tmp_path / "prompts.txt.jsonl"
    lines.write_text('{"prompt": "the kinase"}\n')
    assert read_prompts(lines) == [("the kinase", {})]
    (tmp_path / "in.txt.gz").write_bytes(gzip.compress(b"the kinase\n"))
    assert read_prompts(tmp_path / "in.txt.gz") == [("the kinase", {})]
    source.write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match=r"in\.txt:2: expected UTF-8"):
        read_prompts(source)


def test_answers_to_something_else_are_not_mixed_in(generator, source, tmp_path):
    out = tmp_path / "out.jsonl"
    answers(generator, source, out)
    for other in (make_generator(seed=1), make_generator(compute_dtype="bfloat16")):
        with pytest.raises(ValueError, match="other options, weights or --dtype"):
            answers(other, source, out)
    assert answers(make_generator(), source, out)[0] == {"kept": 5, "made": 0}
    lines = source.read_text().splitlines()
    source.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(ValueError, match=r"out\.jsonl:1 answers another prompt"):
        answers(generator, source, out)
    out.write_text("notes\n")
    with pytest.raises(ValueError, match=r"out\.jsonl:1 is not an answer"):
        answers(generator, source, out)
    assert out.read_text() == "notes\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no prompts"),
        ('{"prompt": "a"}\nnonsense\n', "in.jsonl:2: expected a JSON object"),
        ('{"text": "a"}\n', r"in.jsonl:1: .* got the fields \['text'\]"),
        ("[1]\n", "in.jsonl:1: .* type list"),
        ('{"prompt": ["a"]}\n', "the text 'prompt', got prompt of type list"),
        ('{"prompt": "a\\u0000b"}\n', "in.jsonl:1: NUL character at 1"),
    ],
)
def test_invalid_files_are_refused(tmp_path, text, message):
    (tmp_path / "in.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / "in.jsonl")


def test_a_prompt_that_does_not_fit_stops_before_anything_is_written(generator, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": "z " * 60}))
    with pytest.raises(ValueError, match="prompt 1 has"):
        answers(generator, source, out)
    assert not out.exists()
    assert answers(generator, source, out, truncate="left")[0]["made"] == 2


def test_chats_are_answered_and_resumed_as_prompts_are(tmp_path):
    directory = save(tmp_path / "tokenizer", template="zephyr")
    config = GPT2Config(vocab_size=285, context_length=96, layers=1, width=32, heads=2)
    tokenizer = load_tokenizer(directory)
    generator = Generator(GPT2(config, key=jax.random.key(0)), tokenizer)
    chat = Chat(generator, chat_template(tokenizer), Options(max_new_tokens=4))
    source, out = tmp_path / "chats.jsonl", tmp_path / "out.jsonl"
    chats = [{"messages": CHAT[1:2], "id": "a"}, {"messages": CHAT[:2]}, {"messages": CHAT[1:4]}]
    source.write_text("".join(json.dumps(one) + "\n" for one in chats))
    counts, _ = answers(generator, source, out, chat=chat)
    assert counts == {"kept": 0, "made": 3}
    whole = out.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["messages"] for line in lines] == [one["messages"] for one in chats]
    assert lines[0]["id"] == "a"
    for line in lines:
        (alone,) = generator.answers([chat.encode(line["messages"])], chat.options)
        assert line["answers"] == [alone[0].text]
    out.write_bytes(whole[: whole.index(b"\n") + 1])
    assert answers(generator, source, out, chat=chat)[0] == {"kept": 1, "made": 2}
    assert out.read_bytes() == whole
    long = {"messages": [{"role": "user", "content": "x " * 999}]}
    (tmp_path / "long.jsonl").write_text(f"{json.dumps(chats[0])}\n{json.dumps(long)}\n")
    with pytest.raises(InputError, match=r"long\.jsonl, index 1: the chat has "):
        answers(generator, tmp_path / "long.jsonl", tmp_path / "other.jsonl", chat=chat)
    other = Chat(generator, chat_template(tokenizer, "human"), Options(max_new_tokens=4))
    with pytest.raises(ValueError, match="other options, weights or --dtype"):
        answers(generator, source, out, chat=other)
