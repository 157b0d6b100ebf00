"""round_trips.py: what does not survive equals what transformers' tokenizers change."""

import pytest
from transformers import AutoTokenizer

from biomedlm_jax.corpus.round_trips import TEXTS, UTF8_BYTES, character_with, round_trips
from biomedlm_jax.corpus.tokenizer import load_tokenizer
from tests.corpus.tokenizer_kinds import KINDS, save_kind


def test_the_bytes_are_those_of_utf8():
    planes = (*range(0xD800), *range(0xE000, 0x110000))
    assert {*"".join(map(chr, planes)).encode()} == {*UTF8_BYTES}
    assert all(byte in character_with(byte).encode() for byte in UTF8_BYTES)
    for byte in {*range(256)} - {*UTF8_BYTES}:
        with pytest.raises(UnicodeDecodeError):
            character_with(byte)


@pytest.mark.parametrize("kind", KINDS)
def test_changes_equal_those_of_transformers(kind, tmp_path):
    save_kind(kind, tmp_path)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)

    def decoded(text: str) -> str:
        ids = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        return theirs.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    trips = round_trips(ours)
    assert trips.texts == len(TEXTS) == trips.survived + len(trips.changed)
    assert trips.changed == {
        name: {"text": text, "decoded": decoded(text)}
        for name, text in TEXTS.items()
        if decoded(text) != text
    }
    between = {byte: f"a{character_with(byte)}b" for byte in UTF8_BYTES}
    assert trips.lost_bytes == [f"{b:02X}" for b, text in between.items() if decoded(text) != text]
    assert trips.byte_entries == {"byte-level": 256, "byte-fallback": 256}.get(kind, 0)
    if kind == "byte-level":
        assert trips.survived == trips.texts
        assert trips.lost_bytes == []
    lossy = {"wordpiece": "upper and mixed case", "unigram": "ligatures and full-width letters"}
    assert kind not in lossy or lossy[kind] in trips.changed
