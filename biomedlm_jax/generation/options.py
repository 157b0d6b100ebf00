"""Options: every setting of generation, checked before anything is compiled.

A model's `generation_config.json` has the defaults; keyword arguments or flags override them.
"""

import dataclasses
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from biomedlm_jax.errors import InputError
from biomedlm_jax.files import parse_object, read_json
from biomedlm_jax.generation.beam import Beams
from biomedlm_jax.generation.sampling import LARGEST, Strategy
from biomedlm_jax.interop.directories import (
    CONFIG,
    GENERATION_CONFIG,
    RUN,
    kind_of,
    model_directory,
    read_config,
)
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.settings import Settings, check_names, setting

S = TypeVar("S", bound=Settings)

# Entries that change nothing here; `model_options` reads max_length.
IGNORED = (
    "_from_model_config", "_commit_hash", "bos_token_id", "pad_token_id", "max_length",
    "transformers_version", "use_cache", "cache_implementation", "return_dict_in_generate",
    "output_scores", "output_attentions", "output_hidden_states",
)  # fmt: skip
# transformers' name -> ours, where they differ.
RENAMED = {
    "num_beams": "beams", "num_return_sequences": "samples", "stop_strings": "stop",
    "bad_words_ids": "bad_words", "eos_token_id": "ends",
}  # fmt: skip
# Other entries, at the values with which transformers computes the same without them.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beam_groups": (1,), "diversity_penalty": (0,), "typical_p": (1,), "epsilon_cutoff": (0,),
    "eta_cutoff": (0,), "encoder_repetition_penalty": (1,), "encoder_no_repeat_ngram_size": (0,),
    "renormalize_logits": (False,), "remove_invalid_values": (False,),
    "guidance_scale": (1,), "penalty_alpha": (0,), "token_healing": (False,),
    "suppress_tokens": ([],), "begin_suppress_tokens": ([],), "sequence_bias": ({}, []),
    "force_words_ids": ([],), "constraints": ([],), "low_memory": (False, True),
    "is_assistant": (False,), "output_logits": (False, True), "use_mtp": (False,),
}  # fmt: skip
# Settings of transformers that this decoder lacks; in a config.json they have a meaning, too.
LACKING = (
    "decoder_start_token_id", "dola_layers", "exponential_decay_length_penalty",
    "forced_bos_token_id", "forced_eos_token_id", "max_time", "top_h", "watermarking_config",
)  # fmt: skip
# Entries that state how to compute the same faster.
FASTER = r"compile_config|disable_compile|cache_config|max_cache_len|prefill_chunk_size|" + (
    r"prompt_lookup_num_tokens|speculation_type|(num_)?assistant_\w+|\w+_lookbehind|max_matching_ngram_size|continuous_batching_config"
)
SAMPLING = ("temperature", "top_k", "top_p", "min_p")  # only with a temperature above 0
COMPARING = ("length_penalty", "early_stopping")  # only with several beams
# Of transformers, with do_sample.
SAMPLING_DEFAULTS: dict[str, Any] = {"temperature": 1.0, "top_k": 50}
NO_END = (-1,)  # as `ends`: only max_new_tokens and stop strings end an answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Strategy, Beams):
    """How to generate. The defaults take the likeliest token until the end of text."""

    max_new_tokens: int = setting(
        128, least=1, most=LARGEST, help="tokens of an answer at most, or half of a short context"
    )
    max_length: int = setting(  # of a generation_config.json
        0, least=0, help="tokens of prompt and answer at most, in place of max_new_tokens; 0: off"
    )
    stop: tuple[str, ...] = setting((), help="text that ends an answer and is cut off")
    seed: int = setting(0, least=0, most=LARGEST, help="seed of the samples")

    def __post_init__(self):
        super().__post_init__()
        for name in ("ends", "stop", "bad_words"):
            values = getattr(self, name)
            ids = [i for v in values for i in (v if isinstance(v, tuple) else [v])]
            ids = [i for i in ids if not isinstance(i, str)]
            if any(isinstance(v, str) and v.encode(errors="replace").decode() != v for v in values):
                raise InputError(f"got {name}={values!r}; expected text, not half surrogates")
            if not all(value or value == 0 for value in values):
                raise InputError(f"got {name}={values!r}; expected entries that are not empty")
            if values != NO_END and not all(0 <= i <= LARGEST for i in ids):
                raise InputError(f"got {name}={values!r}; expected token ids of at least 0")
        changed = self.changed()
        if self.min_new_tokens > self.max_new_tokens:
            most = f"max_new_tokens={self.max_new_tokens}"
            raise InputError(f"got min_new_tokens={self.min_new_tokens}; expected at most {most}")
        for switch, names, needed in (
            ("temperature", SAMPLING, "a temperature above 0"),
            ("beams", COMPARING, "at least 2 beams"),
        ):
            unused = sorted(changed & {*names})
            if unused and switch not in changed:
                name, value = unused[0], getattr(self, switch)
                got = f"{name}={getattr(self, name)} with {switch}={value}"
                raise InputError(f"got {got}, where it has no effect; it needs {needed}")
        if self.beams > 1 and self.temperature:
            got = f"beams={self.beams} with temperature={self.temperature!r}"
            raise InputError(f"got {got}; beam search does not sample: leave out one of them")
        if self.samples > 1 and self.beams == 1 and not self.temperature:
            got = f"samples={self.samples} with temperature=0.0, where all would be equal"
            raise InputError(f"got {got}; set a temperature above 0, or beams")

    def changed(self) -> set[str]:
        """Names of the options that differ from their defaults."""
        return {f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}

    def part(self, cls: type[S], **changes: Any) -> S:
        """Return the fields of Strategy or Beams as such an object."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(cls)}
        return cls(**{**values, **changes})

    def strategy(self, config: ModelConfig, tokenizer: Tokenizer | None) -> Strategy:
        """Return the part that decides the next token, with bad words as ids."""
        words: list[tuple[int, ...]] = []
        for word in self.bad_words:
            if isinstance(word, str):
                assert tokenizer is not None
                both = (tokenizer.encode(t, add_special_tokens=False) for t in (word, f" {word}"))
                words += [tuple(spelling.ids) for spelling in both]
            else:
                words.append(word)
        if unknown := [word for word in words if max(word, default=0) >= config.vocab_size]:
            expected = f"expected ids up to {config.vocab_size - 1}"
            raise InputError(f"got bad_words with the ids {unknown[0]}; {expected}")
        ends = () if self.ends == NO_END else self.ends or config.end_ids
        return self.part(Strategy, bad_words=tuple(words), ends=ends)

    def to_generation_config(
        self, config: ModelConfig, tokenizer: Tokenizer | None
    ) -> dict[str, Any]:
        """Return the same options as transformers' `generation_config.json`, and the seed."""
        values = {name: getattr(self, name) for name in self.changed()}
        if self.bad_words:
            values["bad_words"] = self.strategy(config, tokenizer).bad_words
        if self.temperature:
            values["top_k"] = self.top_k  # transformers' default differs
        if self.ends == NO_END:
            values["ends"] = None
        ends = config.end_ids
        theirs = {ours: name for name, ours in RENAMED.items()}
        return {
            "bos_token_id": config.bos_token_id,
            "eos_token_id": list(ends) if config.more_eos_token_ids else config.eos_token_id,
            "do_sample": self.temperature > 0,
            "max_new_tokens": self.max_new_tokens,
            **{theirs.get(name, name): values[name] for name in sorted(values)},
        }


