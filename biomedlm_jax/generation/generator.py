"""generate(): continue prompts that are text, in batches, streamed or whole."""

import dataclasses
import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from biomedlm_jax.corpus.tokenizer import prefix_ids
from biomedlm_jax.errors import InputError
from biomedlm_jax.generation import beam, decoding
from biomedlm_jax.generation.beam import Beams
from biomedlm_jax.generation.decoder import make_decoder
from biomedlm_jax.generation.options import Options, model_options
from biomedlm_jax.generation.stats import Stats
from biomedlm_jax.generation.stops import stop_table, token_bytes
from biomedlm_jax.interop.huggingface import check_tokenizer
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.language_model import LanguageModel

NOTICE = "A model's answers are not medical advice: they may be wrong, numbers above all."
TRUNCATE = ("error", "left")
TABLES = 16  # of stop strings that are kept; each has a column for every token
UNFINISHED = "\ufffd"  # how a byte-level tokenizer shows the first bytes of a character


@dataclasses.dataclass(frozen=True)
class Answer:
    """A continuation of a prompt, without the prompt."""

    text: str  # up to the end of text or a stop string, without either and special tokens
    tokens: list[int]  # with the end, or the tokens of the stop string
    score: float | None = None  # of a beam: log-probability / length ** length_penalty


class Generator:
    """A decoder of one model, with its tokenizer (else InputError) and speed statistics."""

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer | None, *, begin: int | None = None
    ):
        self.config, self.tokenizer = model.config, require_tokenizer(tokenizer, model.config)
        self.begin = self.config.bos_token_id if begin is None else begin
        self.decoder = make_decoder(model)
        self.stats = Stats(self.decoder)
        self._tables: dict[tuple[str, ...], np.ndarray] = {}

    def encode(
        self, prompts: Sequence[str], options: Options, *, truncate: str = "error"
    ) -> list[list[int]]:
        """Return the ids of prompts, after those that the tokenizer puts before a text.

        A prompt that begins with them gets no more; an empty one without any is `begin`, by default
        the model's bos_token_id. Raises InputError for one that does not fit with its answer;
        `truncate="left"` drops the beginning of its text instead.
        """
        if truncate not in TRUNCATE:
            raise InputError(f"got truncate={truncate!r}; expected one of {', '.join(TRUNCATE)}")
        prefix, rows = prefix_ids(self.tokenizer), []
        new = 1 if options.max_length else options.max_new_tokens
        room = (options.max_length or self.config.context_length) - new
        for number, text in enumerate(prompts):
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            ids = ids[len(prefix) :] if ids[: len(prefix)] == prefix else ids
            if truncate == "left" and room > len(prefix):
                ids = ids[-(room - len(prefix)) :]
            rows.append([*prefix, *ids] or [self.begin])
            if options.max_length and len(rows[-1]) > room:
                got = f"{len(rows[-1])} tokens, and the model's max_length is {options.max_length}"
                raise InputError(f"prompt {number} has {got}; pass --max_new_tokens")
        decoding.check_prompts(self.config, rows, new)
        return rows

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        options: Options,
        *,
        numbers: Sequence[int] | None = None,
        watch: Callable[[list[str]], None] | None = None,
        stops_span: bool = True,
    ) -> list[list[Answer]]:
        """Answer one batch of prompts of token ids: return `options.samples` answers to each.

        `numbers` are the prompts', see `decode`; `watch` is called after every step with the texts
        so far, one for each answer. A stop string may begin in the prompt if `stops_span`, as in
        transformers; only one inside the answer is cut off.
        """
        if options.max_length and len({*map(len, prompts)}) > 1:  # each length has its own limit
            named = zip(prompts, range(len(prompts)) if numbers is None else numbers, strict=True)
            alone: dict[str, Any] = {"watch": watch, "stops_span": stops_span}
            return [self.answers([p], options, numbers=[n], **alone)[0] for p, n in named]
        strategy = options.strategy(self.config, self.tokenizer)

        def show(rows: list[list[int]]) -> list[bool]:
            if watch:
                watch([self.text(row, strategy.ends, options.stop, settled_text) for row in rows])
            return [False] * len(rows)

        new = options.max_length - len(prompts[0]) if options.max_length else options.max_new_tokens
        common: dict[str, Any] = {"max_new_tokens": new, "strategy": strategy}
        common |= {"numbers": numbers, "stops": self.stops(options.stop), "stops_span": stops_span}
        if options.beams > 1:
            decoded = beam.search(self.decoder, prompts, beams=options.part(Beams), **common)
        else:
            common |= {"seed": options.seed, "samples": options.samples}
            if watch:
                common |= {"watch": show, "every": 1}
            decoded = decoding.decode(self.decoder, prompts, **common)
        self.stats.add(decoded, prompts, beams=options.beams)
        scores = decoded.scores or [[None] * len(rows) for rows in decoded.tokens]
        return [
            [
                Answer(self.text(tokens, strategy.ends, options.stop), tokens, score)
                for tokens, score in zip(*of_prompt, strict=True)
            ]
            for of_prompt in zip(decoded.tokens, scores, strict=True)
        ]

    def stream(self, prompt: Sequence[int], options: Options) -> Iterator[str]:
        """Yield the answer to one prompt in pieces, each as soon as it cannot change any more."""
        if options.beams > 1 or options.samples > 1:
            got = f"beams={options.beams} and samples={options.samples}"
            raise InputError(f"got {got}; only one answer is streamed: leave out both")
        texts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        result: Future[str] = Future()

        def work() -> None:
            try:
                whole = self.answers([prompt], options, watch=lambda rows: texts.put(rows[0]))
                result.set_result(whole[0][0].text)
            except BaseException as error:
                result.set_exception(error)
            texts.put(None)

        threading.Thread(target=work, daemon=True).start()  # pieces are yielded while it decodes
        shown = ""
        while (text := texts.get()) is not None:
            if len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        yield result.result()[len(shown) :]

    def stops(self, strings: tuple[str, ...]) -> np.ndarray | None:
        """Return the `stop_table` of strings, None of none."""
        if strings and strings not in self._tables:
            if len(self._tables) >= TABLES:
                del self._tables[next(iter(self._tables))]
            self._tables[strings] = stop_table(strings, self._token_bytes)
        return self._tables.get(strings)

    @functools.cached_property
    def _token_bytes(self) -> list[bytes]:
        return token_bytes(self.tokenizer, self.config.vocab_size)

    def text(self, tokens: list[int], ends: Sequence[int], stops: Sequence[str], cut=None) -> str:
        """Return the text before end and stop strings, as `cut`, without special tokens."""
        before = tokens[:-1] if tokens and tokens[-1] in ends else tokens
        whole = self.tokenizer.decode(before, skip_special_tokens=False)
        return self._without_special(tokens, whole, len((cut or before_stops)(whole, stops)))

    def _without_special(self, tokens: list[int], whole: str, size: int) -> str:
        """Return the first `size` characters of the tokens' text `whole`, less special tokens."""
        special = self.tokenizer.get_added_tokens_decoder()
        special = {i for i, token in special.items() if token.special}
        if special.isdisjoint(tokens):
            return whole[:size]
        count, begun = len(tokens), whole
        while not (len(begun) <= size and whole.startswith(begun)):
            count -= 1
            begun = self.tokenizer.decode(tokens[:count], skip_special_tokens=False)
        rest = "" if count < len(tokens) and tokens[count] in special else whole[len(begun) : size]
        return self.tokenizer.decode(tokens[:count]) + rest


