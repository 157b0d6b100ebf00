"""Options: everything a person can ask of generation, checked before anything is compiled.

They begin from a model's `generation_config.json`, with transformers' names and defaults, and go on
with flags.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from biomedlm_jax.generation.beam import EARLY_STOPPING, Beams
from biomedlm_jax.generation.sampling import Strategy
from biomedlm_jax.interop.directories import GENERATION_CONFIG
from biomedlm_jax.model.config import ModelConfig

# Entries of transformers' file that say nothing about what is generated here.
SILENT = (
    "_from_model_config",
    "bos_token_id",
    "pad_token_id",
    "max_length",  # there, too, max_new_tokens goes before it, which always has a value here
    "transformers_version",
    "use_cache",
    "cache_implementation",
    "return_dict_in_generate",
    "output_scores",
    "output_attentions",
    "output_hidden_states",
)
# transformers' name -> ours, where they differ.
RENAMED = {
    "num_beams": "beams",
    "num_return_sequences": "samples",
    "stop_strings": "stop",
    "bad_words_ids": "bad_words",
    "eos_token_id": "ends",
}
# What counts only where tokens are drawn, and only where there are beams.
DRAWING = ("temperature", "top_k", "top_p", "min_p")
COMPARING = ("length_penalty", "early_stopping")
DRAWN_BY_DEFAULT = {"temperature": 1.0, "top_k": 50}  # by transformers with do_sample
LARGEST = 2**31 - 1  # whole number that the devices know


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How to generate. The defaults take the likeliest token until the end of text."""

    max_new_tokens: int = 128
    temperature: float = 0.0  # 0: greedy; above it tokens are drawn
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # above 1 against what the text has already
    no_repeat_ngram_size: int = 0
    min_length: int = 0  # tokens, prompt included, as transformers counts
    min_new_tokens: int = 0
    bad_words: tuple[str | tuple[int, ...], ...] = ()  # never said: texts, with a space or not; ids
    stop: tuple[str, ...] = ()  # strings that end an answer and are cut off
    ends: tuple[int, ...] = ()  # token ids that end an answer; () for the model's end of text
    samples: int = 1  # answers to a prompt
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    seed: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            flag = isinstance(value, bool)
            if field.type is int:
                self._need(name, isinstance(value, int) and not flag, "a whole number")
                self._need(name, value <= LARGEST, f"at most {LARGEST}")
            elif field.type is float:
                self._need(name, isinstance(value, int | float) and not flag, "a number")
                self._need(name, abs(value) < math.inf, "finite")  # which NaN is not, either
        for name in ("max_new_tokens", "samples", "beams"):
            self._need(name, getattr(self, name) >= 1, "at least 1")
        names = ("temperature", "top_k", "min_length", "min_new_tokens", "no_repeat_ngram_size")
        for name in (*names, "seed"):
            self._need(name, getattr(self, name) >= 0, "at least 0")
        self._need("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._need("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        self._need("repetition_penalty", self.repetition_penalty > 0, "above 0")
        known = ", ".join(map(repr, EARLY_STOPPING))
        fits = self.early_stopping in EARLY_STOPPING and isinstance(self.early_stopping, bool | str)
        self._need("early_stopping", fits, f"one of {known}")
        self._need("ends", _are_ids(self.ends), "token ids")
        self._need("stop", _are_texts(self.stop), "texts that are not empty")
        fits = isinstance(self.bad_words, tuple) and all(
            word and (isinstance(word, str) or _are_ids(word)) for word in self.bad_words
        )
        self._need("bad_words", fits, "texts, or tuples of token ids, that are not empty")
        self._check_together()

    def _need(self, name: str, fits: bool, allowed: str) -> None:
        if not fits:
            raise ValueError(f"got {name}={getattr(self, name)!r}; it must be {allowed}")

    def _changed(self) -> set[str]:
        return {f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}

    def _check_together(self) -> None:
        changed = self._changed()
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"got min_new_tokens={self.min_new_tokens} above max_new_tokens="
                f"{self.max_new_tokens}; lower the one or raise the other"
            )
        for needs, names in (("temperature", DRAWING), ("beams", COMPARING)):
            idle = sorted(changed & set(names))
            if idle and needs not in changed:
                least = "a temperature above 0" if needs == "temperature" else "at least 2 beams"
                raise ValueError(
                    f"got {idle[0]}={getattr(self, idle[0])} with {needs}="
                    f"{getattr(self, needs)}, where it does nothing; ask for {least} with it"
                )
        if self.beams > 1 and (self.temperature or self.stop):
            other = "stop" if self.stop else "temperature"
            raise ValueError(
                f"got beams={self.beams} with {other}={getattr(self, other)!r}; beam search draws "
                "nothing and ends at token ids only: leave out the one or the other"
            )
        if self.samples > 1 and self.beams == 1 and not self.temperature:
            raise ValueError(
                f"got samples={self.samples} without a temperature: all would be equal; set a "
                "temperature above 0, or beams"
            )
        if self.samples > self.beams > 1:
            raise ValueError(
                f"got samples={self.samples} from beams={self.beams}; there are no more answers "
                "than beams"
            )

    def strategy(self, config: ModelConfig, tokenizer: Tokenizer | None) -> Strategy:
        """The part that decides tokens, with bad words as ids."""
        words = []
        for word in self.bad_words:
            if isinstance(word, tuple):
                words.append(word)
                continue
            for text in (word, f" {word}"):
                ids = tuple(tokenizer.encode(text, add_special_tokens=False).ids)
                words.append(ids)
        names = [f.name for f in dataclasses.fields(Strategy) if hasattr(self, f.name)]
        values = {name: getattr(self, name) for name in names}
        ends = self.ends or (config.eos_token_id,)
        return Strategy(**{**values, "bad_words": tuple(words), "ends": ends})

    def beam_options(self) -> Beams:
        """The part that compares beams."""
        return Beams(
            beams=self.beams,
            length_penalty=self.length_penalty,
            early_stopping=self.early_stopping,
            returned=self.samples,
        )

    def settings(self, config: ModelConfig, tokenizer: Tokenizer | None) -> dict:
        """The `generation_config.json` that says all this to transformers, and to `make_options`.

        The seed is in it, too, although transformers has one for the whole process only.
        """
        said = {name: getattr(self, name) for name in self._changed()}
        if self.bad_words:
            said["bad_words"] = self.strategy(config, tokenizer).bad_words
        if self.temperature:
            said["top_k"] = self.top_k  # for it has another default there
        theirs = {ours: name for name, ours in RENAMED.items()}
        return {
            "bos_token_id": config.eos_token_id,
            "eos_token_id": config.eos_token_id,
            "do_sample": self.temperature > 0,
            "max_new_tokens": self.max_new_tokens,
            **{theirs.get(name, name): said[name] for name in sorted(said)},
        }