def make_options(generation_config: Mapping[str, Any] | None = None, **given: Any) -> Options:
    """Return options from a `generation_config.json`, overridden by those `given` (None: not).

    As in transformers, sampling needs `do_sample` (or a given temperature), else its settings are
    ignored; so are those of beams without beams; an `eos_token_id` of null is no end at all. Raises
    InputError for unknown names or values, and for those that contradict one another.
    """
    known = [f.name for f in dataclasses.fields(Options) if f.name != "max_length"]
    config, values = generation_config or {}, {}
    for name, value in config.items():
        ours = RENAMED.get(name, name)
        if ours == "ends" and value in (None, []):
            value = NO_END
        if name in IGNORED or name == "do_sample" or value is None:
            continue
        if value in NEUTRAL.get(name, ()) or re.fullmatch(FASTER, name):
            continue
        if ours not in known:
            where = f"{GENERATION_CONFIG} or {CONFIG}"
            got = f"{name}={value!r} in {where}, which this decoder does not have"
            raise InputError(f"got {got}; remove it, or use one of {', '.join(known)}")
        if ours in ("ends", "stop") and not isinstance(value, list | tuple):
            value = (value,)
        values[ours] = _as_tuples(value)
    check_names(given, known, where="options", complete=False)
    given = {name: value for name, value in given.items() if value is not None}
    given |= {name: as_texts(given[name]) for name in {"stop", "bad_words"} & {*given}}
    if config.get("do_sample"):
        values = {**SAMPLING_DEFAULTS, **values}
        if not values["temperature"] and given.get("temperature") is None:
            got = f"temperature={values['temperature']} with do_sample in {GENERATION_CONFIG}"
            raise InputError(f"got {got}; set one above 0, or do_sample to false for no sampling")
    if not given.get("temperature", config.get("do_sample")):
        values = {name: value for name, value in values.items() if name not in SAMPLING}
    if given.get("beams", values.get("beams", 1)) == 1:
        values = {name: value for name, value in values.items() if name not in COMPARING}
    return Options(**{**values, **given})


