"""huggingface_tokenizer.py: the token ids of transformers' AutoTokenizer, layout by layout."""

import functools
import json
import random
import re
import warnings

import pytest
import tiny
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from biomedlm_jax.corpus.tokenizer import (
    END_OF_TEXT,
    copy_tokenizer,
    load_tokenizer,
    save_tokenizer,
    special_id,
    tokenizer_hash,
    train_tokenizer,
)
from biomedlm_jax.interop.verify import PROBE

transformers = pytest.importorskip("transformers", reason="parity is with transformers")

SIZE = 400
TEXTS = [
    "",
    "Hepatology of 24 mice (p < 0.05), TNF-β and IL-10: 3.14e-2 µg/ml.",
    "  leading spaces\tand a tab\r\n\r\nnew lines \n",
    "naïve Überdosis, 漢字かな交じり文, עברית, العربية, हिन्दी, ไทย, Ελληνικά",
    "e\u0301 is not \u00e9, ﬁ is not fi, Ⅳ is not IV, ½",
    "🧬👩‍🔬🇩🇪 and \U0010ffff",
    "\x00\x01\x1b\x7f\x85\xa0\xad\u200b\u2028\ufeff\ufffd",
    "can't, WON'T, it's 1234567890 2,500",
    " <|x|> a<|x|>b<|x|> <|endoftext|>x <|startoftext|> </s> <s> [PAD] [SEP] <EOS> wide word",
]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    rng = random.Random(0)
    parts = ["cardi", "neur", "osis", "itis", "ology", "gen", "ase", "hyper", "wide ", "é", "<|x"]
    words = ["".join(rng.choices(parts, k=3)) for _ in range(100)]
    corpus = [" ".join(rng.choices(words, k=30)) + "." for _ in range(50)]
    return train_tokenizer(corpus, vocab_size=SIZE)


def write(directory, **files) -> None:
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value))


