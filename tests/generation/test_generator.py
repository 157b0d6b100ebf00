import dataclasses
import json

import jax
import numpy as np
import pytest

from biomedlm_jax import mesh as meshes
from biomedlm_jax.cli import main
from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.generation.generator import (
    Generator,
    answer_batches,
    generate,
    settled_text,
)
from biomedlm_jax.generation.options import Options
from biomedlm_jax.generation.stats import Stats
from biomedlm_jax.interop.huggingface import export_hf, load
from biomedlm_jax.model.families import abstract_model
from biomedlm_jax.model.gpt2 import GPT2, GPT2Config

TEXTS = ["the kinase binds the receptor", "a trial of the drug", "renal tissue was examined"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter(TEXTS * 9), vocab_size=280)


def readable(model: GPT2, tokenizer) -> GPT2:
    """The model without the bytes that are no letters by themselves: they never are likeliest."""
    texts = [tokenizer.decode([i]) for i in range(model.config.vocab_size)]
    odd = np.array([i for i, t in enumerate(texts) if not (t.isascii() and t.isprintable() and t)])
    model.wte[...] = model.wte[...].at[odd].set(0)
    return model


@pytest.fixture(scope="module")
def model(tokenizer):
    config = GPT2Config(
        vocab_size=280, context_length=48, layers=1, width=32, heads=2, initializer_range=0.4
    )
    return readable(GPT2(config, key=jax.random.key(0)), tokenizer)


@pytest.fixture(scope="module")
def generator(model, tokenizer):
    return Generator(model, tokenizer)


def test_greedy_tokens_are_the_argmax_of_the_full_forward_pass(model, tokenizer):
    ids = tokenizer.encode(TEXTS[0]).ids
    prompt = len(ids)
    forward = jax.jit(GPT2.__call__)
    while len(ids) < prompt + 8:
        padded = np.zeros((1, 48), np.int32)  # later positions cannot be seen
        padded[0, : len(ids)] = ids
        ids.append(int(np.asarray(forward(model, padded))[0, len(ids) - 1].argmax()))
    new = ids[prompt:]
    expected = new[: new.index(279)] if 279 in new else new
    message = generate(model, tokenizer, [TEXTS[0]], max_new_tokens=8)
    assert message == [tokenizer.decode(expected)]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_batches_and_samples_are_the_same_on_a_mesh(model, tokenizer, sizes):
    mesh = meshes.make_mesh(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract_model(model.config, mesh))
    sharded = jax.device_put(model, layout)
    prompts = [*TEXTS, "the drug", "renal"]
    for drawing in ({}, {"temperature": 1.5, "top_k": 40, "samples": 3, "seed": 7}):
        options = {"max_new_tokens": 9, "batch_size": 2, **drawing}
        one = generate(model, tokenizer, prompts, **options)
        assert len(set(one)) > 4
        assert generate(sharded, tokenizer, prompts, **options) == one


def test_batches_change_nothing(model, tokenizer):
    options = {"max_new_tokens": 6, "temperature": 1.5, "samples": 2, "seed": 3}
    whole = generate(model, tokenizer, TEXTS, **options)
    assert len(whole) == 6
    assert whole == generate(model, tokenizer, TEXTS, batch_size=2, **options)


def test_an_empty_prompt_begins_with_the_end_of_text(generator):
    assert generator.encode([""], Options(max_new_tokens=4)) == [[279]]


def test_stop_strings_end_an_answer_and_are_cut_off(generator, tokenizer):
    prompt = tokenizer.encode(TEXTS[0]).ids
    (whole,) = generator.answers([prompt], Options(max_new_tokens=20))[0]
    stop = whole.text[5:8]
    assert len(whole.text) > 12
    (cut,) = generator.answers([prompt], Options(max_new_tokens=20, stop=(stop, "nowhere")))[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.tokens == whole.tokens[: len(cut.tokens)]
    assert stop in tokenizer.decode(cut.tokens)
    assert stop not in tokenizer.decode(cut.tokens[:-1])


@pytest.fixture(scope="module")
def peer(model, tokenizer, tmp_path_factory):
    """transformers' `generate` of the same model: new tokens, and the beams' scores."""
    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    folder = export_hf(model, tokenizer, tmp_path_factory.mktemp("peer") / "hf")
    theirs = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
    words = AutoTokenizer.from_pretrained(folder)

    def answer(prompt, stops, **options):
        out = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=20, do_sample=False, stop_strings=list(stops),
            tokenizer=words, pad_token_id=0, return_dict_in_generate=True, output_scores=True,
            **options,
        )  # fmt: skip
        scores = getattr(out, "sequences_scores", None)
        rows = [row[len(prompt) :] for row in out.sequences.tolist()]
        return rows, None if scores is None else scores.tolist()

    return answer


