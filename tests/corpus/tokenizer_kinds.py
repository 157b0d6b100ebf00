"""Small tokenizers of each kind, trained on a few sentences and saved by transformers."""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from biomedlm_jax.corpus.tokenizer import save_tokenizer, train_tokenizer

KINDS = ("byte-level", "wordpiece", "unigram", "byte-fallback")
PARTS = ["cardi", "neur", "osis", "itis", "ology", "gen", "ase", "hyper", "myo", "um"]


def sentences(seed: int = 0) -> list[str]:
    """Sentences of invented words, some with digits, hyphens and punctuation."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(PARTS, k=rng.randint(1, 3))) for _ in range(60)]
    words += ["IL-6", "don't", "(p53)", "5", "and", "the"]
    return [
        f"The {' '.join(rng.choices(words, k=12))}, {' '.join(rng.choices(words, k=9))}."
        for _ in range(60)
    ]


def save_kind(kind: str, folder: Path) -> None:
    """Write the files of a tokenizer that transformers reads."""
    texts, size = sentences(), 320
    if kind == "byte-level":
        save_tokenizer(train_tokenizer(texts, vocab_size=size), folder)
        return
    unknown = "[UNK]" if kind == "wordpiece" else "<unk>"
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=[unknown])
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, unk_token=unknown, special_tokens=[unknown]
        )
    else:  # as SentencePiece's BPE
        tokenizer = Tokenizer(models.BPE(unk_token=unknown))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
        parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
        trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=[unknown])
    tokenizer.train_from_iterator(texts, trainer)
    if kind == "byte-fallback":
        model = json.loads(tokenizer.to_str())["model"]
        entries = [unknown, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
        ids = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
        merges = [(left, right) for left, right in model["merges"]]
        tokenizer.model = models.BPE(
            vocab=ids, merges=merges, unk_token=unknown, byte_fallback=True
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, eos_token=unknown
    ).save_pretrained(folder)