def tables(trained, directory) -> None:
    """vocab.json and merges.txt, as older releases have them."""
    save_tokenizer(trained, directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (directory / name).unlink()


def whole(trained, directory, **changes) -> None:
    """tokenizer.json alone, with other parts."""
    state = json.loads(trained.to_str())
    for name, part in changes.items():
        state[name] = part if isinstance(part, dict) else json.loads(part.__getstate__())
    write(directory, tokenizer=state)


def saved(trained, directory, *, added=(), **settings) -> None:
    """What transformers 5 saves of a GPT2Tokenizer."""
    vocabulary = trained.get_vocab(with_added_tokens=False)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    theirs = transformers.GPT2Tokenizer(vocab=vocabulary, merges=merges, **settings)
    theirs.add_tokens(list(added))
    theirs.save_pretrained(directory)


def characters(directory) -> None:
    """A BPE of characters, as of SentencePiece: unknown ones become their bytes."""
    names = ["<unk>", "<s>", END_OF_TEXT, *(f"<0x{i:02X}>" for i in range(256)), *"▁abcdehist"]
    names += ["▁a", "th", "is"]
    vocabulary = {name: i for i, name in enumerate(names)}
    merges = [("▁", "a"), ("t", "h"), ("i", "s")]
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(["<unk>", "<s>", END_OF_TEXT])
    tokenizer.save(str(directory / "tokenizer.json"))


X = AddedToken("<|x|>", normalized=False)
MARKER = {"content": "<|x|>", "lstrip": True, "rstrip": True, "normalized": False, "special": True}
END = {"content": END_OF_TEXT, "lstrip": False, "rstrip": False, "normalized": False}
NFC, WORDS = normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=True)
SPLIT = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(use_regex=False)]
)
LOWER = normalizers.Sequence(
    [normalizers.NFKC(), normalizers.StripAccents(), normalizers.Lowercase()]
)
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
SLOW = {"tokenizer_class": "GPT2Tokenizer"}
BOS = processors.TemplateProcessing(
    single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, SIZE - 1)]
)
LAYOUTS = {
    "tables": lambda t, d: tables(t, d),
    "tables, added token": lambda t, d: (tables(t, d), write(d, added_tokens={"<|x|>": SIZE})),
    "tables, added tokens that strip": lambda t, d: (
        tables(t, d),
        write(
            d,
            tokenizer_config={
                **SLOW,
                "added_tokens_decoder": {
                    str(SIZE - 1): {**END, "special": True},
                    str(SIZE): MARKER,
                },
            },
        ),
    ),
    "tables, special tokens map": lambda t, d: (
        tables(t, d),
        write(
            d,
            added_tokens={"<|startoftext|>": SIZE, "[PAD]": SIZE + 1, "wide word": SIZE + 2},
            special_tokens_map={"bos_token": "<|startoftext|>", "pad_token": "[PAD]"},
        ),
    ),
    "tables, special tokens with flags": lambda t, d: (
        tables(t, d),
        write(
            d,
            special_tokens_map={
                "bos_token": END,
                "eos_token": {**END, "content": "</s>", "lstrip": True},
                "additional_special_tokens": ["<|x|>", "[SEP]"],
            },
        ),
    ),
    "tables, prefix space": lambda t, d: (
        tables(t, d),
        write(d, tokenizer_config={**SLOW, "add_prefix_space": True}),
    ),
    "tables, adds bos and eos": lambda t, d: (
        tables(t, d),
        write(
            d,
            tokenizer_config={
                **SLOW,
                "add_bos_token": True,
                "add_eos_token": True,
                "bos_token": "<s>",
            },
        ),
    ),
    "tables, other names of tokens": lambda t, d: (
        tables(t, d),
        write(d, tokenizer_config={**SLOW, "image_token": "<|x|>", "sep_token": "[SEP]"}),
    ),
    "whole, of the fast class": lambda t, d: (whole(t, d), write(d, tokenizer_config=FAST)),
    "whole, without a class": lambda t, d: whole(t, d),
    "whole, normalizer, fast class": lambda t, d: (
        whole(t, d, normalizer=NFC),
        write(d, tokenizer_config=FAST),
    ),
    "whole, normalizer, GPT2Tokenizer": lambda t, d: (
        whole(t, d, normalizer=NFC),
        write(d, tokenizer_config=SLOW),
    ),
    "whole, lower case, fast class": lambda t, d: (
        whole(t, d, normalizer=LOWER),
        write(d, tokenizer_config=FAST),
    ),
    "whole, byte fallback, fast class": lambda t, d: (
        whole(t, d, model=json.loads(t.to_str())["model"] | {"byte_fallback": True}),
        write(d, tokenizer_config={**FAST, "unk_token": END_OF_TEXT}),
    ),
    "whole, characters and bytes": lambda t, d: (characters(d), write(d, tokenizer_config=FAST)),
    "whole, prefix space, fast class": lambda t, d: (
        whole(t, d, pre_tokenizer=WORDS),
        write(d, tokenizer_config=FAST),
    ),
    "whole, prefix space, GPT2Tokenizer": lambda t, d: (
        whole(t, d, pre_tokenizer=WORDS),
        write(d, tokenizer_config=SLOW),
    ),
    "whole, digits one by one": lambda t, d: (
        whole(t, d, pre_tokenizer=SPLIT),
        write(d, tokenizer_config={**FAST, "eos_token": "<EOS>", "pad_token": "[PAD]"}),
    ),
    "whole, template with bos": lambda t, d: (
        whole(t, d, post_processor=BOS),
        write(d, tokenizer_config={**SLOW, "add_bos_token": False}),
    ),
    "whole, list of added tokens elsewhere": lambda t, d: (
        saved(t, d, added=[X, AddedToken("wide word", normalized=True)]),
        write(d, tokenizer_config={**SLOW, "added_tokens_decoder": {"399": END, "400": MARKER}}),
    ),
    "whole, padding": lambda t, d: (
        whole(t, d, padding=padding()),
        write(d, tokenizer_config=FAST),
    ),
    "whole, padding, GPT2Tokenizer": lambda t, d: (
        whole(t, d, padding=padding()),
        write(d, tokenizer_config=SLOW),
    ),
    "whole, extra tokens as object and list": lambda t, d: (
        whole(t, d),
        write(d, tokenizer_config={**FAST, **EXTRA}),
    ),
    "saved": lambda t, d: saved(t, d),
    "saved, added tokens": lambda t, d: saved(t, d, added=[X, "wide word"]),
    "saved, start, end and padding": lambda t, d: saved(
        t, d, bos_token="<|startoftext|>", eos_token="</s>", pad_token="[PAD]"
    ),
    "saved, extra special tokens": lambda t, d: saved(
        t, d, extra_special_tokens=["<|x|>", "<EOS>"], add_prefix_space=True
    ),
    "saved, adds bos": lambda t, d: saved(t, d, add_bos_token=True, bos_token="<s>"),
    "of a Llama class": lambda t, d: (
        whole(t, d, pre_tokenizer=SPLIT),
        write(d, tokenizer_config={"tokenizer_class": "LlamaTokenizerFast"}),
    ),
}