def test_stop_strings_end_where_they_do_in_transformers(generator, tokenizer, peer):
    prompt = tokenizer.encode(TEXTS[1]).ids
    (whole,) = generator.answers([prompt], Options(max_new_tokens=20))[0]
    for stop in (whole.text[3:5], whole.text[6:10]):
        (ours,) = generator.answers([prompt], Options(max_new_tokens=20, stop=(stop,)))[0]
        assert ours.tokens == peer(prompt, [stop])[0][0]


def test_a_stop_string_may_begin_in_the_prompt_as_in_transformers(generator, tokenizer, peer):
    prompt = tokenizer.encode(TEXTS[1]).ids
    (whole,) = generator.answers([prompt], Options(max_new_tokens=20))[0]
    stop = TEXTS[1][-2:] + whole.text[:2]
    options = Options(max_new_tokens=20, stop=(stop,))
    (ours,) = generator.answers([prompt], options)[0]
    assert ours.tokens == peer(prompt, [stop])[0][0]
    assert ours.text == whole.text[: len(ours.text)]
    (inside,) = generator.answers([prompt], options, stops_span=False)[0]
    assert inside.tokens == whole.tokens


def test_beams_end_at_stop_strings_as_in_transformers(generator, tokenizer, peer):
    prompt = tokenizer.encode(TEXTS[1]).ids
    (whole,) = generator.answers([prompt], Options(max_new_tokens=20, beams=3))[0]
    ended = 0
    for stops in ((whole.text[3:5],), (whole.text[6:8], "e"), ("a",)):
        for more in ({}, {"length_penalty": -0.5}, {"early_stopping": True, "samples": 3}):
            options = Options(max_new_tokens=20, beams=3, stop=stops, **more)
            (ours,) = generator.answers([prompt], options)
            theirs = {**more, "num_return_sequences": more.get("samples", 1), "num_beams": 3}
            theirs.pop("samples", None)
            rows, scores = peer(prompt, stops, **theirs)
            for one, row, score in zip(ours, rows, scores, strict=True):
                assert row[: len(one.tokens)] == one.tokens
                assert set(row[len(one.tokens) :]) <= {0, 279}  # their padding
                assert one.score == pytest.approx(score, rel=2e-5)
                ended += len(one.tokens) < 20
    assert ended > 5


def forced(generator, monkeypatch, rows):
    """Let the decoder return these rows."""
    from biomedlm_jax.generation import decoding

    decoded = decoding.Decoded([[row] for row in rows], 1.0, 1.0, 1, (len(rows), 16, 16))
    monkeypatch.setattr(decoding, "decode", lambda *arguments, **options: decoded)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("the drug<|sep|>", ("<|sep|>",), "the drug"),
        ("the<|sep|> drug<|sep|>", ("g<|sep|>",), "the dru"),
        ("the<|sep|> drug", (" d",), "the"),
        ("the<|sep|> drug", ("ep|> ",), "the"),
        ("a drugs", ("rug", "drugs"), "a d"),  # the harness's rule: one after the other
        ("a drugs", ("drugs", "rug"), "a "),
        ("the<|sep|> drug", (), "the drug"),
    ],
)
def test_texts_are_cut_at_stop_strings_and_have_no_special_tokens(
    model, tokenizer, monkeypatch, text, stops, expected
):
    from tokenizers import Tokenizer

    with_marker = Tokenizer.from_str(tokenizer.to_str())
    with_marker.add_special_tokens(["<|sep|>"])
    config = dataclasses.replace(model.config, vocab_size=281, eos_token_id=279)
    one = Generator(GPT2(config, key=jax.random.key(0)), with_marker)
    row = with_marker.encode(text, add_special_tokens=False).ids
    forced(one, monkeypatch, [row])
    ((answer,),) = one.answers([[5]], Options(max_new_tokens=16, stop=stops))
    assert answer.text == expected


