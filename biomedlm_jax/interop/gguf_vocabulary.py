"""A tokenizer as llama.cpp has it: tokens with types, merges or scores, and a pre-tokenizer's name.

llama.cpp splits texts into words by code of its own, one piece of code for each name. A tokenizer
that it would not read with the same ids is refused.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from tokenizers import Tokenizer

from biomedlm_jax.corpus.chat_template import templates_of
from biomedlm_jax.corpus.huggingface_tokenizer import WORDS_OF_QWEN2, space_scheme
from biomedlm_jax.corpus.tokenizer import special_id
from biomedlm_jax.errors import InputError
from biomedlm_jax.model.config import ModelConfig

BYTES, PIECES = "gpt2", "llama"  # its two kinds of BPE: of bytes, and SentencePiece's
WORDS_OF_LLAMA_3 = WORDS_OF_QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
# Its names of pre-tokenizers, by the pattern of words and by whether a whole word needs no merges.
PRE_TOKENIZERS = {
    (None, False): "gpt-2",  # the pattern inside of ByteLevel
    (WORDS_OF_LLAMA_3, True): "llama-bpe",
    (WORDS_OF_QWEN2, False): "qwen2",
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # its types of tokens
BYTE_TOKENS = {f"<0x{byte:02X}>" for byte in range(256)}
# Ids that end an answer, beside eos_token_id: it has two more places.
MORE_ENDS = ("eot_token_id", "eom_token_id")


class Vocabulary(NamedTuple):
    """What a GGUF file has of a tokenizer: `fields` by their names after `tokenizer.ggml.`."""

    fields: Mapping[str, Any]
    template: Sequence[Mapping[str, str]]  # of chats: objects with name and template
    lines: Sequence[str]  # about texts that llama.cpp reads otherwise


def gguf_vocabulary(tokenizer: Tokenizer, config: ModelConfig, *, where: str) -> Vocabulary:
    """Return the tokenizer of a model of `config` for llama.cpp.

    Raises InputError, which begins with `where`, for a tokenizer whose ids llama.cpp would not
    give.
    """
    state, lines = json.loads(tokenizer.to_str()), []
    model = state["model"]
    flags = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    if model["type"] != "BPE" or any(model.get(flag) for flag in flags):
        _refuse(where, f"of type {model['type']}", "plain BPE")
    tokens, types = _tokens(tokenizer, config, lines)
    merges = [tuple(pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        fields: dict[str, Any] = {"model": PIECES, "pre": "default"}
        scheme = space_scheme(state)
        if scheme is None or not model.get("fuse_unk") or not BYTE_TOKENS <= {*tokens}:
            _refuse(where, "of pieces that is not as converted from SentencePiece", "such a one")
        for index, token in enumerate(tokens):
            types[index] = BYTE if token in BYTE_TOKENS else types[index]
        fields["scores"] = _scores(tokens, types, merges, where)
        fields["add_space_prefix"] = scheme != ("never",)
        if scheme != ("never",):
            spaces = "llama.cpp puts a space before a text that begins with one, and after special"
            lines.append(f"{spaces} tokens, too; transformers may not")
    else:
        words, ignores = _words(state, where), bool(model.get("ignore_merges"))
        pre = PRE_TOKENIZERS.get((words, ignores))
        if pre is None:
            got = f"that splits words by {words!r}" if words else "of bytes"
            got += ", and takes whole words without merges" if ignores else ""
            _refuse(where, got, "the words of GPT-2, Llama 3 or Qwen2")
        fields: dict[str, Any] = {"model": BYTES, "pre": pre}
        fields["merges"] = [f"{left} {right}" for left, right in merges]
        if state["normalizer"] is not None:
            lines.append("llama.cpp does not normalise texts to NFC, as this tokenizer does")
    fields |= {"tokens": tokens, "token_type": types, **_special(tokenizer, config, where, lines)}
    templates = templates_of(tokenizer, where=where)
    listed = [{"name": name, "template": text} for name, text in templates.items()]
    return Vocabulary(fields, listed, lines)


def _refuse(where: str, got: str, expected: str) -> NoReturn:
    raise InputError(f"{where} has a tokenizer {got}; llama.cpp needs {expected}")


def _tokens(
    tokenizer: Tokenizer, config: ModelConfig, lines: list[str]
) -> tuple[list[str], list[int]]:
    """Return a token and its type for each row of the embedding."""
    entries = {index: token for token, index in tokenizer.get_vocab().items()}
    added = tokenizer.get_added_tokens_decoder()
    unknown = special_id(tokenizer, "unk_token") if _has_bytes(entries) else None
    texts, tokens, types = {*entries.values()}, [], []
    for index in range(config.vocab_size):
        token, kind = entries.get(index), NORMAL
        if token is None:
            token, kind = f"[UNUSED{index}]", UNUSED
            while token in texts:
                token = f"[{token}]"
            texts.add(token)
        elif index == unknown:
            kind = UNKNOWN
        elif index in added:
            kind = CONTROL if added[index].special else USER_DEFINED
        tokens.append(token)
        types.append(kind)
    beyond = sorted(index for index in entries if index >= config.vocab_size)
    if beyond:
        names = ", ".join(entries[index] for index in beyond[:3])
        lines.append(f"left out {len(beyond)} tokens without a row in the embedding: {names}")
    if any(one.lstrip or one.rstrip or one.single_word for one in added.values()):
        lines.append("llama.cpp ignores lstrip, rstrip and single_word of added tokens")
    return tokens, types


def _has_bytes(entries: Mapping[int, str]) -> bool:
    return BYTE_TOKENS <= {*entries.values()}


def _words(state: Mapping, where: str) -> str | None:
    """Return the pattern of a byte-level tokenizer's words; None for that of ByteLevel itself."""
    words, normalizer = state["pre_tokenizer"] or {}, state["normalizer"]
    steps = words.get("pretokenizers", [words])
    last = steps[-1]
    if normalizer is not None and normalizer != {"type": "NFC"}:
        _refuse(where, f"that normalises texts ({normalizer['type']})", "one without, or NFC")
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        _refuse(where, "that is not byte-level, or adds a space before a text", "one of bytes")
    if len(steps) == 1 and last["use_regex"]:
        return None
    split = steps[0]
    plain = split.get("behavior") == "Isolated" and not split.get("invert")
    if len(steps) != 2 or split["type"] != "Split" or not plain or last["use_regex"]:
        _refuse(where, "with other steps than a split into words", "one pattern of words")
    return split["pattern"].get("Regex")