def make_options(settings: dict | None = None, **given) -> Options:
    """Options from `settings` (as in generation_config.json), and `given` ones over them.

    As in transformers, settings for drawing count with `do_sample` (or a given temperature) only,
    and those that compare beams with beams only. Raises ValueError for names or values that are
    unknown or contradict one another.
    """
    known = [field.name for field in dataclasses.fields(Options)]
    settings, values = settings or {}, {}
    for name, value in settings.items():
        ours = RENAMED.get(name, name)
        if name in SILENT or name == "do_sample" or value is None:
            continue
        if ours not in known:
            raise ValueError(
                f"{GENERATION_CONFIG} has {name}={value!r}, which this decoder does not know; "
                f"remove it, or use one of {', '.join(known)}"
            )
        if ours in ("ends", "stop") and not isinstance(value, list | tuple):
            value = (value,)
        values[ours] = _as_tuples(value)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"got the option {unknown[0]!r}; the options are {', '.join(known)}")
    given = {name: value for name, value in given.items() if value is not None}
    if settings.get("do_sample"):
        values = {**DRAWN_BY_DEFAULT, **values}
    if not given.get("temperature", settings.get("do_sample")):
        values = {name: value for name, value in values.items() if name not in DRAWING}
    if given.get("beams", values.get("beams", 1)) == 1:
        values = {name: value for name, value in values.items() if name not in COMPARING}
    return Options(**{**values, **given})


def new_tokens(config: ModelConfig) -> int:
    """How many tokens an answer may have unless it is said: 128, or half of a short context."""
    return min(Options.max_new_tokens, config.context_length // 2)


def read_settings(path: str | Path) -> dict:
    """The `generation_config.json` of a model's directory; empty if it has none."""
    file = Path(path) / GENERATION_CONFIG
    if not file.exists():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{file} holds a {type(settings).__name__}; expected a JSON object")
    return settings


def as_texts(value: str | Sequence[str]) -> tuple[str, ...]:
    """One text or several, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


def _as_tuples(value):
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


def _are_ids(value) -> bool:
    return isinstance(value, tuple) and all(type(i) is int and 0 <= i <= LARGEST for i in value)


def _are_texts(value) -> bool:
    return isinstance(value, tuple) and all(text and isinstance(text, str) for text in value)