EXTRA = {
    "extra_special_tokens": {"image_token": "<EOS>"},
    "additional_special_tokens": ["<|x|>", "<s>"],
}


def padding() -> dict:
    side = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None}
    return {**side, "pad_id": SIZE, "pad_type_id": 0, "pad_token": "[PAD]"}


def assert_alike(ours: Tokenizer, directory, texts=TEXTS) -> None:
    """The ids of AutoTokenizer, with special tokens and without, and its special tokens."""
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    for text in texts:
        for special in (True, False):
            expected = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours.encode(text, add_special_tokens=special).ids == expected, text
        ids = theirs(text)["input_ids"]
        for skip in (True, False):
            text_again = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special_tokens=skip) == text_again
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert special_id(ours, name) == getattr(theirs, f"{name}_id"), name
    assert ours.get_vocab() == theirs.get_vocab()


@pytest.fixture(params=LAYOUTS)
def layout(request, trained, tmp_path):
    directory = tmp_path / "source"
    directory.mkdir()
    LAYOUTS[request.param](trained, directory)
    write(directory, config={"model_type": "gpt2"})
    return directory


@pytest.mark.filterwarnings("ignore:.*leaves out of a GPT2Tokenizer")
def test_ids_are_those_of_transformers_and_files_stay_as_they_are(layout, tmp_path):
    tokenizer = load_tokenizer(layout)
    assert_alike(tokenizer, layout)
    files = {
        path.name: path.read_bytes() for path in layout.iterdir() if path.name != "config.json"
    }
    copy = tmp_path / "copy"
    save_tokenizer(tokenizer, copy)
    written = {path.name: path.read_bytes() for path in copy.iterdir()}
    assert {name: written[name] for name in files} == files
    assert set(written) - set(files) <= {"tokenizer.json", "tokenizer_config.json"}
    write(copy, config={"model_type": "gpt2"})
    assert_alike(load_tokenizer(copy), copy)
    # Read and written once more without the config of a model.
    (copy / "config.json").unlink()
    save_tokenizer(load_tokenizer(copy), tmp_path / "rows")
    write(tmp_path / "rows", config={"model_type": "gpt2"})
    assert_alike(tokenizer, tmp_path / "rows")


@pytest.mark.filterwarnings("ignore:.*leaves out of a GPT2Tokenizer")
def test_tokens_of_a_head_are_added_to_the_files(layout, tmp_path):
    grown = copy_tokenizer(load_tokenizer(layout))
    grown.add_special_tokens(["[CLS]", "<|ANSWER|>"])
    save_tokenizer(grown, tmp_path / "grown")
    write(tmp_path / "grown", config={"model_type": "gpt2"})
    assert_alike(grown, tmp_path / "grown")
    loaded = load_tokenizer(tmp_path / "grown")
    assert grown.encode("a <|ANSWER|>b[CLS]").ids == loaded.encode("a <|ANSWER|>b[CLS]").ids


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens": {"<|x|>": SIZE + 5}}, "'<|x|>' as id 405, where transformers gives it"),
        ({"tokenizer_config": {"tokenizer_class": "RobertaTokenizer"}}, "class RobertaTokenizer"),
        ({"tokenizer_config": FAST}, "which needs tokenizer.json"),
        ({"tokenizer_config": {"split_special_tokens": True}}, "split_special_tokens=True"),
        ({"tokenizer_config": {"auto_map": {"AutoTokenizer": ["a.B", None]}}}, "has auto_map="),
    ],
)
def test_what_cannot_be_built_is_refused(trained, tmp_path, files, message):
    tables(trained, tmp_path)
    write(tmp_path, config={"model_type": "gpt2"}, **files)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        load_tokenizer(tmp_path)
    assert message in str(caught.value)


