"""Build the tokenizer that transformers' AutoTokenizer (version 5) builds from a directory.

Some classes do not read tokenizer.json as it is: GPT2Tokenizer, LlamaTokenizer and Qwen2Tokenizer
take vocabulary, merges and post-processor from it and make the rest anew, as from vocab.json and
merges.txt. The class PreTrainedTokenizerFast takes the whole file. Then all add the tokens that the
other files name. Which class it is depends on the files and on the type of the model. The rules are
those of transformers 5.23 without mistral-common: `AutoTokenizer.from_pretrained`,
`PreTrainedTokenizerBase._from_pretrained`, `TokenizersBackend.__init__` and the three classes.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json

# transformers' class of byte-level BPE tables: a format of tokenizers, whatever their model is.
GPT2 = "GPT2Tokenizer"
LLAMA, QWEN2 = "LlamaTokenizer", "Qwen2Tokenizer"  # SentencePiece's BPE; byte-level with NFC
# Classes of which transformers takes vocabulary and merges only, and their own special tokens.
DEFAULT = "<|endoftext|>"
REBUILT: dict[str, dict[str, str]] = {
    GPT2: dict.fromkeys(("unk_token", "bos_token", "eos_token"), DEFAULT),
    LLAMA: {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    QWEN2: dict.fromkeys(("unk_token", "eos_token", "pad_token"), DEFAULT),
}
# Classes that take tokenizer.json as it is; None: neither the files nor a config name a class. The
# last is the name that Llama had before its release in transformers, which knows it no more.
WHOLE = (None, "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend", "BloomTokenizer")
WHOLE += ("LLaMATokenizer",)
BACKEND = "TokenizersBackend"
# The class by model_type, without a stated class; of the second kind whatever the files state.
OF_MODELS = {"gpt2": GPT2, "qwen2": QWEN2, "qwen3": QWEN2}
ALWAYS = {"mistral": BACKEND, "qwen2": QWEN2}
WORDS_OF_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ADDS = ("add_bos_token", "add_eos_token")  # of a directory without tokenizer.json
CLEAN = "clean_up_tokenization_spaces"  # of decoded text; ignored for BPE without the second
CLEAN_BPE = f"{CLEAN}_for_bpe_even_though_it_will_corrupt_output"
CLEANED = {
    **{f" {mark}": mark for mark in ".?!,"},
    " ' ": "'",
    **{f" {ending}": ending for ending in ("n't", "'m", "'s", "'ve", "'re")},
}
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")


def build_tokenizer(directory: Path) -> tuple[Tokenizer, dict[str, str]]:
    """Return the tokenizer of a directory and its special tokens by name, such as `eos_token`.

    The directory has tokenizer.json, or vocab.json and merges.txt, and perhaps
    tokenizer_config.json, special_tokens_map.json, added_tokens.json, and the config.json of a
    model. Raises InputError if transformers would build another tokenizer than can be built here.
    """
    settings = _read(directory / "tokenizer_config.json")
    whole = _read(directory / "tokenizer.json")
    name = _class_name(directory, settings, whole)
    for entry in ("auto_map", "split_special_tokens", "fast_tokenizer_files"):
        if settings.get(entry):
            got = f"{directory / 'tokenizer_config.json'} has {entry}={settings[entry]!r}"
            fix = f"remove {entry}, and compare the ids with biomedlm verify-hf"
            raise InputError(f"{got}, which is not supported; {fix}")
    special, extra, declared = _special_tokens(directory, settings, whole)
    padding = whole.get("padding") or {}
    if padding.get("pad_token") and name not in REBUILT:  # those are built without it
        special.setdefault("pad_token", padding["pad_token"])
    if name in REBUILT:
        special = {**REBUILT[name], **special}
        tokenizer = _rebuilt(name, directory, settings, whole)
    else:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    order = (*NAMED, *special)
    special = {key: special[key] for key in order if special.get(key) is not None}
    _add(tokenizer, special, extra, declared)
    if name == QWEN2:  # once more, without the flags that a file gives them
        again = [_content(token) for token in (*special.values(), *extra)]
        tokenizer.add_tokens([AddedToken(text, special=True) for text in dict.fromkeys(again)])
    _check_ids(directory, tokenizer, declared)
    contents = {key: _content(token) for key, token in special.items()}
    adds = {} if whole else {key: settings[key] for key in ADDS if key in settings}
    if adds or tokenizer.post_processor is None:
        tokenizer.post_processor = _template(tokenizer, contents, adds)
    if settings.get(CLEAN) and (settings.get(CLEAN_BPE) or not _is_bpe(tokenizer)):
        tokenizer.decoder = _cleaning(tokenizer.decoder)
    if whole and name not in REBUILT and whole["model"].get("dropout"):
        got = f"{directory / 'tokenizer.json'} has model.dropout={whole['model']['dropout']}"
        fix = "set it to null for the same ids each time"
        warnings.warn(f"{got}: ids are random; {fix}", RuntimeWarning, stacklevel=3)
    if name in REBUILT and whole:
        _warn_of_differences(directory, name, tokenizer, whole)
    return tokenizer, contents


def _add(tokenizer: Tokenizer, special: Mapping, extra: Iterable, declared: Mapping) -> None:
    """Add the declared and the special tokens in transformers' order."""
    present = tokenizer.get_added_tokens_decoder().values()
    adding = [declared[i] for i in sorted(declared)]
    known = {token.content for token in (*present, *adding)}
    for token in (*special.values(), *extra):
        # A text named twice, once with flags, is added twice: the flags of the last remain.
        if _content(token) not in known and token not in adding:
            adding.append(token)
    names = {_content(token) for token in special.values()}
    for token in adding:
        if isinstance(token, str):
            token = AddedToken(token, special=True)
        elif token.content in names:
            token.special = True
        tokenizer.add_tokens([token])


