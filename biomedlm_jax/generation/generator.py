"""generate(): continue prompts that are text, in batches, streamed or whole."""

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Sequence

from tokenizers import Tokenizer

from biomedlm_jax.generation import beam, decoding
from biomedlm_jax.generation.decoder import make_decoder
from biomedlm_jax.generation.options import Options, as_texts, default_new_tokens, make_options
from biomedlm_jax.generation.stats import Stats
from biomedlm_jax.interop.huggingface import check_tokenizer
from biomedlm_jax.model.config import ModelConfig
from biomedlm_jax.model.language_model import LanguageModel

NOTICE = "BioMedLM's answers are not medical advice: they may be wrong, numbers above all."
TRUNCATE = ("error", "left")
STOP_EVERY = 8  # steps between two searches for stop strings, which run on the host
UNFINISHED = "\ufffd"  # how a byte-level tokenizer shows the first bytes of a character


@dataclasses.dataclass(frozen=True)
class Answer:
    """A continuation of a prompt, without the prompt."""

    text: str  # up to the end of text or a stop string, without either
    tokens: list[int]  # with the end, or the tokens of the stop string
    score: float | None = None  # of a beam: log-probability / length ** length_penalty


class Generator:
    """A model laid out for decoding, with its tokenizer and speed statistics.

    Raises ValueError without a tokenizer, or with one that does not fit the model.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer | None):
        self.config, self.tokenizer = model.config, require_tokenizer(tokenizer, model.config)
        self.decoder = make_decoder(model)
        self.stats = Stats(self.decoder)

    def encode(self, prompt: str, *, new: int, truncate: str = "error") -> list[int]:
        """Return the ids of a prompt; an empty one is the end of text, which begins every text.

        `truncate="left"` drops the beginning of a prompt that does not fit with `new` tokens.
        """
        if truncate not in TRUNCATE:
            raise ValueError(f"got truncate={truncate!r}; expected one of {', '.join(TRUNCATE)}")
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids or [
            self.config.eos_token_id
        ]
        room = self.config.context_length - new
        return ids[-room:] if truncate == "left" and 0 < room < len(ids) else ids

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        options: Options,
        *,
        numbers: Sequence[int] | None = None,
        watch: Callable[[list[str]], None] | None = None,
    ) -> list[list[Answer]]:
        """Answer one batch of prompts of token ids: return `options.samples` answers to each.

        Args:
          numbers: the prompts' numbers, 0, 1, .. by default: errors name them, and samples depend
            on them and the seed only.
          watch: called after every step with the texts so far, one for each answer.
        """
        strategy = options.strategy(self.config, self.tokenizer)

        def stopped(rows: list[list[int]]) -> list[bool]:
            texts = [self._text(row, strategy.ends) for row in rows]
            if watch:
                watch([self._settled(text, options.stop) for text in texts])
            return [any(stop in text for stop in options.stop) for text in texts]

        new = options.max_new_tokens
        common = {"max_new_tokens": new, "strategy": strategy, "numbers": numbers}
        if options.beams > 1:
            beams = options.beam_settings()
            decoded = beam.search(self.decoder, prompts, beams=beams, **common)
        else:
            decoded = decoding.decode(
                self.decoder,
                prompts,
                seed=options.seed,
                samples=options.samples,
                every=1 if watch else STOP_EVERY,
                watch=stopped if watch or options.stop else None,
                **common,
            )
        self.stats.add(decoded, prompts, beams=options.beams)
        scores = decoded.scores or [[None] * len(rows) for rows in decoded.tokens]
        return [
            [self._answer(*one, options) for one in zip(*of_prompt, strict=True)]
            for of_prompt in zip(decoded.tokens, scores, strict=True)
        ]

    def stream(self, prompt: Sequence[int], options: Options) -> Iterator[str]:
        """Yield the answer to one prompt in pieces, each as soon as it cannot change any more."""
        if options.beams > 1 or options.samples > 1:
            raise ValueError(
                f"got beams={options.beams} and samples={options.samples}; only one answer is "
                "streamed: leave out beams and samples"
            )
        yield from _iterate(lambda watch: self.answers([prompt], options, watch=watch)[0][0].text)

    def _answer(self, tokens: list[int], score: float | None, options: Options) -> Answer:
        ends = options.ends or (self.config.eos_token_id,)
        text = self._text(tokens, ends)
        places = [text.find(stop) for stop in options.stop if stop in text]
        if places:
            kept = 1
            while not any(stop in self._text(tokens[:kept], ends) for stop in options.stop):
                kept += 1
            tokens, text = tokens[:kept], text[: min(places)]
        return Answer(text, tokens, score)

    def _text(self, tokens: list[int], ends: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens[:-1] if tokens and tokens[-1] in ends else tokens)

    @staticmethod
    def _settled(text: str, stops: Sequence[str]) -> str:
        """Return the text without an end that may still change or become a stop string."""
        text = text.rstrip(UNFINISHED)
        for stop in stops:
            text = text.partition(stop)[0]
            prefixes = (stop[:size] for size in range(len(stop) - 1, 0, -1))
            text = text.removesuffix(next((p for p in prefixes if text.endswith(p)), ""))
        return text


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    batch_size: int = 16,
    truncate: str = "error",
    **options,
) -> list[str]:
    """Return continuations of `prompts`, without prompt, end of text and stop string.

    Args:
      batch_size: prompts decoded together; no answer depends on it.
      truncate: "error", or "left" to drop the beginning of a prompt that does not fit.
      options: fields of `Options`, such as max_new_tokens, temperature, beams, stop. The answers
        of several samples to one prompt are adjacent.

    Raises:
      ValueError: options are unknown or contradict one another, the tokenizer does not fit the
        model, a prompt does not fit its positions, or logits are NaN.
    """
    for name in {"stop", "bad_words"} & {*options}:
        options[name] = as_texts(options[name])
    settings = make_options(**{"max_new_tokens": default_new_tokens(model.config), **options})
    generator, new = Generator(model, tokenizer), settings.max_new_tokens
    ids = [generator.encode(prompt, new=new, truncate=truncate) for prompt in prompts]
    decoding.check_prompts(model.config, ids, new)
    texts = []
    for first in range(0, len(ids), batch_size):
        batch = ids[first : first + batch_size]
        numbers = range(first, first + len(batch))
        for answers in generator.answers(batch, settings, numbers=numbers):
            texts += [answer.text for answer in answers]
    return texts


def generate_until(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    *,
    until: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 16,
    notify: Callable[[int, str], None] = lambda number, text: None,
    **options,
) -> list[str]:
    """Continue prompts of token ids up to one of the strings, which is cut off.

    A prompt that does not fit with its new tokens loses its beginning. `notify(number, text)` is
    called for each prompt after its batch. Raises ValueError as `generate` does.
    """
    settings = make_options(max_new_tokens=max_new_tokens, stop=as_texts(until), **options)
    config = generator.config
    room = config.context_length - max_new_tokens
    if room < 1:
        raise ValueError(
            f"got max_new_tokens={max_new_tokens}; the model has {config.context_length} "
            "positions, and a prompt needs one: lower it"
        )
    cut = [list(p[-room:]) or [config.eos_token_id] for p in prompts]
    # Batches of similar lengths need the least padding.
    order = sorted(range(len(cut)), key=lambda i: -len(cut[i]))
    texts = [""] * len(cut)
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        answers = generator.answers([cut[i] for i in batch], settings, numbers=batch)
        for i, (answer, *_) in zip(batch, answers, strict=True):
            texts[i] = answer.text
            notify(i, answer.text)
    return texts


def require_tokenizer(tokenizer: Tokenizer | None, config: ModelConfig) -> Tokenizer:
    """Return the tokenizer; raise ValueError if there is none, or it does not fit the model."""
    if tokenizer is None:
        raise ValueError("the model's directory has no tokenizer; put its tokenizer.json there")
    check_tokenizer(tokenizer, config)
    return tokenizer


def _iterate(answer: Callable[[Callable[[list[str]], None]], str]) -> Iterator[str]:
    """Turn a function that calls back with the text so far into an iterator over new pieces.

    The function runs in its own thread, so that each piece is yielded as soon as it exists.
    """
    texts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    results: list[str | BaseException] = []

    def work() -> None:
        try:
            results.append(answer(lambda rows: texts.put(rows[0])))
        except BaseException as error:
            results.append(error)
        texts.put(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    shown = ""
    while (text := texts.get()) is not None:
        if len(text) > len(shown):
            yield text[len(shown) :]
            shown = text
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    yield results[0][len(shown) :]
