"""Options: everything a person can ask of generation, checked before anything is compiled.

They begin from a model's `generation_config.json` (transformers' names) and go on with flags.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from biomedlm_jax.generation.beam import EARLY_STOPPING, Beams
from biomedlm_jax.generation.sampling import Strategy
from biomedlm_jax.model.config import GPTConfig

SETTINGS = "generation_config.json"
# Entries of transformers' file that say nothing about what is generated here.
SILENT = (
    "_from_model_config",
    "bos_token_id",
    "pad_token_id",
    "transformers_version",
    "use_cache",
    "cache_implementation",
    "return_dict_in_generate",
    "output_scores",
    "output_attentions",
    "output_hidden_states",
)
# transformers' name -> ours, where they differ.
RENAMED = {"num_beams": "beams", "num_return_sequences": "samples", "stop_strings": "stop"}


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
    bad_words: tuple[str, ...] = ()  # never said, neither with nor without a space before them
    stop: tuple[str, ...] = ()  # strings that end an answer and are cut off
    ends: tuple[int, ...] = ()  # token ids that end an answer; () for the model's end of text
    samples: int = 1  # answers to a prompt
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    seed: int = 0

    def __post_init__(self):
        for name in ("max_new_tokens", "samples", "beams"):
            self._need(name, getattr(self, name) >= 1, "at least 1")
        names = ("temperature", "top_k", "min_length", "min_new_tokens", "no_repeat_ngram_size")
        for name in (*names, "seed"):
            self._need(name, getattr(self, name) >= 0, "at least 0")
        self._need("top_p", 0 < self.top_p <= 1, "above 0 and at most 1")
        self._need("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        self._need("repetition_penalty", self.repetition_penalty > 0, "above 0")
        known = ", ".join(map(repr, EARLY_STOPPING))
        self._need("early_stopping", self.early_stopping in EARLY_STOPPING, f"one of {known}")
        for name in ("bad_words", "stop"):
            texts = getattr(self, name)
            fits = isinstance(texts, tuple) and all(t and isinstance(t, str) for t in texts)
            self._need(name, fits, "texts that are not empty")
        self._check_together()

    def _need(self, name: str, fits: bool, allowed: str) -> None:
        if not fits:
            raise ValueError(f"got {name}={getattr(self, name)!r}; it must be {allowed}")

    def _check_together(self) -> None:
        changed = {f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"got min_new_tokens={self.min_new_tokens} above max_new_tokens="
                f"{self.max_new_tokens}; lower the one or raise the other"
            )
        for needs, names in (
            ("temperature", ("top_k", "top_p", "min_p")),
            ("beams", ("length_penalty", "early_stopping")),
        ):
            idle = sorted(changed.intersection(names))
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

    def strategy(self, config: GPTConfig, tokenizer: Tokenizer | None) -> Strategy:
        """The part that decides tokens, with bad words as ids."""
        words = []
        for word in self.bad_words:
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


def make_options(settings: dict | None = None, **given) -> Options:
    """Options from `settings` (as in generation_config.json), and `given` ones over them.

    Raises ValueError for names or values that are unknown or contradict one another.
    """
    known = [field.name for field in dataclasses.fields(Options)]
    values = {}
    for name, value in (settings or {}).items():
        if name in SILENT or value is None:
            continue
        name = RENAMED.get(name, name)
        if name == "eos_token_id":
            values["ends"] = tuple(value) if isinstance(value, list) else (value,)
        elif name == "do_sample":
            values.setdefault("temperature", 1.0 if value else 0.0)
        elif name in known:
            values[name] = tuple(value) if isinstance(value, list) else value
        else:
            raise ValueError(
                f"{SETTINGS} has {name}={value!r}, which this decoder does not know; remove it, or "
                f"use one of {', '.join(known)}"
            )
    if not (settings or {}).get("do_sample", True):
        # As in transformers, what is for drawing alone does nothing then.
        for name in ("temperature", "top_k", "top_p", "min_p"):
            values.pop(name, None)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"got the option {unknown[0]!r}; the options are {', '.join(known)}")
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("temperature") == 0:
        values = {k: v for k, v in values.items() if k not in ("top_k", "top_p", "min_p")}
    if given.get("beams") == 1:
        values = {k: v for k, v in values.items() if k not in ("length_penalty", "early_stopping")}
    return Options(**{**values, **given})


def read_settings(path: str | Path) -> dict:
    """The `generation_config.json` of a model's directory; empty if it has none."""
    file = Path(path) / SETTINGS
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