def _read(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def _content(token: str | AddedToken) -> str:
    return token if isinstance(token, str) else token.content


def _class_name(directory: Path, settings: Mapping, whole: Mapping) -> str | None:
    """Return the class that transformers takes, without "Fast"; InputError if it is another."""
    config = _read(directory / "config.json")
    model = config.get("model")
    of_model = model.get("model_type") if isinstance(model, dict) else config.get("model_type")
    stated = settings.get("tokenizer_class") or config.get("tokenizer_class")
    short = stated and str(stated).removesuffix("Fast")
    if short == LLAMA and of_model not in ALWAYS and '"ByteLevel"' in json.dumps(whole):
        short = BACKEND
    if of_model in ALWAYS:
        short = ALWAYS[of_model]
    elif not stated:
        short = OF_MODELS.get(str(of_model), None if whole else GPT2)
    if short in REBUILT and whole and whole.get("model", {}).get("type", "BPE") != "BPE":
        got = f"{directory / 'tokenizer.json'} has a model of type {whole['model']['type']}"
        raise InputError(f"{got}, and {short} needs BPE; set tokenizer_class in its config")
    if short in (GPT2, QWEN2) or (short in (*WHOLE, LLAMA) and whole):
        return short
    got = f"{directory} has tokenizer_class {stated or short}"
    if short in (*WHOLE, LLAMA):
        raise InputError(f"{got}, which needs tokenizer.json; add it, or set {GPT2}")
    fix = "set tokenizer_class=PreTrainedTokenizerFast there to have tokenizer.json as it is"
    raise InputError(f"{got}, which transformers builds by rules not known here; {fix}")


def _special_tokens(
    directory: Path, settings: Mapping, whole: Mapping
) -> tuple[dict[str, Any], list[Any], dict[int, AddedToken]]:
    """Return the named special tokens, the others, and all added tokens by their stated id."""
    values, added, by_content = dict(settings), {}, {}
    if values.get("additional_special_tokens") and not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
    listed = values.get("added_tokens_decoder")
    if listed is not None:
        added = {int(i): _added(token) for i, token in listed.items()}
    else:
        for key, value in _read(directory / "special_tokens_map.json").items():
            if isinstance(value, dict) and key != "extra_special_tokens":
                value = _added({**value, "special": True})
            values[key] = value
    extra = values.get("extra_special_tokens") or []
    more = extra if isinstance(extra, dict) else {}
    extra = [] if isinstance(extra, dict) else [_maybe_added(token) for token in extra]
    named = {key: _maybe_added(values[key]) for key in NAMED if key in values}
    others = {key: _maybe_added(values[key]) for key in values if key.endswith("_token")}
    more |= {
        key: token
        for key, token in others.items()
        if key not in NAMED and isinstance(token, str | AddedToken)
    }
    if listed is None:
        # transformers does not see those that tokenizer_config.json has with their flags.
        plain = [values.get(key) for key in NAMED] + extra
        specials = {_content(token) for token in plain if isinstance(token, str | AddedToken)}
        for content, index in _read(directory / "added_tokens.json").items():
            special = content in specials
            added[index] = AddedToken(content, normalized=not special, special=special)
        by_content |= {token.content: token for token in added.values()}
        for token in whole.get("added_tokens", ()):
            added[token["id"]] = _added(token)
    by_content |= {token.content: token for token in added.values()}
    # Only here, as in transformers: the flags of added_tokens.json do not depend on these.
    if "extra_special_tokens" not in values or more:  # beside a dict they count as well
        extra = [_maybe_added(token) for token in values.get("additional_special_tokens") or ()]
    named |= {key: _maybe_added(token) for key, token in more.items()}
    named = {
        key: token if token is None or key not in NAMED else by_content.get(_content(token), token)
        for key, token in named.items()
    }
    return named, extra, added


def _added(entry: Mapping) -> AddedToken:
    flags = {name: entry[name] for name in FLAGS if name in entry}
    return AddedToken(entry["content"], **flags)


def _maybe_added(value: Any) -> Any:
    return _added(value) if isinstance(value, dict) else value


def _rebuilt(name: str, directory: Path, settings: Mapping, whole: Mapping) -> Tokenizer:
    """Return what one of the classes REBUILT makes of the files, without added tokens."""
    flags: dict[str, Any] = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    if name == LLAMA:
        flags = {"fuse_unk": True, "byte_fallback": True}
    if whole:
        listed = whole["model"].get("merges", ())
        merges: Any = [tuple(m.split(" ") if isinstance(m, str) else m) for m in listed]
        model = models.BPE(vocab=whole["model"]["vocab"], merges=merges, **flags)
    else:
        files = (str(directory / name) for name in ("vocab.json", "merges.txt"))
        model = models.BPE.from_file(*files, **flags)
    prefix = settings.get("add_prefix_space")
    if name == LLAMA:
        prefix = True if prefix is None else bool(prefix)
        tokenizer = _sentencepiece(model, prefix=prefix, legacy=bool(settings.get("legacy")))
    else:
        tokenizer = byte_level(model, add_prefix_space=bool(prefix))
    if name == QWEN2:
        tokenizer.normalizer = normalizers.NFC()
        words = pre_tokenizers.Split(Regex(WORDS_OF_QWEN2), "isolated")
        rest = pre_tokenizers.ByteLevel(add_prefix_space=bool(prefix), use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, rest])
    if whole:
        rest = Tokenizer.from_str(json.dumps({**whole, "model": _EMPTY, "added_tokens": []}))
        tokenizer.post_processor = rest.post_processor
    elif name != GPT2:
        tokenizer.post_processor = None
    return tokenizer


