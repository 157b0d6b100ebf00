"""gguf_vocabulary.py: tokens, types, merges and scores, against transformers' tokenizers."""

import dataclasses
import itertools
import json

import pytest
import tiny
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from biomedlm_jax.corpus.tokenizer import copy_tokenizer, load_tokenizer, save_tokenizer
from biomedlm_jax.errors import InputError
from biomedlm_jax.interop.gguf_vocabulary import gguf_vocabulary
from biomedlm_jax.model.gpt2 import GPT2Config
from biomedlm_jax.model.llama import LlamaConfig

SIZES = {"context_length": 64, "layers": 1, "width": 16, "heads": 2}
GPT2 = GPT2Config(vocab_size=300, **SIZES)
LLAMA = LlamaConfig(vocab_size=400, eos_token_id=398, bos_token_id=397, **SIZES)
PIECES = LlamaConfig(vocab_size=400, eos_token_id=2, bos_token_id=1, **SIZES)
TYPES = {"normal": 1, "unknown": 2, "control": 3, "user": 4, "unused": 5, "byte": 6}


def fields_of(tokenizer, config) -> dict:
    return dict(gguf_vocabulary(tokenizer, config, where="here").fields)


def test_our_tokenizer_is_a_gpt2s(tokenizer, tmp_path):
    fields = fields_of(tokenizer, GPT2)
    save_tokenizer(tokenizer, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert {token: i for i, token in enumerate(fields["tokens"])} == theirs.get_vocab()
    assert "\n".join(fields["merges"]) == (tmp_path / "merges.txt").read_text()[14:].rstrip("\n")
    assert (fields["model"], fields["pre"]) == ("gpt2", "gpt-2")
    assert fields["token_type"] == [TYPES["normal"]] * 299 + [TYPES["control"]]
    assert fields["bos_token_id"] == fields["eos_token_id"] == theirs.eos_token_id == 299
    assert (fields["add_bos_token"], fields["add_eos_token"]) == (False, False)


def test_rows_and_added_tokens(tokenizer):
    grown = copy_tokenizer(tokenizer)
    grown.add_tokens([AddedToken("<mark>", special=False)])
    grown.add_special_tokens([AddedToken("[PAD]", lstrip=True, normalized=False), "[UNUSED303]"])
    config = dataclasses.replace(GPT2, vocab_size=305, pad_token_id=301)
    vocabulary = gguf_vocabulary(grown, config, where="here")
    fields = vocabulary.fields
    assert fields["tokens"][300:] == [
        "<mark>",
        "[PAD]",
        "[UNUSED303]",
        "[[UNUSED303]]",
        "[UNUSED304]",
    ]
    assert fields["token_type"][300:] == [
        TYPES[k] for k in ("user", "control", "control", *["unused"] * 2)
    ]
    assert fields["padding_token_id"] == 301
    assert vocabulary.lines == ["llama.cpp ignores lstrip, rstrip and single_word of added tokens"]
    config = dataclasses.replace(GPT2, vocab_size=301)
    beyond = gguf_vocabulary(grown, config, where="here")
    assert len(beyond.fields["tokens"]) == 301
    assert "left out 2 tokens without a row in the embedding: [PAD], [UNUSED303]" in beyond.lines


def test_llama_3_and_qwen_have_their_own_words(tmp_path):
    tiny.byte_pairs(tmp_path, qwen=False)
    config = dataclasses.replace(LLAMA, more_eos_token_ids=(399, 1, 2))
    vocabulary = gguf_vocabulary(load_tokenizer(tmp_path), config, where="here")
    fields = vocabulary.fields
    assert (fields["pre"], fields["add_bos_token"], fields["bos_token_id"]) == (
        "llama-bpe",
        True,
        397,
    )
    assert [fields[f"{name}_token_id"] for name in ("eos", "eot", "eom")] == [398, 399, 1]
    assert list(vocabulary.template) == [{"name": "default", "template": tiny.CHAT}]
    assert list(vocabulary.lines) == ["a GGUF file has no place for the end ids [2]"]
    tiny.byte_pairs(tmp_path, qwen=True)
    config = dataclasses.replace(LLAMA, eos_token_id=399)
    vocabulary = gguf_vocabulary(load_tokenizer(tmp_path), config, where="here")
    assert (vocabulary.fields["pre"], vocabulary.fields["padding_token_id"]) == ("qwen2", 397)
    assert ["NFC" in line for line in vocabulary.lines] == [True]


@pytest.mark.parametrize("form", ["normalizer", "first"])
def test_pieces_are_joined_as_sentencepiece_joins_them(form, tmp_path):
    """llama.cpp's rule: of all neighbours whose text is a piece, join the best score, leftmost."""
    tiny.sentencepiece(tmp_path, form=form)
    tiny.complete_merges(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    vocabulary = gguf_vocabulary(tokenizer, PIECES, where="here")
    fields = vocabulary.fields
    assert (fields["model"], fields["add_space_prefix"], fields["add_bos_token"]) == (
        "llama",
        True,
        True,
    )
    kinds = [TYPES[kind] for kind in ("unknown", "control", "control", *["byte"] * 256)]
    assert fields["token_type"] == kinds + [TYPES["normal"]] * 141
    assert fields["unknown_token_id"] == 0
    assert "merges" not in fields
    index = {token: i for i, token in enumerate(fields["tokens"])}
    scores = fields["scores"]

    def joined(text: str) -> list[int]:
        parts = list("▁" + text.replace(" ", "▁"))
        while True:
            pairs = [
                (scores[index[a + b]], -i)
                for i, (a, b) in enumerate(itertools.pairwise(parts))
                if a + b in index
            ]
            if not pairs:
                break
            at = -max(pairs)[1]
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
        ids = [
            [index[p]] if p in index else [index[f"<0x{b:02X}>"] for b in p.encode()] for p in parts
        ]
        return [1, *(i for one in ids for i in one)]

    for text in [*tiny.sentences()[:20], "naïve 心 x", "osisosis  aa"]:
        assert joined(text.strip()) == tokenizer.encode(text.strip()).ids, text


def change(path, state=None, **model) -> Tokenizer:
    """Return the tokenizer of a directory with other entries in tokenizer.json."""
    whole = json.loads((path / "tokenizer.json").read_text())
    whole |= state or {}
    whole["model"] |= model
    return Tokenizer.from_str(json.dumps(whole))


def test_tokenizers_that_llama_cpp_reads_otherwise_are_refused(tokenizer, tmp_path):
    def refused(one, config, message):
        with pytest.raises(InputError, match=f"^here has a tokenizer .*{message}"):
            gguf_vocabulary(one, config, where="here")

    tiny.sentencepiece(tmp_path)
    refused(load_tokenizer(tmp_path), PIECES, "whose text is a piece")
    refused(change(tmp_path, fuse_unk=False), PIECES, "not as converted from SentencePiece")
    tiny.complete_merges(tmp_path)
    merges = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]
    repeated = next(p for i, p in enumerate(merges) if "".join(p) == "".join(merges[i - 1]))
    others = [pair for pair in merges if pair != repeated]
    refused(change(tmp_path, merges=[*others, repeated]), PIECES, "have different ranks")
    tiny.byte_pairs(tmp_path, qwen=False)
    refused(change(tmp_path, ignore_merges=False), LLAMA, "that splits words by")
    unigram = Tokenizer(models.Unigram([("a", 0.0)], 0, False))
    refused(unigram, GPT2, "of type Unigram; llama.cpp needs plain BPE")

    def with_part(**parts):
        copy = copy_tokenizer(tokenizer)
        for name, part in parts.items():
            setattr(copy, name, part)
        return copy

    refused(with_part(normalizer=normalizers.Lowercase()), GPT2, "normalises texts .Lowercase")
    refused(
        with_part(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        GPT2,
        "adds a space",
    )
    digits = [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    refused(with_part(pre_tokenizer=pre_tokenizers.Sequence(digits)), GPT2, "with other steps")
    split = [pre_tokenizers.Split(Regex(r"\d"), "isolated")]
    split += [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    refused(
        with_part(pre_tokenizer=pre_tokenizers.Sequence(split)),
        GPT2,
        r"splits words by",
    )
    around = processors.TemplateProcessing(single="$A a", pair="$A $B", special_tokens=[("a", 64)])
    refused(with_part(post_processor=around), GPT2, "puts the ids .* before and .* after a text")
