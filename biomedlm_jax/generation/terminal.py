"""The terminal's side of generation: checks of flags, prompts typed in, and what is printed."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.errors import InputError
from biomedlm_jax.files import write_text
from biomedlm_jax.generation import surprisal
from biomedlm_jax.generation.generator import NOTICE, Generator, require_tokenizer
from biomedlm_jax.generation.options import Options, model_options
from biomedlm_jax.generation.prompt_files import answer_file
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.interop.huggingface import load


def check_flags(flags, settings: Mapping[str, Any]) -> None:
    """Raise InputError for flags that contradict one another, before the model is read.

    `settings` are the given options of decoding.
    """
    given = [n for n in ("prompt", "prompts", "score") if getattr(flags, n) is not None]
    if len(given) > 1:
        raise InputError(f"got --{given[0]} and --{given[1]}; expected only one of them")
    pairs = ("out", "prompts"), ("prompts", "out"), ("html", "score"), ("overwrite", "html")
    for name, needed in (*pairs, ("field", "prompts"), ("batch_size", "prompts")):
        if flags[name].present and getattr(flags, needed) is None:
            raise InputError(f"got --{name} without --{needed}; expected both")
    if flags.html is not None and Path(flags.html).is_file() and not flags.overwrite:
        raise InputError(f"{flags.html} exists; name another file, or pass --overwrite")
    if flags.score is not None:
        for name in [*settings, *(n for n in ("stats", "truncate") if flags[n].present)]:
            raise InputError(f"got --{name} with --score, which does not decode; leave it out")
    if flags.prompts is not None and not Path(flags.prompts).is_file():
        raise InputError(f"no such file: {flags.prompts}")


def answer(flags, given: Mapping[str, Any]) -> None:
    """Answer one prompt, a file of them, or those typed in; `given` are the options by name."""
    options, begin = model_options(model_config(flags.model), flags.model, **given)
    generator = Generator(*_load(flags), begin=begin)  # which has its own copy of the model
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if flags.notice:
        console.print(f"[dim]{NOTICE} (--nonotice omits this line)[/dim]")
    if flags.prompts is not None:
        named = flags.pick("field", "batch_size", "truncate") | {"notify": console.print}
        counts = answer_file(generator, flags.prompts, flags.out, options, **named)
        console.print(f"{flags.out}: {counts['made']} answers made, {counts['kept']} kept")
    elif flags.prompt is not None:
        if flags.stats:
            _print_answer(generator, flags.prompt, options, flags, show=False)  # compiles
        _print_answer(generator, flags.prompt, options, flags)
    else:
        _answer_typed(generator, options, flags, console)
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
    console.print(f"{len(scored.tokens)} tokens, {figures}")
    if flags.html:
        write_text(flags.html, surprisal.html_page([scored], title="Surprising tokens"))
        console.print(f"wrote {flags.html}")


def _load(flags):
    """Return the model, loaded as the flags state, and its tokenizer."""
    keep_freed_memory()
    return load(flags.model, **flags.loading())


def _print_answer(generator, prompt: str, options: Options, flags, *, show=True) -> None:
    (ids,) = generator.encode([prompt], options, truncate=flags.truncate)
    # Streaming takes time that is not the decoder's, so speed is measured without it.
    if flags.stats or options.beams > 1 or options.samples > 1:
        for one in generator.answers([ids], options)[0]:
            score = "" if one.score is None else f"[{one.score:.3f}] "
            if show:
                print(score + one.text, flush=True)
        return
    for piece in generator.stream(ids, options):
        print(piece, end="", flush=True)
    print(flush=True)


def _answer_typed(generator, options: Options, flags, console: Console) -> None:
    terminal, failed = sys.stdin.isatty(), 0
    if terminal:
        console.print("One prompt a line; an empty line or Ctrl-D ends.")
    while True:
        if terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or (terminal and line == "\n"):
            break
        if line == "\n":
            continue
        try:
            _print_answer(generator, line.rstrip("\n"), options, flags)
        except ValueError as error:  # the next prompt may be valid
            failed += 1
            console.print(f"error: {error}", markup=False)
    if failed and not terminal:
        raise InputError(f"{failed} prompts were not answered; each error is above")
