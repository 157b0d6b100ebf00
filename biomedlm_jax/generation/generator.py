"""generate(): continue prompts that are text, in batches, streamed or whole."""

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from tokenizers import Tokenizer

from biomedlm_jax.generation import beam, decoding
from biomedlm_jax.generation.beam import Beams
from biomedlm_jax.generation.decoder import make_decoder
from biomedlm_jax.generation.options import Options, default_new_tokens, make_options
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
    """A model laid out for decoding, with its tokenizer (else ValueError) and speed statistics."""

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer | None, *, begin: int | None = None
    ):
        self.config, self.tokenizer = model.config, require_tokenizer(tokenizer, model.config)
        self.begin = self.config.bos_token_id if begin is None else begin
        self.decoder = make_decoder(model)
        self.stats = Stats(self.decoder)

    def encode(
        self, prompts: Sequence[str], *, new: int, truncate: str = "error"
    ) -> list[list[int]]:
        """Return the ids of prompts; an empty one is `begin`, by default the model's bos_token_id.

        Raises ValueError for one that does not fit with `new` tokens; `truncate="left"` drops its
        beginning instead.
        """
        if truncate not in TRUNCATE:
            raise ValueError(f"got truncate={truncate!r}; expected one of {', '.join(TRUNCATE)}")
        texts = (self.tokenizer.encode(text, add_special_tokens=False) for text in prompts)
        rows = [text.ids or [self.begin] for text in texts]
        room = self.config.context_length - new
        if truncate == "left" and room > 0:
            rows = [ids[-room:] for ids in rows]
        decoding.check_prompts(self.config, rows, new)
        return rows

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        options: Options,
        *,
        numbers: Sequence[int] | None = None,
        watch: Callable[[list[str]], None] | None = None,
    ) -> list[list[Answer]]:
        """Answer one batch of prompts of token ids: return `options.samples` answers to each.

        `numbers` are the prompts', see `decode`; `watch` is called after every step with the texts
        so far, one for each answer.
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
            decoded = beam.search(self.decoder, prompts, beams=options.part(Beams), **common)
        else:
            common |= {"seed": options.seed, "samples": options.samples}
            if watch or options.stop:
                common |= {"watch": stopped, "every": 1 if watch else STOP_EVERY}
            decoded = decoding.decode(self.decoder, prompts, **common)
        self.stats.add(decoded, prompts, beams=options.beams)
        scores = decoded.scores or [[None] * len(rows) for rows in decoded.tokens]
        return [
            [self._answer(*one, options) for one in zip(*of_prompt, strict=True)]
            for of_prompt in zip(decoded.tokens, scores, strict=True)
        ]

    def stream(self, prompt: Sequence[int], options: Options) -> Iterator[str]:
        """Yield the answer to one prompt in pieces, each as soon as it cannot change any more."""
        if options.beams > 1 or options.samples > 1:
            got = f"beams={options.beams} and samples={options.samples}"
            raise ValueError(f"got {got}; only one answer is streamed: leave out both")
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

    def _answer(self, tokens: list[int], score: float | None, options: Options) -> Answer:
        ends = options.ends or self.config.end_ids
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

    `options` are fields of `Options`, such as max_new_tokens, temperature, beams, stop; several
    samples of one prompt are adjacent. No answer depends on `batch_size`. `truncate` is that of
    `Generator.encode`. Raises ValueError if options are unknown or contradict one another, the
    tokenizer does not fit the model, a prompt does not fit its positions, or logits are NaN.
    """
    settings = make_options(**{"max_new_tokens": default_new_tokens(model.config), **options})
    generator, new = Generator(model, tokenizer), settings.max_new_tokens
    ids = generator.encode(prompts, new=new, truncate=truncate)
    answers = dict(_batched(generator, ids, settings, batch_size))
    return [answer.text for number in range(len(ids)) for answer in answers[number]]


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
    """Continue prompts of token ids, cut at the left if need be, up to one of the strings.

    `notify(number, text)` is called after each batch. Raises ValueError as `generate` does.
    """
    settings = make_options(max_new_tokens=max_new_tokens, stop=until, **options)
    config = generator.config
    room = config.context_length - max_new_tokens
    if room < 1:
        limit = f"the model has {config.context_length} positions, and a prompt needs one"
        raise ValueError(f"got max_new_tokens={max_new_tokens}; {limit}: lower it")
    cut = [list(p[-room:]) or [config.bos_token_id] for p in prompts]
    texts = [""] * len(cut)
    for number, (answer, *_) in _batched(generator, cut, settings, batch_size):
        texts[number] = answer.text
        notify(number, answer.text)
    return texts


def _batched(
    generator: Generator, prompts: Sequence[Sequence[int]], options: Options, batch_size: int
) -> Iterator[tuple[int, list[Answer]]]:
    """Yield each prompt's number and answers; batches of similar lengths need little padding."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        answers = generator.answers([prompts[i] for i in batch], options, numbers=batch)
        yield from zip(batch, answers, strict=True)


def require_tokenizer(tokenizer: Tokenizer | None, config: ModelConfig) -> Tokenizer:
    """Return the tokenizer; raise ValueError if there is none, or it does not fit the model."""
    if tokenizer is None:
        raise ValueError("the model's directory has no tokenizer; put its tokenizer.json there")
    check_tokenizer(tokenizer, config)
    return tokenizer
