"""Stop strings: an automaton that reads the bytes of the tokens, on the device or on the host.

It is Aho and Corasick's, over whole tokens: a stop string may begin and end inside tokens, special
tokens count as the text that they are written as, and the first token that completes a stop string
ends the answer, as in transformers.

Axes: S states, V vocabulary.
"""

import json
from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

ROWS = 16  # the table's rows are a multiple of it, so that new stop strings rarely compile


def stop_table(strings: Sequence[str], tokens: Sequence[bytes]) -> np.ndarray:
    """Return the automaton that finds stop strings in tokens, as a table int32 [states S, V].

    An entry is twice the state after a token, plus one if the token completes a stop string.

    State 0 is before any text; `tokens` are the bytes of each id.
    """
    next_Sx256, ends_S = _automaton([string.encode("utf-8") for string in strings])
    V = len(tokens)
    rows = -(-len(ends_S) // ROWS) * ROWS
    states_VxS = np.tile(np.arange(len(ends_S)), (V, 1))
    hits_VxS = np.zeros(states_VxS.shape, bool)
    lengths = np.array([len(token) for token in tokens])
    for place in range(lengths.max(initial=0)):
        ids = np.flatnonzero(lengths > place).tolist()
        read = np.array([tokens[i][place] for i in ids])
        states_VxS[ids] = next_Sx256[states_VxS[ids], read[:, None]]
        hits_VxS[ids] |= ends_S[states_VxS[ids]]
    table_SxV = np.zeros((rows, V), np.int32)
    table_SxV[: len(ends_S)] = (2 * states_VxS + hits_VxS).T
    return table_SxV


def state_after(table_SxV: np.ndarray, tokens: Sequence[int]) -> int:
    """Return the state of the automaton after these tokens."""
    state = 0
    for token in tokens:
        state = int(table_SxV[state, token]) >> 1
    return state


def token_bytes(tokenizer: Tokenizer, size: int) -> list[bytes]:
    """Return the bytes that each of `size` ids stands for inside a text."""
    kinds = set(_types(json.loads(tokenizer.to_str())["decoder"]))
    characters = _byte_characters() if "ByteLevel" in kinds else {}
    before = tokenizer.encode("abcdef", add_special_tokens=False).ids
    start = len(tokenizer.decode(before, skip_special_tokens=False))

    def one(i: int) -> bytes:
        token = tokenizer.id_to_token(i)
        if token is None:
            return b""
        if characters and all(c in characters for c in token):
            return bytes(characters[c] for c in token)
        if "ByteFallback" in kinds and len(token) == 6 and token.startswith("<0x"):
            return bytes([int(token[3:5], 16)])
        text = tokenizer.decode([*before, i], skip_special_tokens=False)
        return text[start:].encode("utf-8")

    return [one(i) for i in range(size)]


def _automaton(strings: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return the next state for each state and byte, and whether a string ends in a state."""
    children: list[dict[int, int]] = [{}]
    ends = [False]
    for string in strings:
        state = 0
        for byte in string:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                ends.append(False)
            state = children[state][byte]
        ends[state] = True
    next_Sx256 = np.zeros((len(children), 256), np.int64)
    queue = [(0, 0)]  # a state, and that of its longest proper suffix
    for state, suffix in queue:
        ends[state] |= ends[suffix]
        if state:
            next_Sx256[state] = next_Sx256[suffix]
        for byte, child in children[state].items():
            queue.append((child, int(next_Sx256[suffix, byte]) if state else 0))
            next_Sx256[state, byte] = child
    return next_Sx256, np.array(ends)


def _types(decoder) -> Iterator[str]:
    """Yield the types of a tokenizer's decoder and of those inside it."""
    if isinstance(decoder, dict):
        yield from [decoder["type"]] if "type" in decoder else []
        decoder = list(decoder.values())
    for inner in decoder if isinstance(decoder, list) else ():
        yield from _types(inner)


def _byte_characters() -> dict[str, int]:
    """Return the byte of each character with which GPT-2's vocabulary spells bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}