def test_a_special_token_stops(model, tokenizer, generator):
    prompt = tokenizer.encode(TEXTS[0]).ids
    (whole,) = generator.answers([prompt], Options(max_new_tokens=12))[0]
    from tokenizers import AddedToken, Tokenizer

    special = Tokenizer.from_str(tokenizer.to_str())
    third = tokenizer.id_to_token(whole.tokens[3])
    special.add_special_tokens([AddedToken(third, special=True, normalized=False)])
    assert special.token_to_id(third) == whole.tokens[3]
    stop = tokenizer.decode([whole.tokens[3]])
    options = Options(max_new_tokens=12, stop=(stop,))
    (cut,) = Generator(model, special).answers([prompt], options)[0]
    assert len(cut.tokens) <= 4
    assert stop not in cut.text


def test_streamed_pieces_make_the_whole_answer(generator, tokenizer):
    prompt = tokenizer.encode(TEXTS[2]).ids
    for options in (Options(max_new_tokens=20), Options(max_new_tokens=20, temperature=3.0)):
        pieces = list(generator.stream(prompt, options))
        assert "".join(pieces) == generator.answers([prompt], options)[0][0].text
        assert len(pieces) > 3
    with pytest.raises(ValueError, match="only one answer is streamed"):
        next(generator.stream(prompt, Options(beams=2)))
    with pytest.raises(ValueError, match="ids from 999"):
        list(generator.stream([999], Options()))


def test_what_is_streamed_is_settled():
    assert settled_text("gen\ufffd", ()) == "gen"
    assert settled_text("one END two", ("END",)) == "one "
    assert settled_text("one EN", ("END", "x")) == "one "
    assert settled_text("one", ("END",)) == "one"


def test_answers_have_the_places_of_their_prompts(generator, tokenizer):
    prompts = [tokenizer.encode(text).ids for text in TEXTS] + [[5] * 20]
    options = Options(max_new_tokens=10, stop=(" the",))
    answers = dict(answer_batches(generator, prompts, options, batch_size=2))
    for number, prompt in enumerate(prompts):
        assert answers[number] == generator.answers([prompt], options)[0]
    assert not any(" the" in one.text for (one,) in answers.values())


@pytest.fixture(scope="module")
def with_begin(model, tokenizer, tmp_path_factory):
    """A directory whose tokenizer puts its bos before a text, and its eos after it."""
    folder = export_hf(model, tokenizer, tmp_path_factory.mktemp("begin") / "hf")
    (folder / "tokenizer.json").unlink()
    (folder / "special_tokens_map.json").unlink()
    file = folder / "tokenizer_config.json"
    added = {"bos_token": "!", "add_bos_token": True, "add_eos_token": True}
    file.write_text(json.dumps({**json.loads(file.read_text()), **added}))
    return folder


def test_a_prompt_follows_what_the_tokenizer_puts_before_it_as_in_transformers(with_begin):
    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(with_begin, attn_implementation="eager").eval()
    words = AutoTokenizer.from_pretrained(with_begin)
    ours = Generator(*load(with_begin, compute_dtype="float32"))
    short = Options(max_new_tokens=9)
    rows = ours.encode([*TEXTS, ""], short)
    assert rows == [words(text).input_ids[:-1] for text in [*TEXTS, ""]]  # without the end
    begin = rows[-1][0]
    assert rows[-1] == [begin] != [ours.begin]
    # A text that begins with it, as a chat template's, gets no second one; a cut one keeps it.
    assert ours.encode([words.decode(rows[0])], short) == rows[:1]
    (cut,) = ours.encode([TEXTS[0] * 9], Options(max_new_tokens=40), truncate="left")
    assert cut == [begin, *words(TEXTS[0] * 9, add_special_tokens=False).input_ids[-7:]]
    answers = generate(*load(with_begin, compute_dtype="float32"), TEXTS, max_new_tokens=9)
    for row, answer in zip(rows, answers, strict=False):
        prompt = torch.tensor([row])
        given = {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0}
        out = theirs.generate(prompt, max_new_tokens=9, do_sample=False, **given)
        assert answer == words.decode(out[0, len(row) :], skip_special_tokens=True)


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    "entries",
    [{}, pytest.param({"num_beams": 3, "length_penalty": 2.0}, marks=pytest.mark.slow)],
    ids=str,
)
def test_max_length_counts_without_max_new_tokens_as_in_transformers(
    model, tokenizer, tmp_path, file, entries
):
    import torch
    from transformers import GPT2LMHeadModel

    folder = export_hf(model, tokenizer, tmp_path / "hf")
    (folder / "generation_config.json").unlink()
    entries = {"max_length": 18, "eos_token_id": 279, "min_new_tokens": 3, **entries}
    path = folder / file
    before = json.loads(path.read_text()) if path.exists() else {}

    def answers(**changes):
        path.write_text(json.dumps({**before, **entries, **changes}))
        theirs = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
        rows = [
            theirs.generate(torch.tensor([ids]), pad_token_id=0)[0, len(ids) :].tolist()
            for ids in (tokenizer.encode(text).ids for text in TEXTS)
        ]
        ours = generate(model, tokenizer, TEXTS, directory=folder)
        texts = [tokenizer.decode(row[: row.index(279)] if 279 in row else row) for row in rows]
        assert ours == texts
        return [len(row) for row in rows]

    lengths = [len(tokenizer.encode(text).ids) for text in TEXTS]
    assert len({*lengths}) > 1
    assert answers() == [18 - n for n in lengths]
    assert answers(max_new_tokens=4) == [4] * 3
    path.write_text(json.dumps({**before, **entries}))
    given = generate(model, tokenizer, TEXTS, directory=folder, max_new_tokens=4)
    assert given == generate(model, tokenizer, TEXTS, max_new_tokens=4, **make_given(entries))
    with pytest.raises(ValueError, match=r"prompt 0 has .* max_length is 18; pass --max_new"):
        generate(model, tokenizer, [TEXTS[0] * 2], directory=folder)
    (cut,) = generate(model, tokenizer, [TEXTS[0] * 2], directory=folder, truncate="left")
    assert len(tokenizer.encode(cut).ids) <= 1


