"""tokenizer.py: the published recipe, lossless, exact in size, and one identity in every format."""

import json
import os
import random

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from biomedlm_jax.corpus.documents import read_documents
from biomedlm_jax.corpus.tokenizer import (
    END_OF_TEXT,
    FILES,
    holds_tokenizer,
    load_tokenizer,
    prefix_ids,
    save_tokenizer,
    tokenizer_hash,
    train_tokenizer,
)
from biomedlm_jax.errors import InputError

SIZE = 400
AWKWARD = [
    "",
    " ",
    "  two  spaces\t\n\n\r\n end ",
    "it's, . don't ! n't",
    "\x00\x01\x7f\x80\xa0\xad\u2028\ufeff\ufffd\uffff\U0010ffff",
    "é e\u0301 ﬁ İ 漢字 🧬👩‍🔬 עברית",
    "Ġ Ċ <unk> </s>",
    f"a{END_OF_TEXT} b{END_OF_TEXT}",
]


def corpus(seed: int = 0) -> list[str]:
    """Sentences of invented words whose pairs repeat often enough for `SIZE` entries."""
    rng = random.Random(seed)
    parts = ["cardi", "neur", "osis", "itis", "ology", "gen", "ase", "hyper", "myo", "é", "β-"]
    words = ["".join(rng.choices(parts, k=3)) for _ in range(100)]
    return [" ".join(rng.choices(words, k=30)) + "." for _ in range(50)]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_tokenizer(corpus(), vocab_size=SIZE)


@pytest.mark.parametrize("size", [257, 258, SIZE])
def test_size_is_exact_and_the_end_of_text_is_last(size):
    tokenizer = train_tokenizer(iter(corpus()), vocab_size=size)
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))
    assert tokenizer.get_vocab_size() == size
    assert tokenizer.token_to_id(END_OF_TEXT) == size - 1
    assert tokenizer.encode(f"a{END_OF_TEXT}").ids[-1] == size - 1
    alphabet = {tokenizer.id_to_token(i) for i in range(256)}
    assert alphabet == set(pre_tokenizers.ByteLevel.alphabet())


def test_recipe(trained):
    state = json.loads(trained.to_str())
    parts = ("pre_tokenizer", "decoder", "post_processor")
    assert [state[part]["type"] for part in parts] == ["ByteLevel"] * 3
    assert state["pre_tokenizer"]["add_prefix_space"] is False
    assert state["post_processor"]["trim_offsets"] is True
    assert state["normalizer"] is None
    # A pair that occurs once is no entry: "ab" repeats, "cd" does not.
    assert "ab" in train_tokenizer(["ab ab cd"], vocab_size=258).get_vocab()
    with pytest.raises(ValueError, match=r"too small for vocab_size=259: .* make 258 entries"):
        train_tokenizer(["ab ab cd"], vocab_size=259)


def test_training_twice_gives_the_same_tokenizer(trained):
    assert tokenizer_hash(train_tokenizer(corpus(), vocab_size=SIZE)) == tokenizer_hash(trained)
    assert tokenizer_hash(train_tokenizer(corpus(1), vocab_size=SIZE)) != tokenizer_hash(trained)


def test_training_refuses_what_cannot_be(tmp_path):
    with pytest.raises(
        ValueError, match="got vocab_size=256; expected at least 257: 256 bytes and"
    ):
        train_tokenizer(corpus(), vocab_size=256)
    bad = tmp_path / "a.jsonl"
    bad.write_text('{"text": "fine"}\n{')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: expected a JSON object, got '{'"):
        train_tokenizer((d.text for d in read_documents([bad])), vocab_size=257)


def round_trips(tokenizer: Tokenizer, text: str) -> bool:
    ids = tokenizer.encode(text).ids
    return tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", AWKWARD)
def test_round_trip_of_awkward_text(trained, text):
    assert round_trips(trained, text)


def test_round_trip_of_any_text(trained):
    rng = random.Random(0)
    for _ in range(300):
        top = rng.choice([0x80, 0x800, 0xD800, 0x110000])
        points = [p for p in rng.choices(range(top), k=50) if not 0xD800 <= p < 0xE000]
        assert round_trips(trained, "".join(map(chr, points)))


def test_saved_files_load_as_the_same_tokenizer(trained, tmp_path):
    assert save_tokenizer(trained, tmp_path / "a/b") == [tmp_path / "a/b" / name for name in FILES]
    saved = tmp_path / "a/b"
    assert sorted(os.listdir(saved)) == sorted(FILES)
    pairs = {"hf": ("vocab.json", "merges.txt"), "gpt2": ("encoder.json", "vocab.bpe")}
    for directory, names in pairs.items():
        (tmp_path / directory).mkdir()
        for name, source in zip(names, pairs["hf"], strict=True):
            (tmp_path / directory / name).write_bytes((saved / source).read_bytes())
    compact = tmp_path / "compact.json"
    state = json.loads((saved / "tokenizer.json").read_text())
    compact.write_text(json.dumps(dict(reversed(state.items()))))
    for path in (saved, saved / "tokenizer.json", compact, tmp_path / "hf", tmp_path / "gpt2"):
        loaded = load_tokenizer(path)
        assert tokenizer_hash(loaded) == tokenizer_hash(trained)
        for text in [*AWKWARD, *corpus(1)]:
            assert loaded.encode(text).ids == trained.encode(text).ids
            assert round_trips(loaded, text)


