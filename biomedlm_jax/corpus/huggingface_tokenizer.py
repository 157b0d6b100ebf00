"""Build the tokenizer that transformers' AutoTokenizer (version 5) builds from a directory.

For a GPT-2 it does not read tokenizer.json as it is: the class GPT2Tokenizer takes vocabulary,
merges and post-processor from it and makes the rest anew, as from vocab.json and merges.txt. The
class PreTrainedTokenizerFast takes the whole file. Then both add the tokens that the other files
name. The rules are those of transformers 5.23: `AutoTokenizer.from_pretrained`,
`PreTrainedTokenizerBase._from_pretrained`, `TokenizersBackend.__init__` and `GPT2Tokenizer`.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import read_json

# transformers' class of byte-level BPE tables: a format of tokenizers, whatever their model is.
GPT2 = "GPT2Tokenizer"
OF_MODELS = {"gpt2": GPT2}  # the class of a tokenizer.json by model_type, without a stated class
# Classes that take tokenizer.json as it is; None: neither the files nor a config name a class.
WHOLE = (None, "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend", "BloomTokenizer")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DEFAULT = "<|endoftext|>"  # of a GPT2Tokenizer: bos, eos and unk
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
    if padding.get("pad_token") and name != GPT2:  # that class is built without it
        special.setdefault("pad_token", padding["pad_token"])
    if name == GPT2:
        special = {**dict.fromkeys(("unk_token", "bos_token", "eos_token"), DEFAULT), **special}
        tokenizer = _gpt2(directory, settings, whole)
    else:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    order = (*NAMED, *special)
    special = {key: special[key] for key in order if special.get(key) is not None}
    _add(tokenizer, special, extra, declared)
    _check_ids(directory, tokenizer, declared)
    contents = {key: _content(token) for key, token in special.items()}
    adds = {} if whole else {key: settings[key] for key in ADDS if key in settings}
    if adds or tokenizer.post_processor is None:
        tokenizer.post_processor = _template(tokenizer, contents, adds)
    if settings.get(CLEAN) and (settings.get(CLEAN_BPE) or not _is_bpe(tokenizer)):
        tokenizer.decoder = _cleaning(tokenizer.decoder)
    if whole and name != GPT2 and whole["model"].get("dropout"):
        got = f"{directory / 'tokenizer.json'} has model.dropout={whole['model']['dropout']}"
        fix = "set it to null for the same ids each time"
        warnings.warn(f"{got}: ids are random; {fix}", RuntimeWarning, stacklevel=3)
    if name == GPT2 and whole:
        _warn_of_differences(directory, tokenizer, whole)
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
    implied = OF_MODELS.get(str(of_model)) if whole else GPT2
    name = settings.get("tokenizer_class") or config.get("tokenizer_class") or implied
    short = name and str(name).removesuffix("Fast")
    if short == "LlamaTokenizer" and '"ByteLevel"' in json.dumps(whole):
        short = None
    if short == GPT2 and whole and whole.get("model", {}).get("type", "BPE") != "BPE":
        got = f"{directory / 'tokenizer.json'} has a model of type {whole['model']['type']}"
        raise InputError(f"{got}, and {GPT2} needs BPE; set tokenizer_class in its config")
    if short == GPT2 or (short in WHOLE and whole):
        return short
    got = f"{directory} has tokenizer_class {name}"
    if short in WHOLE:
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


def _gpt2(directory: Path, settings: Mapping, whole: Mapping) -> Tokenizer:
    """Return what GPT2Tokenizer makes of the files, without added tokens."""
    options: dict[str, Any] = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    if whole:
        listed = whole["model"].get("merges", ())
        merges: Any = [tuple(m.split(" ") if isinstance(m, str) else m) for m in listed]
        model = models.BPE(vocab=whole["model"]["vocab"], merges=merges, **options)
    else:
        files = (str(directory / name) for name in ("vocab.json", "merges.txt"))
        model = models.BPE.from_file(*files, **options)
    prefix = bool(settings.get("add_prefix_space", False))
    tokenizer = byte_level(model, add_prefix_space=prefix)
    if whole:
        rest = Tokenizer.from_str(json.dumps({**whole, "model": _EMPTY, "added_tokens": []}))
        tokenizer.post_processor = rest.post_processor
    return tokenizer


def _warn_of_differences(directory: Path, tokenizer: Tokenizer, whole: Mapping) -> None:
    """Warn of the parts of tokenizer.json that GPT2Tokenizer leaves out."""
    words = tokenizer.pre_tokenizer
    used = {"normalizer": None, "pre_tokenizer": words and json.loads(words.__getstate__())}
    left_out = [
        f"{part} {_kind(whole.get(part))}"
        for part in used
        if _kind(whole.get(part)) != _kind(used[part])
    ]
    left_out += [f"model.{key}" for key in _MODEL_FLAGS if whole["model"].get(key)]
    added = {token["content"] for token in whole.get("added_tokens", ())}
    present = tokenizer.get_added_tokens_decoder().values()
    missing = sorted(added - {token.content for token in present})
    left_out += [f"added token {content!r}" for content in missing]
    if left_out:
        file = directory / "tokenizer.json"
        rule = f"transformers 5 leaves out of a {GPT2} (version 4 does not)"
        fix = "set tokenizer_class=PreTrainedTokenizerFast to have it in every version"
        warnings.warn(
            f"{file} has {', '.join(left_out)}, which {rule}; {fix}", RuntimeWarning, stacklevel=4
        )


_MODEL_FLAGS = ("dropout", "byte_fallback", "ignore_merges")
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


def _kind(part: Any) -> str:
    """Describe a normalizer or a pre-tokenizer by what it does to the ids."""
    if part is None:
        return "none"
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