def make_given(entries):
    """The entries as keyword arguments."""
    renamed = {"num_beams": "beams", "length_penalty": "length_penalty"}
    given = {ours: entries[name] for name, ours in renamed.items() if name in entries}
    return {"min_new_tokens": 3, **given}


def test_long_prompts_are_refused_or_cut(model, tokenizer):
    long = " ".join(TEXTS * 20)
    with pytest.raises(ValueError, match=r"the model has 48 positions.*--truncate=left"):
        generate(model, tokenizer, ["a", long], max_new_tokens=4)
    cut = generate(model, tokenizer, [long], max_new_tokens=4, truncate="left")
    tail = tokenizer.decode(tokenizer.encode(long).ids[-44:])
    assert cut == generate(model, tokenizer, [tail], max_new_tokens=4)
    with pytest.raises(ValueError, match="truncate='right'"):
        generate(model, tokenizer, [long], truncate="right")
    with pytest.raises(ValueError, match="the model has 48 positions"):
        generate(model, tokenizer, ["a"], max_new_tokens=48, truncate="left")


def test_tokenizers_that_do_not_fit(model):
    larger = train_tokenizer(iter([json.dumps(TEXTS), *TEXTS] * 9), vocab_size=300)
    with pytest.raises(ValueError, match="the tokenizer has id 299"):
        generate(model, larger, ["a"])
    with pytest.raises(ValueError, match="no tokenizer"):
        generate(model, None, ["a"])


def test_a_directorys_generation_settings_apply_as_in_the_command(
    model, tokenizer, tmp_path, capsys
):
    given = {"max_new_tokens": 9, "num_beams": 3, "eos_token_id": 299, "bos_token_id": 40}
    folder = export_hf(model, tokenizer, tmp_path / "model", generation=given)
    answers = generate(model, tokenizer, [TEXTS[0], ""], directory=folder)
    assert answers[:1] == generate(model, tokenizer, TEXTS[:1], max_new_tokens=9, beams=3)
    begin = tokenizer.decode([40])
    assert answers[1:] == generate(model, tokenizer, [begin], max_new_tokens=9, beams=3)
    for prompt, answer in zip((TEXTS[0], ""), answers, strict=True):
        assert main(["generate", f"--model={folder}", f"--prompt={prompt}", "--nonotice"]) == 0
        assert capsys.readouterr().out.split("] ", 1)[1] == answer + "\n"
    greedy = generate(model, tokenizer, TEXTS[:1], directory=folder, beams=1)
    assert greedy == generate(model, tokenizer, TEXTS[:1], max_new_tokens=9)
    assert greedy != answers[:1]


def test_stats_leave_compilation_out(generator, tokenizer):
    generator.stats = Stats(generator.decoder)
    prompt = tokenizer.encode(TEXTS[0]).ids
    for _ in range(2):
        generator.answers([prompt] * 3, Options(max_new_tokens=5))
    assert generator.stats.decode_tokens <= 15
    text = "\n".join(generator.stats.lines())
    assert "tokens/s" in text
    assert "MB/token" in text
