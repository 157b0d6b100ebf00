"""The terminal's side of generation: checks of flags, prompts typed in, and what is printed."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.corpus.chat_template import chat_template
from biomedlm_jax.corpus.ngrams import words
from biomedlm_jax.corpus.trace import Tracer
from biomedlm_jax.corpus.trace_view import print_trace
from biomedlm_jax.errors import InputError, counted
from biomedlm_jax.files import write_text
from biomedlm_jax.generation import surprisal
from biomedlm_jax.generation.chat import Chat
from biomedlm_jax.generation.generator import NOTICE, Generator, require_tokenizer
from biomedlm_jax.generation.options import Options, model_options
from biomedlm_jax.generation.prompt_files import answer_file
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.interop.huggingface import load


def check_flags(flags, settings: Mapping[str, Any]) -> None:
    """Raise InputError for flags that contradict one another, before the model is read.

    `settings` are the given options of decoding.
    """
    kinds = ("prompt", "prompts", "messages", "score", "chat")
    given = [name for name in kinds if getattr(flags, name) not in (None, False)]
    if len(given) > 1:
        raise InputError(f"got --{given[0]} and --{given[1]}; expected only one of them")
    pairs = ("out", "prompts messages"), ("prompts", "out"), ("messages", "out"), ("html", "score")
    pairs += ("overwrite", "html"), ("field", "prompts"), ("batch_size", "prompts messages")
    for name, others in (*pairs, ("template", "chat messages"), ("system", "chat")):
        needed = others.split()
        if flags[name].present and all(getattr(flags, one) in (None, False) for one in needed):
            raise InputError(f"got --{name} without --{' or --'.join(needed)}; expected both")
    if flags.trace is not None:
        for name in ("prompts", "messages", "score", "chat"):
            if name in given:
                raise InputError(f"got --trace with --{name}; expected --prompt or typed prompts")
    if flags.html is not None and Path(flags.html).is_file() and not flags.overwrite:
        raise InputError(f"{flags.html} exists; name another file, or pass --overwrite")
    if flags.score is not None:
        for name in [*settings, *(n for n in ("stats", "truncate") if flags[n].present)]:
            raise InputError(f"got --{name} with --score, which does not decode; leave it out")
    if flags.chat and {"beams", "samples"} & {*settings}:
        raise InputError("got --chat with --beams or --samples; only one answer is streamed")
    for file in (flags.prompts, flags.messages):
        if file is not None and not Path(file).is_file():
            raise InputError(f"no such file: {file}")


def answer(flags, given: Mapping[str, Any]) -> None:
    """Answer one prompt, a file of prompts or chats, or typed lines; `given` are the options."""
    options, begin = model_options(model_config(flags.model), flags.model, **given)
    tracer = Tracer(flags.trace) if flags.trace is not None else None  # before the model is read
    generator = Generator(*_load(flags), begin=begin)  # which has its own copy of the model
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if flags.notice:
        console.print(f"[dim]{NOTICE} (--nonotice omits this line)[/dim]")
    chat = None
    if flags.chat or flags.messages is not None:
        template = chat_template(generator.tokenizer, flags.template or "", where=str(flags.model))
        chat = Chat(generator, template, options, system=flags.system or "")
    if chat and flags.chat:
        _converse(chat, flags, console)
    elif (file := flags.messages or flags.prompts) is not None:
        named = flags.pick("field", "batch_size", "truncate") | {"notify": console.print}
        counts = answer_file(generator, file, flags.out, options, chat=chat, **named)
        console.print(
            f"{flags.out}: {counted(counts['made'], 'answer')} made, {counts['kept']} kept"
        )
    elif flags.prompt is not None:
        if flags.stats:
            _print_answer(generator, flags.prompt, options, flags, show=False)  # compiles
        _print_traced(_print_answer(generator, flags.prompt, options, flags), tracer)
    else:
        _answer_typed(generator, options, flags, console, tracer)
    for line in generator.stats.lines() if flags.stats else ():
        console.print(line)


def print_scores(flags) -> None:
    """Print the text of --score with surprising tokens coloured, and write --html if given."""
    model, tokenizer = _load(flags)
    scored = surprisal.score_text(model, require_tokenizer(tokenizer, model.config), flags.score)
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    console.print(surprisal.coloured(scored), surprisal.legend(), sep="\n")
    total, perplexity = sum(scored.log_probabilities), scored.perplexity
    figures = f"log-probability {total:.2f}, perplexity {perplexity:.2f}"
    console.print(f"{counted(len(scored.tokens), 'token')}, {figures}")
    if flags.html:
        write_text(flags.html, surprisal.html_page([scored], title="Surprising tokens"))
        console.print(f"wrote {flags.html}")


def _load(flags):
    """Return the model, loaded as the flags state, and its tokenizer."""
    keep_freed_memory()
    return load(flags.model, **flags.loading())


def _print_answer(generator, prompt: str, options: Options, flags, *, show=True) -> list[str]:
    """Print and return the answers to a prompt."""
    (ids,) = generator.encode([prompt], options, truncate=flags.truncate)
    # Streaming takes time that is not the decoder's, so speed is measured without it.
    if flags.stats or options.beams > 1 or options.samples > 1:
        answers = generator.answers([ids], options)[0]
        for one in answers:
            score = "" if one.score is None else f"[{one.score:.3f}] "
            if show:
                print(score + one.text, flush=True)
        return [one.text for one in answers]
    pieces = []
    for piece in generator.stream(ids, options):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print(flush=True)
    return ["".join(pieces)]


def _print_traced(answers: list[str], tracer: Tracer | None) -> None:
    """Print where the answers occur, if there is a tracer."""
    if tracer is None:
        return
    for answer in answers:
        if words(answer):
            print_trace(tracer.trace(answer))
        else:
            print("no words to trace", flush=True)


def _answer_typed(
    generator, options: Options, flags, console: Console, tracer: Tracer | None = None
) -> None:
    def answer_line(line: str) -> None:
        _print_traced(_print_answer(generator, line, options, flags), tracer)

    _each_line(answer_line, console, "One prompt a line; an empty line or Ctrl-D ends.", "prompts")


def _converse(chat: Chat, flags, console: Console) -> None:
    def answer_line(line: str) -> None:
        for piece in chat.say(line, truncate=flags.truncate):
            print(piece, end="", flush=True)
        print(flush=True)

    hint = "One message a line, answered with those before; an empty line or Ctrl-D ends."
    _each_line(answer_line, console, hint, "messages")


def _each_line(answer_line: Callable[[str], None], console: Console, hint: str, unit: str) -> None:
    """Read lines until the end of input; one that is refused leaves the next ones valid."""
    terminal, failed = sys.stdin.isatty(), 0
    if terminal:
        console.print(hint)
    while True:
        if terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or (terminal and line == "\n"):
            break
        if line == "\n":
            continue
        try:
            answer_line(line.rstrip("\n"))
        except ValueError as error:
            failed += 1
            console.print(f"error: {error}", markup=False)
    if failed and not terminal:
        raise InputError(f"{failed} {unit} were not answered; each error is above")