def _sentencepiece(model: models.BPE, *, prefix: bool, legacy: bool) -> Tokenizer:
    """Return a tokenizer of pieces that begin with "▁" for a space, and of bytes."""
    tokenizer = Tokenizer(model)
    # `legacy` puts the space also after each added token, otherwise only before a text.
    scheme = ("always" if legacy else "first") if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *[decoders.Strip(" ", 1, 0)] * prefix])
    return tokenizer


def _warn_of_differences(directory: Path, name: str, tokenizer: Tokenizer, whole: Mapping) -> None:
    """Warn of the parts of tokenizer.json that the class `name` replaces."""
    used = json.loads(tokenizer.to_str())
    parts = ("normalizer", "pre_tokenizer")
    if name == LLAMA and space_scheme(whole) == space_scheme(used):
        parts = ()
    left_out = [
        f"{part} {_kind(whole.get(part))}"
        for part in parts
        if _effect(whole.get(part)) != _effect(used[part])
    ]
    model, other = used["model"], whole["model"]
    left_out += [f"model.{key}" for key in MODEL_FLAGS if other.get(key) and not model[key]]
    added = {token["content"] for token in whole.get("added_tokens", ())}
    present = tokenizer.get_added_tokens_decoder().values()
    missing = sorted(added - {token.content for token in present})
    left_out += [f"added token {content!r}" for content in missing]
    if left_out:
        file = directory / "tokenizer.json"
        rule = f"transformers 5 leaves out of a {name} (version 4 does not)"
        fix = "set tokenizer_class=PreTrainedTokenizerFast to have it in every version"
        warnings.warn(
            f"{file} has {', '.join(left_out)}, which {rule}; {fix}", RuntimeWarning, stacklevel=4
        )