def test_parts_that_transformers_leaves_out_are_named(trained, tmp_path):
    whole(trained, tmp_path, normalizer=NFC, pre_tokenizer=WORDS)
    write(tmp_path, config={"model_type": "gpt2"})
    parts = "normalizer NFC, pre_tokenizer ByteLevel.add_prefix_space=True, use_regex=True., which"
    with pytest.warns(RuntimeWarning, match=parts):
        tokenizer = load_tokenizer(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [tokenizer.encode(text).ids for text in TEXTS] == [theirs(t)["input_ids"] for t in TEXTS]


def test_the_model_of_another_directory_does_not_change_the_tokenizer(trained, tmp_path):
    whole(trained, tmp_path, normalizer=NFC)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.normalizer is not None
    run = tmp_path / "run"
    run.mkdir()
    write(run, config={"model": {"model_type": "gpt2"}})
    save_tokenizer(tokenizer, run)
    assert load_tokenizer(run).to_str() == tokenizer.to_str()


def test_a_file_is_read_as_it_is_and_saved_for_every_version(trained, tmp_path):
    whole(trained, tmp_path, normalizer=NFC)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.normalizer is not None
    save_tokenizer(tokenizer, tmp_path / "copy")
    write(tmp_path / "copy", config={"model_type": "gpt2"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "copy")
    for text in TEXTS:
        assert theirs(text)["input_ids"] == tokenizer.encode(text).ids


NAMES = ["<|x|>", "<s>", "</s>", "[PAD]", "<|startoftext|>", END_OF_TEXT, "<EOS>", "[SEP]"]


def random_files(rng: random.Random) -> dict[str, dict]:
    """The contents of three files that may contradict one another."""

    def flags(content: str) -> dict:
        names = ("lstrip", "rstrip", "single_word", "normalized", "special")
        return {"content": content, **{name: rng.random() < 0.4 for name in names}}

    def token() -> str | dict | None:
        name = rng.choice(NAMES)
        return rng.choice([name, name, None, {"__type": "AddedToken", **flags(name)}])

    keys = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "image_token")
    config: dict = {key: token() for key in keys if rng.random() < 0.3}
    config |= rng.choice([{}, SLOW, {"add_prefix_space": True}, {"add_bos_token": True}])
    others = [name for name in NAMES if name != END_OF_TEXT]
    if rng.random() < 0.3:
        listed = [END_OF_TEXT, *rng.sample(others, 3)]
        config["added_tokens_decoder"] = {
            str(SIZE - 1 + i): flags(name) for i, name in enumerate(listed)
        }
    special: dict = {key: rng.choice(NAMES) for key in keys[:4] if rng.random() < 0.3}
    special |= rng.choice([{}, {"additional_special_tokens": rng.sample(NAMES, 2)}])
    added = {name: SIZE + i for i, name in enumerate(rng.sample(others, 3))}
    files = {"tokenizer_config": config, "special_tokens_map": special, "added_tokens": added}
    return {name: value for name, value in files.items() if rng.random() < 0.7}


@pytest.mark.filterwarnings("ignore:.*leaves out of a GPT2Tokenizer")
@pytest.mark.parametrize("seed", range(40))
def test_files_that_contradict_one_another_give_the_same_ids_or_an_error(trained, tmp_path, seed):
    rng = random.Random(seed)
    (whole if seed % 2 else tables)(trained, tmp_path)
    write(tmp_path, config={"model_type": "gpt2"}, **random_files(rng))
    refused = ""
    try:
        tokenizer = load_tokenizer(tmp_path)
    except ValueError as error:
        refused = str(error)
    if refused:
        assert "where transformers gives it" in refused
        return
    assert_alike(tokenizer, tmp_path)
    grown = copy_tokenizer(tokenizer)
    grown.add_special_tokens(["[CLS]"])
    save_tokenizer(grown, tmp_path / "grown")
    write(tmp_path / "grown", config={"model_type": "gpt2"})
    assert_alike(grown, tmp_path / "grown")


PHRASES = ["The heart 's chambers don't stop , do they ?", "We 've 'seen ' it . They 're here !"]
SPECIAL = {"special_tokens": ["<unk>", END_OF_TEXT], "show_progress": False}


def of_words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(PHRASES, trainers.WordLevelTrainer(**SPECIAL))
    return tokenizer


def of_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.train_from_iterator(PHRASES, trainers.WordPieceTrainer(vocab_size=90, **SPECIAL))
    return tokenizer


def of_unigrams() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=50, unk_token="<unk>", **SPECIAL)
    tokenizer.train_from_iterator(PHRASES, trainer)
    return tokenizer


