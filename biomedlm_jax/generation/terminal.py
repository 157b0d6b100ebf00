"""The terminal's side of generation: what `biomedlm generate` shows and asks."""

import dataclasses
import sys
from pathlib import Path

from rich.console import Console

from biomedlm_jax import mesh as meshes
from biomedlm_jax.allocator import keep_freed_memory
from biomedlm_jax.generation import scoring
from biomedlm_jax.generation.decoding import check_prompts
from biomedlm_jax.generation.files import answer_file
from biomedlm_jax.generation.options import Options, make_options, new_tokens, read_settings
from biomedlm_jax.generation.text import NOTICE, Generator, require_tokenizer
from biomedlm_jax.interop.directories import model_config
from biomedlm_jax.interop.huggingface import load

OPTIONS = tuple(f.name for f in dataclasses.fields(Options) if f.name != "ends")
EARLY = {None: None, "false": False, "true": True, "never": "never"}


def check(flags) -> None:
    """Raise ValueError for flags that contradict one another, before the model is read."""
    asked = [n for n in ("prompt", "prompts", "score") if getattr(flags, n) is not None]
    if len(asked) > 1:
        raise ValueError(f"got --{asked[0]} and --{asked[1]}; give one of them")
    for name, needs in (("out", "prompts"), ("prompts", "out"), ("html", "score")):
        if getattr(flags, name) is not None and getattr(flags, needs) is None:
            raise ValueError(f"got --{name} without --{needs}; they belong together")
    if flags.early_stopping not in EARLY:
        raise ValueError(
            f"got --early_stopping={flags.early_stopping}; it is one of false, true, never"
        )
    if flags.prompts is not None and not Path(flags.prompts).is_file():
        raise FileNotFoundError(f"no such file: {flags.prompts}")


def generate(flags, given: dict) -> None:
    """Answer one prompt, a file of them, or what is typed, as the flags say."""
    keep_freed_memory()
    given["early_stopping"] = EARLY[given["early_stopping"]]
    for name in ("stop", "bad_words"):
        given[name] = tuple(given[name]) if given[name] else None
    settings = read_settings(flags.model)
    if given["max_new_tokens"] is None and settings.get("max_new_tokens") is None:
        given["max_new_tokens"] = new_tokens(model_config(flags.model))
    options = make_options(settings, **given)
    model, tokenizer = _load(flags)
    generator = Generator(model, tokenizer)
    del model  # the generator has its own copy, in the dtype it computes in
    say = Console(stderr=True, highlight=False, soft_wrap=True)
    if flags.notice:
        say.print(f"[dim]{NOTICE} (--nonotice leaves this line out)[/dim]")
    if flags.prompts is not None:
        counts = answer_file(
            generator,
            flags.prompts,
            flags.out,
            options,
            field=flags.field,
            batch_size=flags.batch_size,
            truncate=flags.truncate,
            model=str(Path(flags.model).absolute()),
            notify=say.print,
        )
        say.print(f"{flags.out}: {counts['made']} answers made, {counts['kept']} kept")
    elif flags.prompt is not None:
        if flags.stats:
            _answer(generator, flags.prompt, options, flags, show=False)  # compiles
        _answer(generator, flags.prompt, options, flags)
    else:
        _converse(generator, options, flags, say)
    if flags.stats:
        for line in generator.stats.lines():
            say.print(line)


def _load(flags):
    """The model, spread over all devices as the flags say, and its tokenizer."""
    mesh = meshes.make_mesh(data=flags.data, fsdp=flags.fsdp, tensor=flags.tensor)
    # Batches are filled up to what the mesh divides.
    meshes.check_fits(mesh, batch_size=meshes.batch_shards(mesh), model=model_config(flags.model))
    return load(flags.model, mesh=mesh, compute_dtype=flags.dtype)


def _answer(generator, prompt: str, options: Options, flags, *, show=True) -> None:
    ids = generator.encode(prompt, new=options.max_new_tokens, truncate=flags.truncate)
    check_prompts(generator.config, [ids], options.max_new_tokens)
    # To show each token as it comes takes time, which is none of the decoder's.
    if flags.stats or options.beams > 1 or options.samples > 1:
        for answer in generator.answers([ids], options)[0]:
            score = "" if answer.score is None else f"[{answer.score:.3f}] "
            if show:
                print(score + answer.text, flush=True)
        return
    for piece in generator.stream(ids, options):
        print(piece, end="", flush=True)
    print(flush=True)


def _converse(generator, options: Options, flags, say: Console) -> None:
    if sys.stdin.isatty():
        say.print("A prompt a line; an empty line or Ctrl-D ends.")
    failed = 0
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or (line == "\n" and sys.stdin.isatty()):
            break
        if line == "\n":
            continue
        try:
            _answer(generator, line.rstrip("\n"), options, flags)
        except ValueError as error:  # the next prompt may be better
            failed += 1
            say.print(f"error: {error}", markup=False)
    if failed and not sys.stdin.isatty():
        raise ValueError(f"{failed} of the prompts were not answered; see above")


def show_score(flags) -> None:
    """Print a text with its surprising tokens coloured, and write the page where asked."""
    keep_freed_memory()
    model, tokenizer = _load(flags)
    require_tokenizer(tokenizer, model.config)
    scored = scoring.score_text(model, tokenizer, flags.score)
    console = Console(highlight=False)
    console.print(scoring.coloured(scored))
    console.print(scoring.legend())
    console.print(
        f"{len(scored.tokens)} tokens, log-probability {sum(scored.logprobs):.2f}, perplexity "
        f"{scored.perplexity:.2f}"
    )
    if flags.html:
        page = scoring.page([scored], title="Surprising tokens")
        Path(flags.html).write_text(page, encoding="utf-8")
        console.print(f"wrote {flags.html}")
