"""Tiny models of the second family as transformers saves them, with tokenizers of their kinds."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TYPES = ("llama", "mistral", "qwen2", "qwen3")
CLASSES = ("LlamaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer")  # that transformers rebuilds
# The pattern of Llama 3's words, three digits at most.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS_OF_QWEN = WORDS.replace("{1,3}", "")
CHAT = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"


def sentences() -> list[str]:
    rng = random.Random(0)
    parts = ["cardi", "neur", "osis", "itis", "ology", "gen", "ase", "hyper", "é", "12", "the"]
    parts += ["mab", "kin", "phor", "blast", "uria"]
    words = ["".join(rng.choices(parts, k=rng.randrange(1, 4))) for _ in range(150)]
    return [" ".join(rng.choices(words, k=20)) + ".\n" for _ in range(60)]


def flags(content: str) -> dict[str, Any]:
    names = ("lstrip", "rstrip", "single_word", "normalized")
    return {"content": content, **dict.fromkeys(names, False), "special": True}


def write(directory: Path, **files: Any) -> None:
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False))


def sentencepiece(directory: Path, *, form: str = "normalizer", **settings: Any) -> Tokenizer:
    """A Llama 2 tokenizer, as converted from SentencePiece: 400 entries, bytes among them.

    `form`: spaces are pieces by a normalizer, as in the older files, or by Metaspace.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        sentences(), trainers.BpeTrainer(vocab_size=400 - 259, show_progress=False)
    )
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    entries = sorted(trained.get_vocab().items(), key=lambda entry: entry[1])
    vocabulary = {name: i for i, name in enumerate([*names, *(name for name, _ in entries)])}
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    if form == "normalizer":
        parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(parts)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=form, split=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(names[:3])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(i): flags(name) for i, name in enumerate(names[:3])},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "legacy": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT,
        "tokenizer_class": "LlamaTokenizer",
    }
    config |= settings
    write(directory, tokenizer_config={k: v for k, v in config.items() if v is not ...})
    return tokenizer


def byte_pairs(directory: Path, *, qwen: bool, **settings: Any) -> Tokenizer:
    """A tokenizer of bytes with 400 entries and added tokens: as Qwen 2's, or as Llama 3's."""
    trained = Tokenizer(models.BPE(ignore_merges=not qwen))
    trained.normalizer = normalizers.NFC() if qwen else None
    words = pre_tokenizers.Split(Regex(WORDS_OF_QWEN if qwen else WORDS), "isolated")
    rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.pre_tokenizer = pre_tokenizers.Sequence([words, rest])
    trained.decoder = decoders.ByteLevel()
    trained.post_processor = processors.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=397, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    trained.train_from_iterator(sentences(), trainer)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    config: dict[str, Any] = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None}
    config |= {"eos_token": names[2], "pad_token": names[0], "unk_token": None}
    if not qwen:
        names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
        config = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {"bos_token": names[0], "eos_token": names[1]}
        around = processors.TemplateProcessing(
            single=f"{names[0]} $A",
            pair=f"{names[0]} $A {names[0]}:1 $B:1",
            special_tokens=[(names[0], 397)],
        )
        trained.post_processor = processors.Sequence([trained.post_processor, around])
    trained.add_special_tokens(names)
    assert trained.get_vocab_size() == 400
    trained.save(str(directory / "tokenizer.json"))
    config["added_tokens_decoder"] = {str(397 + i): flags(name) for i, name in enumerate(names)}
    config |= {"clean_up_tokenization_spaces": False, "chat_template": CHAT, **settings}
    write(directory, tokenizer_config={k: v for k, v in config.items() if v is not ...})
    return trained


SIZES = {
    "vocab_size": 400,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
OF_TYPE: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {"sliding_window": 7, "bos_token_id": 1, "eos_token_id": 2},
    "qwen2": {"tie_word_embeddings": True, "eos_token_id": 399, "bos_token_id": 397},
    "qwen3": {"head_dim": 16, "eos_token_id": 399, "bos_token_id": 397, "pad_token_id": 397},
}


def transformers_model(model_type: str, *, seed: int = 0, **changes: Any):
    """A random model of transformers in float32; biases and norms are random, too."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    settings = {**SIZES, **OF_TYPE[model_type], **changes}
    config = transformers.AutoConfig.for_model(model_type, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    random_numbers = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = 0.1 * random_numbers.standard_normal(parameter.shape, np.float32)
            parameter.copy_(torch.from_numpy(values + ("norm" in name)))
    return model


def directory_of(model_type: str, directory: Path, **changes: Any) -> Path:
    """Save a random model with a tokenizer of its kind."""
    transformers_model(model_type, **changes).save_pretrained(directory)
    if model_type in ("llama", "mistral"):
        sentencepiece(directory, form="first")  # that every version reads alike
    else:
        byte_pairs(directory, qwen=True)
    return directory


def complete_merges(directory: Path) -> None:
    """Give a tokenizer of `sentencepiece` the merges that transformers' converter lists: all."""
    from transformers.convert_slow_tokenizer import generate_merges

    file = directory / "tokenizer.json"
    state = json.loads(file.read_text())
    vocabulary = state["model"]["vocab"]
    special = {name for name, i in vocabulary.items() if i < 259}
    scores = {name: 258.0 - i for name, i in vocabulary.items() if name not in special}
    merges = generate_merges(vocabulary, scores, special)
    state["model"]["merges"] = [list(pair) for pair in merges]
    file.write_text(json.dumps(state, ensure_ascii=False))