def of_bytes() -> Tokenizer:
    return train_tokenizer(PHRASES * 9, vocab_size=290)


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("make", [of_words, of_pieces, of_unigrams, of_bytes])
def test_decoding_removes_the_spaces_that_transformers_removes(make, forced, tmp_path):
    made = make()
    made.save(str(tmp_path / "tokenizer.json"))
    clean = "clean_up_tokenization_spaces"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", clean: True}
    config[f"{clean}_for_bpe_even_though_it_will_corrupt_output"] = forced
    write(tmp_path, tokenizer_config=config)
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    rng, changed = random.Random(0), 0
    for _ in range(500):
        ids = [rng.randrange(made.get_vocab_size()) for _ in range(rng.randrange(14))]
        for skip in (True, False):
            text = ours.decode(ids, skip_special_tokens=skip)
            assert text == theirs.decode(ids, skip_special_tokens=skip)
            changed += text != made.decode(ids, skip_special_tokens=skip)
    assert (changed > 0) is (forced or make is not of_bytes)
    save_tokenizer(ours, tmp_path / "saved")
    saved, before = (tmp_path / part / "tokenizer.json" for part in ("saved", ""))
    assert saved.read_bytes() == before.read_bytes()


def test_a_model_of_another_kind_that_the_class_rebuilds_is_read(trained, tmp_path):
    """GPT2Tokenizer takes vocabulary and merges only; `tokenizers` panics on the whole file."""
    save_tokenizer(trained, tmp_path)
    file = tmp_path / "tokenizer.json"
    whole = json.loads(file.read_text())
    whole["model"]["continuing_subword_prefix"] = "##"
    file.write_text(json.dumps(whole))
    ours, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text)
    with pytest.raises(ValueError, match="cannot read the tokenizer in"):
        load_tokenizer(file)