def settled_text(text: str, stops: Sequence[str]) -> str:
    """Return the text without an end that further tokens may change or make a stop string."""
    text = before_stops(text.rstrip(UNFINISHED), stops)
    for stop in stops:
        prefixes = (stop[:size] for size in range(len(stop) - 1, 0, -1))
        text = text.removesuffix(next((p for p in prefixes if text.endswith(p)), ""))
    return text


def before_stops(text: str, stops: Sequence[str]) -> str:
    """Return the text before the stop strings, cut at one after the other, as lm-eval does."""
    for stop in stops:
        text = text.partition(stop)[0]
    return text


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    batch_size: int = 16,
    truncate: str = "error",
    directory: str | Path | None = None,
    **options,
) -> list[str]:
    """Return continuations of `prompts`, without prompt, end of text and stop string.

    `options` are fields of `Options`, such as max_new_tokens, temperature, beams, stop. With the
    `directory` of the model their defaults are those of `biomedlm generate`. Several samples of one
    prompt are adjacent. No answer depends on `batch_size`. `truncate` is that of
    `Generator.encode`. Raises InputError if options are unknown or contradict one another, the
    tokenizer does not fit the model, a prompt does not fit its positions, or logits are NaN.
    """
    settings, begin = model_options(model.config, directory, **options)
    generator = Generator(model, tokenizer, begin=begin)
    ids = generator.encode(prompts, settings, truncate=truncate)
    answers = dict(answer_batches(generator, ids, settings, batch_size=batch_size))
    return [answer.text for number in range(len(ids)) for answer in answers[number]]


def answer_batches(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    options: Options,
    *,
    batch_size: int,
    numbers: Sequence[int] | None = None,
    stops_span: bool = True,
) -> Iterator[tuple[int, list[Answer]]]:
    """Yield each prompt's index and answers; batches of similar lengths need little padding.

    `numbers` are those of `Generator.answers`, by default the indices.
    """
    numbers = range(len(prompts)) if numbers is None else numbers
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        named: dict[str, Any] = {"numbers": [numbers[i] for i in batch], "stops_span": stops_span}
        answers = generator.answers([prompts[i] for i in batch], options, **named)
        yield from zip(batch, answers, strict=True)


def require_tokenizer(tokenizer: Tokenizer | None, config: ModelConfig) -> Tokenizer:
    """Return the tokenizer; raise InputError if there is none, or it does not fit the model."""
    if tokenizer is None:
        raise InputError("the model's directory has no tokenizer; put its tokenizer.json there")
    check_tokenizer(tokenizer, config)
    return tokenizer