def test_hash_sees_entries_merges_and_added_tokens(trained):
    state = json.loads(trained.to_str())
    other = load_state(
        state | {"model": state["model"] | {"merges": state["model"]["merges"][:-1]}}
    )
    more = load_state(state)
    more.add_special_tokens([AddedToken("[PAD]")])
    swapped = dict(state["model"]["vocab"])
    swapped["a"], swapped["b"] = swapped["b"], swapped["a"]
    third = load_state(state | {"model": state["model"] | {"vocab": swapped}})
    assert len({tokenizer_hash(t) for t in (trained, other, more, third)}) == 4
    assert len(tokenizer_hash(trained)) == 64


def load_state(state: dict) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(state))


@pytest.mark.parametrize(
    ("template", "before"),
    [("", 0), ("<|bos|> $A", 1), ("<|bos|> $A <|eos|>", 1), ("$A <|eos|>", 0)],
)
def test_only_what_precedes_a_text_is_its_prefix(trained, template, before):
    tokenizer = Tokenizer.from_str(trained.to_str())
    tokenizer.add_special_tokens(["<|bos|>", "<|eos|>"])
    if template:
        special = [(name, tokenizer.token_to_id(name)) for name in ("<|bos|>", "<|eos|>")]
        tokenizer.post_processor = processors.TemplateProcessing(template, None, special)
    assert prefix_ids(tokenizer) == [tokenizer.token_to_id("<|bos|>")] * before


def test_saving_never_overwrites(trained, tmp_path):
    (tmp_path / "model.safetensors").write_text("weights")
    save_tokenizer(trained, tmp_path)  # beside a model without a tokenizer
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"tokenizer\.json exists; name another directory"):
        save_tokenizer(trained, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"vocab\.json exists"):
        save_tokenizer(trained, tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()} | {
        tmp_path / "tokenizer.json": before[tmp_path / "tokenizer.json"]
    }
    with pytest.raises(InputError, match="is a file; name a directory"):
        save_tokenizer(trained, tmp_path / "vocab.json")


def test_only_a_directory_with_nothing_else_holds_a_tokenizer(trained, tmp_path):
    assert not holds_tokenizer(tmp_path)
    save_tokenizer(trained, tmp_path)
    assert holds_tokenizer(tmp_path)
    (tmp_path / ".cache").touch()
    assert not holds_tokenizer(tmp_path)


def test_only_a_byte_level_bpe_with_an_end_is_saved(trained, tmp_path):
    no_end = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    no_end.pre_tokenizer = pre_tokenizers.ByteLevel()
    words = Tokenizer(models.WordLevel({END_OF_TEXT: 0}))
    for tokenizer, got in ((no_end, "BPE with ByteLevel"), (words, "WordLevel with None")):
        with pytest.raises(ValueError, match=f"expected a byte-level BPE with .*, got {got}"):
            save_tokenizer(tokenizer, tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_loading_explains_what_is_missing_or_broken(tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer at .*nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "vocab.json").write_text("{}")  # without merges.txt
    known = "tokenizer.json, vocab.json with merges.txt, encoder.json with vocab.bpe"
    with pytest.raises(ValueError, match=f"no tokenizer in .*; expected one of {known}"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(ValueError, match=f"cannot read the tokenizer in {tmp_path}: .*out of voc"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=f"{tmp_path}/tokenizer.json: expected a JSON object"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("entry", "index", "message"),
    [("b", 2**31, "has the id 2147483648"), ("b", 3, "has the id 3 twice: 'b', '!'")],
)
def test_ids_that_a_tokenizer_cannot_have(trained, tmp_path, entry, index, message):
    """`tokenizers` would write 2**31 entries, or either of the two at random."""
    state = json.loads(trained.to_str())
    state["model"]["vocab"][entry] = index
    if index == 3:
        state["model"]["vocab"]["!"] = 3
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(InputError, match="the tokenizer in .*" + message.split(":")[0]):
            load_tokenizer(path)


def test_a_corpus_is_tokenised_whole(trained, tmp_path):
    short = load_state(json.loads(trained.to_str()))
    short.enable_truncation(3)
    short.enable_padding(length=50)
    short.save(str(tmp_path / "tokenizer.json"))
    text = corpus()[0]
    assert load_tokenizer(tmp_path).encode(text).ids == trained.encode(text).ids


def test_transformers_loads_what_was_saved(trained, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_tokenizer(trained, tmp_path / "all", model_max_length=1024)
    save_tokenizer(trained, tmp_path / "tables", model_max_length=1024)
    (tmp_path / "tables/tokenizer.json").unlink()
    for loader in (transformers.AutoTokenizer, transformers.GPT2TokenizerFast):
        for name in ("all", "tables"):
            theirs = loader.from_pretrained(tmp_path / name)
            assert (len(theirs), theirs.model_max_length) == (SIZE, 1024)
            assert theirs.bos_token_id == theirs.eos_token_id == theirs.unk_token_id == SIZE - 1
            assert theirs.pad_token is None
            for text in [*AWKWARD, *corpus(1)]:
                ids = theirs(text)["input_ids"]
                assert ids == trained.encode(text).ids
                assert theirs.decode(ids) == text