def space_scheme(state: Mapping) -> tuple | None:
    """Return where spaces are put and replaced, in either form of SentencePiece's conversion."""
    normalizer, words = state.get("normalizer"), state.get("pre_tokenizer")
    if normalizer is None and words and words["type"] == "Metaspace":
        plain = words.get("replacement") == "▁" and not words.get("split", True)
        return (words.get("prepend_scheme", "always"),) if plain else None
    steps = normalizer.get("normalizers", ()) if normalizer and words is None else ()
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    if [*steps] == [{"type": "Prepend", "prepend": "▁"}, replaced]:
        return ("always",)
    return ("never",) if [*steps] == [replaced] else None


MODEL_FLAGS = ("dropout", "byte_fallback", "ignore_merges")  # that change the ids
_EMPTY = {"type": "BPE", "vocab": {}, "merges": []}


def byte_level(model: models.BPE, *, add_prefix_space: bool = False) -> Tokenizer:
    """Return a tokenizer with GPT-2's pre-tokenizer, decoder and post-processor."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _is_bpe(tokenizer: Tokenizer) -> bool:
    return isinstance(tokenizer.model, models.BPE)


def _cleaning(decoder: Any) -> decoders.Decoder:
    """Return a decoder that also removes spaces, as transformers' `clean_up_tokenization` does."""
    if decoder is None:  # words are joined by spaces
        joined = [decoders.Replace(Regex("^"), " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    else:
        joined = [decoder, decoders.Fuse()]
    steps = [decoders.Replace(spaced, text) for spaced, text in CLEANED.items()]
    return decoders.Sequence([*joined, *steps])


def _effect(part: Any) -> tuple[str, list]:
    """Return what a normalizer or a pre-tokenizer does to the ids."""
    return _kind(part), [step for step in _steps(part) if step["type"] in ("Split", "Replace")]


def _steps(part: Any) -> list[dict]:
    if part is None or part["type"] != "Sequence":
        return [] if part is None else [part]
    return next((value for value in part.values() if isinstance(value, list)), [])


def _kind(part: Any) -> str:
    """Describe a normalizer or a pre-tokenizer by what it does to the ids, but for patterns."""
    if part is None:
        return "none"
    if part["type"] == "Sequence":
        return " + ".join(map(_kind, _steps(part)))
    if part["type"] == "Metaspace":
        names = ("replacement", "prepend_scheme", "split")
        return f"Metaspace({', '.join(f'{name}={part.get(name)}' for name in names)})"
    if part["type"] != "ByteLevel":
        return part["type"]
    prefix, words = part.get("add_prefix_space", True), part.get("use_regex", True)
    return f"ByteLevel(add_prefix_space={prefix}, use_regex={words})"


def _check_ids(directory: Path, tokenizer: Tokenizer, declared: Mapping[int, AddedToken]) -> None:
    for index, token in declared.items():
        got = tokenizer.token_to_id(token.content)
        if got != index:
            wrong = f"{token.content!r} as id {index}, where transformers gives it {got}"
            fix = "list every added token, without gaps after the vocabulary"
            raise InputError(f"the tokenizer files of {directory} have {wrong}; {fix}")


def _template(tokenizer: Tokenizer, special: Mapping[str, str], adds: Mapping[str, Any]):
    """Return the post-processor that adds bos before and eos after a text, where wanted."""
    bos = special.get("bos_token") if adds.get("add_bos_token") else None
    eos = special.get("eos_token") if adds.get("add_eos_token") else None

    def around(text: str, kind: int) -> Iterable[str]:
        parts = (bos and f"{bos}:{kind}", f"{text}:{kind}", eos and f"{eos}:{kind}")
        return filter(None, parts)

    ids = {token: tokenizer.token_to_id(token) for token in (bos, eos) if token}
    return processors.TemplateProcessing(
        single=[*around("$A", 0)],
        pair=[*around("$A", 0), *around("$B", 1)],
        special_tokens=list(ids.items()),
    )