def model_options(
    config: ModelConfig, directory: str | Path | None = None, **given: Any
) -> tuple[Options, int]:
    """Return a model's options, overridden by those `given`, and the id that begins an empty text.

    They are those of the generation_config.json of the model's `directory`, if there is one. As in
    transformers, its max_length counts where no max_new_tokens is set; without both, an answer has
    up to 128 tokens, or half of a short context. Raises what `make_options` raises.
    """
    entries = {} if directory is None else read_generation_config(directory)
    try:
        return options_from(config, entries, **given)
    except InputError as error:
        if not entries:
            raise
        raise InputError(f"{error} ({GENERATION_CONFIG} or {CONFIG} of {directory})") from None


def options_from(config: ModelConfig, entries: dict[str, Any], **given: Any) -> tuple[Options, int]:
    """Return what `model_options` does, from the entries of a generation_config.json."""
    length, entries = 0, dict(entries)
    if entries.get("max_new_tokens") is None and given.get("max_new_tokens") is None:
        length = Options(max_length=entries.get("max_length") or 0).max_length  # or InputError
        length, short = min(length, config.context_length), config.context_length // 2
        new = max(length - 1, 1) if length else min(Options.max_new_tokens, short)
        entries["max_new_tokens"] = new
    options = dataclasses.replace(make_options(entries, **given), max_length=length)
    begin = entries.get("bos_token_id")
    begin = config.bos_token_id if begin is None else begin
    if type(begin) is not int or not 0 <= begin < config.vocab_size:
        expected = f"expected an id up to {config.vocab_size - 1}"
        raise InputError(f"got bos_token_id={begin!r}; {expected}")
    return options, begin


def read_generation_config(path: str | Path) -> dict[str, Any]:
    """Read `generation_config.json` of a model's directory; a fine-tuning run has it in RUN/model.

    Without that file its entries in config.json have a meaning, as in transformers. `export_hf`
    writes what it is given as `generation`.
    """
    file = model_directory(path) / GENERATION_CONFIG
    if file.exists():
        settings = read_json(file)
        if "eos_token_id" not in settings:
            got = f"{file} has no eos_token_id: transformers does not stop at an end of text then"
            warnings.warn(f"{got}, answers here do; add it", RuntimeWarning, stacklevel=2)
        return settings
    if not (model_directory(path) / CONFIG).exists():
        return {}
    config = read_config(path)
    if kind_of(path) == RUN:
        entries = str(config["model"].get("hf_entries", "{}"))
        config = parse_object(entries.encode(errors="replace"), f"{path}: hf_entries of {CONFIG}")
    known = {field.name for field in dataclasses.fields(Options)}
    known |= {"do_sample", *NEUTRAL, *LACKING, *RENAMED}
    if config.get("eos_token_id") not in (None, []):  # it is the model's
        known.remove("eos_token_id")
    return {name: value for name, value in config.items() if name in known}


def as_texts(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return one text or several as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


def _as_tuples(value):
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value