def test_random_ids_are_told(trained, tmp_path):
    save_tokenizer(trained, tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    whole["model"]["dropout"] = 0.1
    write(
        tmp_path, tokenizer=whole, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"}
    )
    with pytest.warns(RuntimeWarning, match=r"has model\.dropout=0\.1: ids are random; set it to"):
        tokenizer = load_tokenizer(tmp_path)
    text = TEXTS[1]
    assert len({tuple(tokenizer.encode(text).ids) for _ in range(50)}) > 1  # as transformers has it


# model_type, tokenizer, settings of tokenizer_config.json, and what transformers leaves out.
PIECES, PAIRS = tiny.sentencepiece, tiny.byte_pairs
SPACES = r"normalizer Prepend \+ Replace, pre_tokenizer none"
SECOND_FAMILY = [
    ("llama", PIECES, {}, SPACES),
    ("llama", PIECES, {"legacy": True}, ""),
    ("llama", PIECES, {"legacy": ...}, SPACES),
    ("llama", PIECES, {"add_prefix_space": False}, SPACES),
    ("llama", PIECES, {"form": "first", "add_eos_token": True, "add_bos_token": False}, ""),
    ("llama", PIECES, {"form": "always", "tokenizer_class": "LlamaTokenizerFast"}, "Metaspace"),
    ("llama", PIECES, {"tokenizer_class": "LLaMATokenizer"}, ""),
    ("llama", PIECES, {"tokenizer_class": ...}, ""),
    ("llama", PIECES, {"pad_token": "[PAD]", "extra_special_tokens": ["<|x|>"]}, SPACES),
    ("llama", PAIRS, {"qwen": False}, ""),
    ("llama", PAIRS, {"qwen": False, "tokenizer_class": "LlamaTokenizer"}, ""),
    ("llama", PAIRS, {"qwen": True}, ""),
    ("mistral", PIECES, {}, ""),
    ("mistral", PIECES, {"tokenizer_class": ..., "legacy": True}, ""),
    ("mistral", PAIRS, {"qwen": True}, ""),
    ("qwen2", PAIRS, {"qwen": True}, ""),
    ("qwen2", PAIRS, {"qwen": True, "tokenizer_class": "PreTrainedTokenizerFast"}, ""),
    ("qwen2", PAIRS, {"qwen": False, "added_tokens_decoder": ...}, r"pre_tokenizer Split \+ Byte"),
    ("qwen2", PIECES, {}, r"model\.byte_fallback, which"),
    ("qwen3", PAIRS, {"qwen": True, "pad_token": "[PAD]", "bos_token": "<s>"}, ""),
    ("qwen3", PAIRS, {"qwen": True, "tokenizer_class": ..., "add_prefix_space": True}, "prefix"),
    ("qwen3", PAIRS, {"qwen": False}, ""),
    ("qwen3", PIECES, {}, SPACES),
]


@pytest.mark.filterwarnings("ignore:.*leaves out of a")
@pytest.mark.parametrize(("model_type", "make", "settings", "left_out"), SECOND_FAMILY)
def test_tokenizers_of_llama_and_its_kin(model_type, make, settings, left_out, tmp_path):
    source, copy, rows = (tmp_path / name for name in ("source", "copy", "rows"))
    config = {"model_type": model_type}
    for directory in (source, copy):
        directory.mkdir()
        write(directory, config=config)
    make(source, **settings)
    (source / "tokenizer.model").write_bytes(b"pieces")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        tokenizer = load_tokenizer(source)
    messages = [str(one.message) for one in caught if "leaves out of a" in str(one.message)]
    assert bool(left_out) == bool(messages)
    assert re.search(left_out, "".join(messages))
    texts = [*TEXTS, *PROBE, *tiny.sentences()[:3], "a</s>b </s> c", "<|eot_id|>a<|im_end|> b"]
    assert_alike(tokenizer, source, texts)
    # Kept as they are, also where no config.json tells the class.
    save_tokenizer(tokenizer, copy)
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == files
    save_tokenizer(tokenizer, rows)
    again = load_tokenizer(rows)
    for text in texts:
        assert again.encode(text).ids == tokenizer.encode(text).ids
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer)
    # Tokens that are added are added to the files; the pieces would lack them.
    grown = copy_tokenizer(tokenizer)
    grown.add_special_tokens(["[CLS]", "<|ANSWER|>"])
    save_tokenizer(grown, copy, overwrite=True)
    assert_alike(load_tokenizer(copy), copy, [*texts, "a<|ANSWER|> b [CLS]"])
    assert load_tokenizer(copy).get_vocab() == grown.get_vocab()


@pytest.mark.filterwarnings("ignore:.*leaves out of a")
@pytest.mark.parametrize("seed", range(24))
def test_contradicting_files_of_the_second_family(tmp_path, seed):
    rng, model_type = random.Random(seed), tiny.TYPES[seed % 4]
    make = PIECES if rng.random() < 0.4 else functools.partial(PAIRS, qwen=rng.random() < 0.6)
    files = random_files(rng)
    names = [*tiny.CLASSES, "PreTrainedTokenizerFast", ...]
    settings = {"tokenizer_class": rng.choice(names), "legacy": rng.random() < 0.5}
    settings |= {k: v for k, v in files.get("tokenizer_config", {}).items() if k != "add_bos_token"}
    settings.pop("added_tokens_decoder", None)
    settings |= {"added_tokens_decoder": ...} if seed % 2 else {}
    make(tmp_path, **settings)
    write(tmp_path, config={"model_type": model_type})
    if "special_tokens_map" in files:
        write(tmp_path, special_tokens_map=files["special_tokens_map"])
    assert_alike(load_tokenizer(tmp_path), tmp_path, [*TEXTS, *PROBE])


def test_only_sentencepiece_is_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")
    write(tmp_path, config={"model_type": "llama"})
    with pytest.raises(ValueError, match=r"expected one of tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_qwen2_would_rebuild_is_refused(trained, tmp_path):
    """transformers has one class for all tokenizers of a qwen2, so the ids would be others."""
    for model_type in ("llama", "mistral", "qwen3"):
        (tmp_path / model_type).mkdir()
        write(tmp_path / model_type, config={"model_type": model_type})
        save_tokenizer(trained, tmp_path / model_type)
        assert_alike(load_tokenizer(tmp_path / model_type), tmp_path / model_type)
    write(tmp_path, config={"model_type": "qwen2"})
    with pytest.raises(ValueError, match="its model_type has a class of its own"):
        save_tokenizer(trained, tmp_path)
