"""Compare tokenizers on the same text: tokens per byte, and how they split terms."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from tokenizers import Tokenizer

from biomedlm_jax.corpus.packer import plain_text_tokenizer
from biomedlm_jax.corpus.tokenizer import tokenizer_hash
from biomedlm_jax.errors import InputError

BATCH = 256  # texts in a call of a tokenizer
# Each is one entry of BioMedLM's vocabulary and several of GPT-2's (arXiv 2403.18421, table 2).
TERMS = (
    "chromatography", "cytotoxicity", "Immunohistochemistry", "myocardium", "nanoparticles",
    "photosynthesis", "probiotic", "thrombin", "ECG", "GATA",
)  # fmt: skip


@dataclass(frozen=True)
class TokenizerReport:
    """Figures of one tokenizer on a text."""

    name: str
    hash: str
    vocab_size: int
    tokens: int
    bytes: int  # of the text in UTF-8
    bytes_per_token: float  # more is better
    terms: dict[str, list[str]]  # the tokens of each term, after a space
    whole_terms: list[str]  # those of one token


def pieces(tokenizer: Tokenizer, term: str) -> list[str]:
    """Return the tokens of a term after a space, as text."""
    ids = tokenizer.encode(f" {term}", add_special_tokens=False).ids
    return [tokenizer.decode([i]).strip() for i in ids]


def compare_tokenizers(
    tokenizers: Mapping[str, Tokenizer], texts: Iterable[str], terms: Sequence[str] = TERMS
) -> list[TokenizerReport]:
    """Count each tokenizer's tokens of the same texts, and split each term.

    The texts are read once. Raises InputError if there is no tokenizer or no text.
    """
    encoders = {name: plain_text_tokenizer(tokenizer) for name, tokenizer in tokenizers.items()}
    tokens, size, texts = dict.fromkeys(tokenizers, 0), 0, iter(texts)
    while batch := list(islice(texts, BATCH)):
        size += sum(len(text.encode("utf-8")) for text in batch)
        for name, encoder in encoders.items():
            encodings = encoder.encode_batch_fast(batch, add_special_tokens=False)
            tokens[name] += sum(map(len, encodings))
    if not tokens or not size:
        raise InputError(f"got {len(tokens)} tokenizers and {size} bytes; expected some of both")
    reports = []
    for name, tokenizer in tokenizers.items():
        split = {term: pieces(tokenizer, term) for term in terms}
        reports.append(
            TokenizerReport(
                name=name,
                hash=tokenizer_hash(tokenizer),
                vocab_size=tokenizer.get_vocab_size(),
                tokens=tokens[name],
                bytes=size,
                bytes_per_token=size / tokens[name],
                terms=split,
                whole_terms=[term for term in terms if len(split[term]) == 1],
            )
        )
    return reports
