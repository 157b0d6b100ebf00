"""The automaton beside a search in the text, for tokens of several kinds of tokenizers."""

import json

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.generation import StopStringCriteria

from biomedlm_jax.corpus.tokenizer import train_tokenizer
from biomedlm_jax.generation.stops import state_after, stop_table, token_bytes

STOPS = ("the", "he d", "aa", "aaab", "µ", "β\n", "<|endoftext|>", "r\n\n")
TEXT = "the drug, aaaab and other drugs µg β\n\n e aa"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter([TEXT] * 9), vocab_size=280)


def metaspace() -> Tokenizer:
    pieces = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += ["▁", "t", "h", "e", "th", "▁th", "a", "b", "▁a", "d", "he", "▁d", "</s>"]
    merges = [("t", "h"), ("▁", "th"), ("▁", "a"), ("h", "e"), ("▁", "d")]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    built = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    built.pre_tokenizer = pre_tokenizers.Metaspace()
    built.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " ")]
    )
    built.add_special_tokens([AddedToken("</s>", special=True)])
    return built


def hits(table, row) -> list[bool]:
    state, result = 0, []
    for token in row:
        result.append(bool(table[state, token] & 1))
        state = int(table[state, token]) >> 1
    return result


@pytest.mark.parametrize("make", [None, metaspace], ids=["byte-level", "byte-fallback"])
def test_stops_are_those_of_transformers_at_every_token(tokenizer, make):
    tokenizer = make() if make else tokenizer
    size, rng = tokenizer.get_vocab_size(), np.random.default_rng(0)
    table = stop_table(STOPS, token_bytes(tokenizer, size))
    peer = StopStringCriteria(PreTrainedTokenizerFast(tokenizer_object=tokenizer), list(STOPS))
    common = tokenizer.encode(TEXT * 3, add_special_tokens=False).ids
    rows = [rng.choice(common, 40).tolist() for _ in range(30)] + [common[:40]]
    rows[0][7] = size - 1  # the special token
    expected = [
        [bool(peer(torch.tensor([row[: n + 1]]), None)) for n in range(len(row))] for row in rows
    ]
    got = [hits(table, row) for row in rows]
    assert got == expected
    assert 10 < sum(map(sum, got)) < 900
    assert state_after(table, rows[0]) == state_after(table, [0, *rows[0]])


def test_the_bytes_of_tokens_make_the_text(tokenizer):
    pieces = token_bytes(tokenizer, 282)  # two ids more than it has
    ids = tokenizer.encode(TEXT + "<|endoftext|>é 中").ids
    assert b"".join(pieces[i] for i in ids).decode() == TEXT + "<|endoftext|>é 中"
    assert pieces[280:] == [b"", b""]
    assert json.loads(tokenizer.to_str())["decoder"]["type"] == "ByteLevel"


def test_stop_strings_of_similar_lengths_have_one_shape(tokenizer):
    pieces = token_bytes(tokenizer, 280)
    assert stop_table(["a"], pieces).shape == stop_table(["the drug", "b"], pieces).shape
