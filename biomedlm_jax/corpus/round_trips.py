"""Round trips: which texts a tokenizer changes when it encodes and decodes them."""

import json
from dataclasses import dataclass

from tokenizers import Tokenizer, pre_tokenizers

from biomedlm_jax.corpus.packer import plain_text_tokenizer

# The bytes that occur in UTF-8: all but C0, C1 and F5 to FF.
UTF8_BYTES = (*range(0xC0), *range(0xC2, 0xF5))
TEXTS = {
    "composed (NFC)": "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m",
    "decomposed (NFD)": "cafe\u0301 nai\u0308ve A\u030angstro\u0308m",
    "Hangul, composed and as jamo": "\ud55c\uae00 \u1112\u1161\u11ab",
    "many marks on one letter": "a\u0300\u0316\u0323\u0334 Z\u0351\u036b\u0343",
    "Kelvin and Angstrom signs": "310 \u212a, 5 \u212b",
    "micro sign and Greek mu": "\u00b5g \u03bcg",
    "ligatures and full-width letters": "\ufb01brosis \uff29\uff2c\uff0d\uff16",
    "superscripts and subscripts": "10\u207b\u00b3 H\u2082O Ca\u00b2\u207a",
    "Greek, signs and comparisons": "\u03b2-catenin 37 \u00b1 0.5 \u00b0C, p \u2264 0.05 \u00d7 2",
    "upper case with special lower case": "\u0130STANBUL STRASSE stra\u00dfe \u03a3\u03a3\u03c2",
    "emoji with skin tone and joiner": "\U0001f469\U0001f3fd\u200d\u2695\ufe0f",
    "emoji family": "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "flags and keycaps": "\U0001f1e7\U0001f1ea 1\ufe0f\u20e3",
    "Arabic with marks": "\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f",
    "Hebrew with points": "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd",
    "directions": "abc \u202e123\u202c \u2067\u05d0\u2069 \u200f",
    "Chinese, Japanese, Thai, Hindi": "\u7cd6\u5c3f \u3060\u3088 \u0e44\u0e02\u0e49 \u0939\u093f",
    "variation selectors": "\u845b\U000e0100 \u2764\ufe0e",
    "mathematical letters (astral)": "\U0001d4b3 \U0001d6fd",
    "Gothic and rare Chinese (astral)": "\U00010348 \U00020000",
    "private use and noncharacters": "\ue000 \ufffe \uffff \U0010ffff",
    "unassigned characters": "\u0378 \U000e0fff",
    "replacement character": "a\ufffdb",
    "NUL and bell": "a\x00b\x07c",
    "escape and delete": "\x1b[31mred\x1b[0m \x7f",
    "C1 controls": "a\x80b\x85c\x9f",
    "one space": " ",
    "several spaces": "a  b   c",
    "spaces at both ends": "  a b  ",
    "tabs": "\ta\t\tb",
    "no-break, thin and wide spaces": "5\u00a0mg 5\u2009mg\u3000x",
    "zero-width characters": "a\u200bb\u200cc\u2060d\u00ade",
    "byte order mark": "\ufeffa \ufeff",
    "CRLF": "a\r\nb\r\n\r\nc",
    "CR": "a\rb",
    "line ends at both ends": "\n\na\n",
    "line and paragraph separators": "a\u2028b\u2029c\x0bd\x0ce",
    "upper and mixed case": "ECG mRNA PaCO2",
    "space before punctuation": "a . b , c ! d ? don 't",
    "long number and word": "3.14159265358979 " + "pneumono" * 20,
    "text that spells special tokens": "<|endoftext|> [SEP] </s> <unk> <0x41>",
}  # fmt: skip


@dataclass(frozen=True)
class RoundTrips:
    """What a tokenizer changes."""

    texts: int
    survived: int
    changed: dict[str, dict[str, str]]  # by the name of a text: the text, and what became of it
    byte_entries: int  # of the 256 bytes: those with an entry of their own
    lost_bytes: list[str]  # of those that occur in UTF-8, hexadecimal: changed in every way


def round_trips(tokenizer: Tokenizer) -> RoundTrips:
    """Encode and decode each of `TEXTS`, and a character with each byte of UTF-8.

    Text that spells a special token is text, as in `build_tokens`. Decoding keeps special tokens,
    so that an unknown token is in the result.
    """
    encoder = plain_text_tokenizer(tokenizer)

    def decoded(text: str) -> str:
        ids = encoder.encode(text, add_special_tokens=False).ids
        return encoder.decode(ids, skip_special_tokens=False)

    results = {name: (text, decoded(text)) for name, text in TEXTS.items()}
    changed = {
        name: {"text": text, "decoded": result}
        for name, (text, result) in results.items()
        if result != text
    }
    between = {byte: f"a{character_with(byte)}b" for byte in UTF8_BYTES}
    lost = [f"{byte:02X}" for byte, text in between.items() if decoded(text) != text]
    kept = len(TEXTS) - len(changed)
    return RoundTrips(len(TEXTS), kept, changed, _byte_entries(tokenizer), lost)


def character_with(byte: int) -> str:
    """Return the first character whose UTF-8 has a byte; UnicodeDecodeError if none has."""
    if byte < 0x80:
        return chr(byte)
    if byte < 0xC0:
        return bytes([0xC2, byte]).decode()
    first = {0xE0: 0xA0, 0xF0: 0x90}.get(byte, 0x80)  # shorter ones would do for less
    more = 0 if byte < 0xE0 else 1 if byte < 0xF0 else 2
    return bytes([byte, first, *[0x80] * more]).decode()


def _byte_entries(tokenizer: Tokenizer) -> int:
    """Count the entries of one byte, of a byte-level model or of one that falls back to bytes."""
    state, vocabulary = json.loads(tokenizer.to_str()), tokenizer.get_vocab()
    if '"ByteLevel"' in json.dumps([state["pre_tokenizer"], state["decoder"]]):
        return sum(letter in vocabulary for letter in pre_tokenizers.ByteLevel.alphabet())
    return sum(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