def _scores(tokens: list[str], types: list[int], merges: list, where: str) -> list[float]:
    """Return the scores of pieces: minus the rank of the merges that make them.

    llama.cpp joins any two neighbours whose text is a piece, the best score first; the tokenizer
    merges listed pairs. Both are the same if the list has all pairs, piece by piece.
    """
    pieces = {token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    rank: dict[str, int] = {}
    last = None
    for left, right in merges:
        piece = left + right
        if piece in rank and piece != last:
            _refuse(where, f"whose merges of {piece!r} have different ranks", "equal ones")
        rank.setdefault(piece, len(rank))
        last = piece
    listed = {*merges}
    for piece in pieces:
        for cut in range(1, len(piece)):
            pair = piece[:cut], piece[cut:]
            # A character that is no piece is joined as well.
            if all(len(part) == 1 or part in pieces for part in pair) and pair not in listed:
                got = f"without a merge of {pair[0]!r} and {pair[1]!r}, whose text is a piece"
                _refuse(where, got, "merges as converted from SentencePiece, of all such pairs")
    return [-float(rank[token]) if token in rank else 0.0 for token in tokens]


def _special(
    tokenizer: Tokenizer, config: ModelConfig, where: str, lines: list[str]
) -> dict[str, Any]:
    """Return the ids of special tokens, and which of them are put around a text."""
    encoded = tokenizer.encode("a")
    place = encoded.sequence_ids
    first = place.index(0)
    before, after = encoded.ids[:first], encoded.ids[len(place) - place[::-1].index(0) :]
    bos = before[0] if before else special_id(tokenizer, "bos_token")
    bos = config.bos_token_id if bos is None else bos
    if len(before) > 1 or after not in ([], [config.eos_token_id]):
        ids = f"that puts the ids {before} before and {after} after a text"
        _refuse(where, ids, "one id before it, and the eos token or none after it")
    pad = config.pad_token_id
    pad = special_id(tokenizer, "pad_token") if pad is None else pad
    fields: dict[str, Any] = {"bos_token_id": bos, "eos_token_id": config.eos_token_id}
    unknown = special_id(tokenizer, "unk_token")
    fields |= {"unknown_token_id": unknown} if unknown is not None else {}
    fields |= {"padding_token_id": pad} if pad is not None else {}
    fields = {name: i for name, i in fields.items() if i < config.vocab_size}
    fields |= dict(zip(MORE_ENDS, config.more_eos_token_ids, strict=False))
    if rest := config.more_eos_token_ids[len(MORE_ENDS) :]:
        lines.append(f"a GGUF file has no place for the end ids {list(rest)}")
    return {**fields, "add_bos_token": bool(before), "add_eos_token": bool(after)}
