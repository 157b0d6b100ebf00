"""generate(): continue prompts that are text, in batches, streamed or whole."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from tokenizers import Tokenizer

from biomedlm_jax.generation import beam, decoding
from biomedlm_jax.generation.decoder import make_decoder
from biomedlm_jax.generation.options import Options, as_texts, make_options, new_tokens
from biomedlm_jax.generation.stats import Stats
from biomedlm_jax.interop.huggingface import check_tokenizer
from biomedlm_jax.model.config import GPTConfig
from biomedlm_jax.model.gpt import GPT

NOTICE = "BioMedLM's answers are not medical advice: they may be wrong, numbers above all."
TRUNCATE = ("error", "left")
STOP_EVERY = 8  # steps between two looks for stop strings, which need the host
UNFINISHED = "\ufffd"  # what a byte-level tokenizer shows for the first bytes of a character


@dataclasses.dataclass(frozen=True)
class Answer:
    """A continuation of a prompt, without the prompt."""

    text: str  # up to the end of text or a stop string, neither included
    tokens: list[int]  # the end, or the tokens of the stop string, included
    score: float | None = None  # of a beam: log-probability / length ** length_penalty


class Generator:
    """A model laid out for decoding, its tokenizer, and what its answers have cost so far.

    Raises ValueError without a tokenizer, or with one that does not fit the model.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer | None):
        self.config, self.tokenizer = model.config, tokenizer
        require_tokenizer(tokenizer, model.config)
        self.decoder = make_decoder(model)
        self.stats = Stats(self.decoder)

    def encode(self, prompt: str, *, new: int, truncate: str = "error") -> list[int]:
        """The ids of a prompt; an empty one begins with the end of text, as BioMedLM's texts do.

        `truncate="left"` drops the beginning of a prompt that does not fit with `new` tokens.
        """
        if truncate not in TRUNCATE:
            raise ValueError(f"got truncate={truncate!r}; it is one of {', '.join(TRUNCATE)}")
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        ids = ids or [self.config.eos_token_id]
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
        """Answer one batch of prompts of token ids: `options.samples` answers to each.

        Args:
          numbers: what errors call the prompts, and draws depend on besides the seed; 0, 1, .. by
            default.
          watch: called after every step with the texts so far, one for each answer.
        """
        strategy = options.strategy(self.config, self.tokenizer)
        if options.beams > 1:
            found = beam.search(
                self.decoder,
                prompts,
                beams=options.beam_options(),
                max_new_tokens=options.max_new_tokens,
                strategy=strategy,
                numbers=numbers,
            )
            self.stats.add(found, prompts, [t for row in found.tokens for t in row], options.beams)
            return [
                [self._answer(t, options, s) for t, s in zip(tokens, scores, strict=True)]
                for tokens, scores in zip(found.tokens, found.scores, strict=True)
            ]

        def look(rows: list[list[int]]) -> list[bool]:
            texts = [self._text(row, strategy.ends) for row in rows]
            if watch:
                watch([self._settled(text, options.stop) for text in texts])
            return [any(stop in text for stop in options.stop) for text in texts]

        found = decoding.decode(
            self.decoder,
            prompts,
            max_new_tokens=options.max_new_tokens,
            strategy=strategy,
            seed=options.seed,
            numbers=numbers,
            samples=options.samples,
            every=1 if watch else STOP_EVERY,
            watch=look if watch or options.stop else None,
        )
        self.stats.add(found, prompts, found.tokens, 1)
        answers = [self._answer(tokens, options) for tokens in found.tokens]
        return [answers[i : i + options.samples] for i in range(0, len(answers), options.samples)]

    def stream(self, prompt: Sequence[int], options: Options) -> Iterator[str]:
        """The answer to one prompt, piece by piece, each as soon as it is certain."""
        if options.beams > 1 or options.samples > 1:
            raise ValueError(
                f"got beams={options.beams} and samples={options.samples}; one answer is streamed "
                "as it is written: ask for it without beams and samples"
            )
        yield from _iterate(lambda watch: self.answers([prompt], options, watch=watch)[0][0].text)

    def _answer(self, tokens: list[int], options: Options, score: float | None = None) -> Answer:
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
        said = tokens[:-1] if tokens and tokens[-1] in ends else tokens
        return self.tokenizer.decode(said)

    @staticmethod
    def _settled(text: str, stops: Sequence[str]) -> str:
        """The text without an end that may still change or become a stop string."""
        text = text.rstrip(UNFINISHED)
        for stop in stops:
            if stop in text:
                text = text[: text.index(stop)]
            for size in range(len(stop) - 1, 0, -1):
                if text.endswith(stop[:size]):
                    text = text[:-size]
                    break
        return text


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    batch_size: int = 16,
    truncate: str = "error",
    **options,
) -> list[str]:
    """Continuations of `prompts`, each without its prompt, the end of text and the stop string.

    Args:
      batch_size: prompts decoded together; no answer depends on it.
      truncate: "error", or "left" to drop the beginning of a prompt that does not fit.
      options: fields of `Options`, such as max_new_tokens, temperature, beams, stop. With several
        samples, a prompt's answers follow one another.

    Raises:
      ValueError: options that are unknown or contradict one another, a tokenizer that does not fit
        the model, a prompt that does not fit its positions, or logits that are not numbers.
    """
    for name in ("stop", "bad_words"):
        if name in options:
            options[name] = as_texts(options[name])
    options.setdefault("max_new_tokens", new_tokens(model.config))
    wanted, generator = make_options(**options), Generator(model, tokenizer)
    new = wanted.max_new_tokens
    ids = [generator.encode(prompt, new=new, truncate=truncate) for prompt in prompts]
    decoding.check_prompts(model.config, ids, new)
    texts = []
    for first in range(0, len(ids), batch_size):
        batch = ids[first : first + batch_size]
        numbers = range(first, first + len(batch))
        found = generator.answers(batch, wanted, numbers=numbers)
        texts += [answer.text for answers in found for answer in answers]
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
    """Continue prompts of token ids until one of the strings, which is cut off; for harnesses.

    A prompt that does not fit with its new tokens loses its beginning. `notify` is told each
    prompt's number and its text, after every batch. Raises ValueError as `generate` does.
    """
    wanted = make_options(max_new_tokens=max_new_tokens, stop=as_texts(until), **options)
    room = generator.config.context_length - max_new_tokens
    if room < 1:
        raise ValueError(
            f"got max_new_tokens={max_new_tokens}; the model has "
            f"{generator.config.context_length} positions, and a prompt needs one: ask for less"
        )
    cut = [list(p[-room:]) or [generator.config.eos_token_id] for p in prompts]
    # Prompts of like lengths share a batch, and so waste least.
    order = sorted(range(len(cut)), key=lambda i: -len(cut[i]))
    texts = [""] * len(cut)
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        for i, answers in zip(
            batch, generator.answers([cut[i] for i in batch], wanted, numbers=batch), strict=True
        ):
            texts[i] = answers[0].text
            notify(i, texts[i])
    return texts


def require_tokenizer(tokenizer: Tokenizer | None, config: GPTConfig) -> None:
    """Raise ValueError unless there is a tokenizer, and it fits the model."""
    if tokenizer is None:
        raise ValueError("the model has no tokenizer beside it; put its tokenizer.json there")
    check_tokenizer(tokenizer, config)


def _iterate(answer: Callable[[Callable[[list[str]], None]], str]) -> Iterator[str]:
    """Turn a function that calls back with the text so far into an iterator over new pieces.

    It runs in a thread of its own, so that each piece is there as soon as it is said.
    """
    import queue
    import threading

    said, results = queue.SimpleQueue(), []

    def work() -> None:
        try:
            results.append(answer(lambda texts: said.put(texts[0])))
        except BaseException as error:
            results.append(error)
        said.put(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    shown = ""
    while (text := said.get()) is not None:
        if len(text) > len(shown):
            yield text[len(shown) :]
            shown = text
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    yield results[0][len(shown) :]
