"""tokenizer.py: the published recipe, lossless, exact in size, and one identity in every format."""

import json
import os
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from biomedlm_jax.corpus.documents import read_documents
from biomedlm_jax.corpus.tokenizer import (
    END_OF_TEXT,
    FILES,
    TERMS,
    compare_tokenizers,
    load_tokenizer,
    save_tokenizer,
    tokenizer_hash,
    train_tokenizer,
)

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


def biomedlm(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "biomedlm_jax.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def fails(*arguments: object) -> str:
    """The one line that a command leaves on standard error."""
    done = biomedlm(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line


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
    with pytest.raises(ValueError, match="got vocab_size=256; it is at least 257: 256 bytes and"):
        train_tokenizer(corpus(), vocab_size=256)
    bad = tmp_path / "a.jsonl"
    bad.write_text('{"text": "fine"}\n{')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: got '{', which is no JSON"):
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


def test_saving_overwrites_only_when_told(trained, tmp_path):
    (tmp_path / "vocab.json").write_text("mine")
    with pytest.raises(FileExistsError, match=r"vocab\.json exists; name another .*--overwrite"):
        save_tokenizer(trained, tmp_path)
    assert os.listdir(tmp_path) == ["vocab.json"]
    assert (tmp_path / "vocab.json").read_text() == "mine"
    save_tokenizer(trained, tmp_path, overwrite=True)
    assert json.loads((tmp_path / "vocab.json").read_text())[END_OF_TEXT] == SIZE - 1
    with pytest.raises(NotADirectoryError, match="is a file; name a directory"):
        save_tokenizer(trained, tmp_path / "vocab.json")


def test_a_models_tokenizer_is_never_overwritten(trained, tmp_path):
    (tmp_path / "model.safetensors").write_text("weights")
    save_tokenizer(trained, tmp_path)  # beside a model that has none
    before = (tmp_path / "vocab.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"a tokenizer beside model\.safetensors"):
        save_tokenizer(trained, tmp_path, overwrite=True)
    assert (tmp_path / "vocab.json").read_bytes() == before


def test_only_a_byte_level_bpe_with_an_end_is_saved(trained, tmp_path):
    no_end = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    no_end.pre_tokenizer = pre_tokenizers.ByteLevel()
    words = Tokenizer(models.WordLevel({END_OF_TEXT: 0}))
    for tokenizer, got in ((no_end, "got BPE with ByteLevel"), (words, "got WordLevel with None")):
        with pytest.raises(ValueError, match=f"{got}.*only a byte-level BPE with "):
            save_tokenizer(tokenizer, tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_loading_explains_what_is_missing_or_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*nowhere"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "vocab.json").write_text("{}")  # without merges.txt
    known = "tokenizer.json, vocab.json with merges.txt, encoder.json with vocab.bpe"
    with pytest.raises(ValueError, match=f"no tokenizer in .*; a tokenizer is one of {known}"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(ValueError, match=f"cannot read the tokenizer in {tmp_path}: .*out of voc"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=f"cannot read the tokenizer in {tmp_path}: EOF"):
        load_tokenizer(tmp_path)


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


def test_comparison_counts_what_each_tokenizer_makes(trained):
    bytes_only = train_tokenizer(corpus(), vocab_size=257)
    texts = corpus(1) * 6  # more than one batch
    entries = sorted(entry for entry in trained.get_vocab() if entry.startswith("Ġhyper"))
    term = next(entry[1:] for entry in entries if entry[1:].isascii())
    reports = compare_tokenizers({"b": bytes_only, "t": trained}, iter(texts), [term, "zygote"])
    size = sum(len(text.encode()) for text in texts)
    assert [report.name for report in reports] == ["b", "t"]
    assert [report.bytes for report in reports] == [size, size]
    assert [report.vocab_size for report in reports] == [257, SIZE]
    assert [report.hash for report in reports] == [*map(tokenizer_hash, (bytes_only, trained))]
    assert reports[0].tokens == size
    assert reports[1].tokens == sum(len(trained.encode(text).ids) for text in texts)
    assert reports[1].bytes_per_token == size / reports[1].tokens > 1.5
    assert reports[0].whole_terms == []
    assert reports[1].whole_terms == [term]
    assert reports[1].terms[term] == [term]
    assert "".join(reports[1].terms["zygote"]) == "zygote"
    for tokenizers, given in (({}, texts), ({"t": trained}, [])):
        with pytest.raises(ValueError, match="give some of both"):
            compare_tokenizers(tokenizers, given)


def test_commands(tmp_path):
    text, out = tmp_path / "a.jsonl", tmp_path / "tok"
    text.write_text("".join(json.dumps({"text": t}) + "\n" for t in corpus()) + "{\n")
    train = ["train-tokenizer", f"--input={text},{text}", f"--vocab_size={SIZE}", f"--out={out}"]
    assert f"{text}:51: got '{{', which is no JSON object" in fails(*train)
    assert not out.exists()
    done = biomedlm(*train, "--on_error=skip")
    assert (done.returncode, done.stderr) == (0, "")
    expected = tokenizer_hash(train_tokenizer(corpus(), vocab_size=SIZE))
    assert f"{SIZE} entries, {expected}" in done.stdout
    assert "50 documents" in done.stdout
    assert "skipped    1 bad lines" in done.stdout
    assert "tokenizer.json exists" in fails(*train, "--on_error=skip")
    defaults = [*train[:2], f"--out={tmp_path / 'b'}", "--on_error=skip"]
    assert "too small for vocab_size=28896" in fails(*defaults)
    figures = tmp_path / "figures.json"
    compare = ["compare-tokenizers", f"--tokenizer=a={out}", f"--tokenizer=[/b]={out}"]
    tail = [f"--input={text}", "--max_documents=50", "--terms=gen,[/x]", f"--json={figures}"]
    done = biomedlm(*compare, *tail)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = json.loads(figures.read_text())
    assert (first["name"], second["name"]) == ("a", "[/b]")
    assert first["tokens"] == second["tokens"] > 0
    assert list(first["terms"]) == ["gen", "[/x]"]
    assert f"{first['tokens']:,}" in done.stdout
    assert "give each tokenizer as NAME=PATH" in fails(*compare[:2], compare[1], *tail)
    assert "--max_documents=0" in fails(*compare, f"--input={text}", "--max_documents=0")


@pytest.mark.skipif(not os.environ.get("BIOMEDLM_DATA"), reason="BIOMEDLM_DATA is not set")
def test_real_abstracts_keep_a_term_whole_that_gpt2_splits():
    data = Path(os.environ["BIOMEDLM_DATA"])
    gpt2 = load_tokenizer(data / "gpt2_tokenizer")
    assert (gpt2.get_vocab_size(), gpt2.token_to_id(END_OF_TEXT)) == (50_257, 50_256)
    assert gpt2.encode("Hello world").ids == [15496, 995]
    paths = [data / "pubmed_text/abstracts_ccby.jsonl.gz"]
    texts = [document.text for document in read_documents(paths, text_field="title,abstract")]
    ours = train_tokenizer(islice(texts, 2000), vocab_size=8_000)
    reports = compare_tokenizers({"gpt2": gpt2, "ours": ours}, texts[2000:])
    assert reports[0].whole_terms == []
    assert reports[0].terms["myocardium"] == ["my", "ocard", "ium"]
    assert reports[1].whole_terms == ["probiotic"]
    assert tuple(reports[1].terms) == TERMS
