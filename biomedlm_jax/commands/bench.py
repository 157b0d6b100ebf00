"""Compare speeds with transformers and PyTorch in alternating rounds.

    biomedlm bench all --quick --out=comparison
    biomedlm bench train --layers=6 --width=384 --heads=6 --length=256 --batch_size=8
    biomedlm bench score --questions=100 --out=scoring
    biomedlm bench score --model=RUN --path=medqa/dev.jsonl
    biomedlm bench generate --layers=6 --width=384 --heads=6 --batch_sizes=1,8,16 --beams=5
    biomedlm bench load
    biomedlm bench convert
    biomedlm bench tokens --input=ARTICLES/ --tokenizer=TOKENIZER
    biomedlm bench packing --length=512 --batch_size=16
    biomedlm bench readers --path=pubmed25n0001.xml.gz

`train` times a training step against transformers with torch's AdamW, `score` the scoring of
questions and `generate` decoding against transformers, `load` the time from a directory to the
first logits, `convert` Hugging Face to a run and back. `all` does these five. All sides have equal
weights, data, dtype and threads, and their losses, scores and texts are compared. With --out these
write index.html, bench.md, bench.json, rounds.jsonl and plots. To measure memory, and on a GPU for
everything, each side has processes of its own. What is compiled is compiled anew: the caches of
earlier runs are not used. An error or unequal results end with code 2.

`score --path` scores MedQA against lm-evaluation-harness and fine-tunes against torch, on the CPU
only; `tokens` times the building of token rows against the tokenizer alone, `packing` instruction
tuning in packed rows against one padded row for each conversation, `readers` the readers of NLM's
XML against lxml's iterparse. The peers need the extra `hf`, with --path also `harness` and
accelerate.
"""

import functools
import importlib
import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.errors import InputError

FLAGS = Flags("json", "dtype")
BY_POSITION = "what"
UNCACHED = ("score", "load")  # whose peers have no cache of keys and values
COMPARED = ("train", "score", "generate", "load", "convert")
KINDS = [*COMPARED, "tokens", "packing", "readers", "all"]
FLAGS.define("what", "train", "What to measure; may be the first argument.", choices=KINDS)
FLAGS.define("out", None, "Directory for the page and the figures; needed by all.")
FLAGS.define("overwrite", False, "Replace the page that --out has.")
FLAGS.define("quick", False, "Small sizes: all of `all` in 4 minutes on 2 cores.")
FLAGS.define("rounds", 5, "Alternating rounds.", least=1)
for name, default, meaning in (
    ("layers", 6, "Layers of the model."),
    ("width", 384, "Width of the model."),
    ("heads", 6, "Attention heads."),
    ("vocab_size", 28_896, "Vocabulary size."),
    ("length", 256, "train, score, load, packing: tokens of a row."),
    ("batch_size", 8, "train: rows of a batch; packing: conversations."),
    ("loss_chunks", 1, "train: parts of a row whose logits are computed at once."),
    ("unroll", 1, "train: layers per iteration of the scan over layers."),
    ("blocks", None, "Blocks of rounds, each with new processes; default 2 on a GPU, else none."),
    ("steps", 4, "train, score --path, packing: training steps of each side in a round."),
    ("workers", 2, "tokens: processes of the second build."),
    ("beams", 5, "generate: beams of beam search at batch size 1; 1: no beam search."),
    ("prompt", 32, "generate: tokens of a prompt."),
    ("new_tokens", 128, "generate: tokens to generate."),
    ("questions", 100, "score: questions scored in a round."),
    ("examples", 5_000, "packing: conversations that are packed, to state how full the rows are."),
):
    FLAGS.define(name, default, meaning, kind=int, least=1)
PEERS = ["torch eager fused", "torch sdpa fused", "torch sdpa fused compile"]
FLAGS.define("peers", PEERS, "train: peers, 'torch ATTENTION [fused] [compile]'; empty: none.")
FLAGS.define("profile", None, "train: directory for a trace; the longest kernels are printed.")
FLAGS.define_sizes("batch_sizes", (1, 8, 16), "generate: batch sizes of greedy decoding.")
meaning = (
    "score, generate, load: peers, 'hf ATTENTION [compile]'; empty: none. generate and all: "
    "'hf ATTENTION [static] [compile]'; static is a static cache, in generate only."
)
FLAGS.define("hf", ["hf eager", "hf sdpa"], meaning)
meaning = "All but load: add the peak memory; train: parts of a step and utilisation, too."
FLAGS.define("details", True, meaning)
FLAGS.define_text("tokens: ")
FLAGS.define("beam_options", None, "tokens: flags of Apache Beam, for a build with it as well.")
FLAGS.define("tokenizer", None, "tokens, score --path: directory of the tokenizer.")
meaning = "score --path: run or Hugging Face directory; without it a random model."
FLAGS.define("model", None, meaning)
FLAGS.define("path", None, "score: file or directory of MedQA; readers: of XML.")
FLAGS.define("parts", ["scoring", "tuning"], "score --path: scoring, tuning, or both.")
meaning = "score --path: batch sizes of the harness's hf backend."
FLAGS.define_sizes("hf_batch_sizes", (8,), meaning)

# The flags of each benchmark, and the name of the argument where that is another.
ARGUMENTS = {
    "train": "peers batch_size loss_chunks rounds steps blocks profile details",
    "score": "questions rounds blocks hf:peers details",
    "medqa": "path parts model tokenizer questions hf_batch_sizes rounds steps",
    "generate": "batch_sizes beams prompt:prompt_length new_tokens rounds blocks hf:peers details",
    "load": "rounds hf:peers",
    "convert": "rounds blocks details",
    "tokens": "tokenizer text_field workers rounds",
    "packing": "examples batch_size length steps rounds",
    "readers": "path rounds",
}
SHAPE = ("layers", "width", "heads", "vocab_size")
CONFIG = (*SHAPE, "dtype")
LENGTH = (*CONFIG, "length")
MORE = {
    "train": (*LENGTH, "unroll"),
    "score": LENGTH,
    "generate": CONFIG,
    "load": LENGTH,
    "convert": (*SHAPE, "length"),
    "tokens": ("input", "beam_options"),
    "packing": LENGTH,
}
# The flags of `score --path` that only one of --parts has.
PARTS = {"scoring": {"questions", "hf_batch_sizes"}, "tuning": {"steps"}}
REQUIRED = {"tokens": "input=FILES tokenizer=DIR", "readers": "path=FILE", "all": "out=DIR"}
# What --quick changes where a flag is not given.
QUICK: dict[str, Any] = {"layers": 4, "width": 256, "heads": 4, "vocab_size": 8_192, "length": 128}
QUICK |= {"rounds": 3, "steps": 2, "questions": 12, "batch_sizes": (1, 8)}
QUICK |= {"beams": 3, "new_tokens": 32}


def run(options: Flags) -> None:
    """Measure, print the tables, and write the figures to --json and the page to --out."""
    what, required = options.what, REQUIRED.get(options.what, "").split()
    if not all(options[flag.partition("=")[0]].value for flag in required):
        raise InputError(f"bench {what} needs {' and '.join('--' + flag for flag in required)}")
    kind = "medqa" if what == "score" and options.path else what
    kinds = COMPARED if kind == "all" else (kind,)
    used = {"what", "json", *(("out", "overwrite", "quick") if kind in (*COMPARED, "all") else ())}
    for one in kinds:
        used |= {*MORE.get(one, ()), *(name for name, _, _ in _pairs(one))}
    title = f"bench {what}"
    if kind == "medqa":
        title = f"{title} --path --parts={','.join(options.parts)}"
        used -= set().union(*(PARTS[part] for part in PARTS.keys() - set(options.parts)))
    if unused := [name for name in options if options[name].present and name not in used]:
        raise InputError(f"got --{unused[0]}, which {title} does not use; leave it out")
    if options["overwrite"].present and not options.out:
        raise InputError("got --overwrite without --out, where it has no effect; leave it out")

    # jax reserves most of a GPU at its start, and torch's models are beside it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if kind == "medqa":
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # as of its peers
    from biomedlm_jax.benchmarks import peers
    from biomedlm_jax.benchmarks.caches import cold_caches
    from biomedlm_jax.outputs import exit_on_sigterm

    check_hf = functools.partial(
        peers.check_hf, options=peers.UNCACHED if kind in UNCACHED else peers.OPTIONS
    )
    for flag, check in (("peers", peers.check_torch), ("hf", check_hf)):  # before one is measured
        for peer in (options[flag].value or ()) if flag in used else ():
            check(peer)
    benchmarks = {one: functools.partial(_measure, one, options) for one in kinds}
    with exit_on_sigterm(), cold_caches():
        results = _run_all(benchmarks, options)
    _raise_errors(results)


def _run_all(benchmarks: Mapping[str, Callable], options: Flags) -> dict[str, dict]:
    """Measure, print the tables and write the files; return the results."""
    from biomedlm_jax.benchmarks.rounds import print_result

    if not options.out:
        ((kind, measure),) = benchmarks.items()
        result = measure()
        print_result(result)
        options.write_json(result)
        return {kind: result}
    from biomedlm_jax.benchmarks.bench_all import measure_all

    report = measure_all(
        benchmarks, options.out, command=command_line(options), overwrite=options.overwrite
    )
    for one, result in report["results"].items():
        print(f"\n{one}")
        print_result(result)
    print(f"wrote {options.out}/index.html, bench.md and bench.json")
    options.write_json(report)
    return report["results"]


def _raise_errors(results: dict) -> None:
    """Raise InputError if a benchmark failed, or if its sides do not compute the same."""
    errors = [f"{kind}: {line}" for kind, one in results.items() for line in one.get("errors", ())]
    if errors:
        more = f"; {len(errors) - 1} more above" if errors[1:] else ""
        raise InputError(f"{errors[0]}{more}")


def command_line(options: Flags) -> str:
    """Return the command with the flags that were given, as it can be typed again."""
    given = [options[name] for name in options if options[name].present and name != "what"]
    flags = [word for flag in given for word in flag.serialize().splitlines()]
    return shlex.join(["biomedlm", "bench", options.what, *flags])


def _pairs(kind: str) -> list[tuple[str, str, str]]:
    return [pair.partition(":") for pair in ARGUMENTS[kind].split()]


def _value(options: Flags, name: str) -> Any:
    quick = options.quick and not options[name].present
    return QUICK.get(name, options[name].value) if quick else options[name].value


def _measure(kind: str, options: Flags) -> dict:
    benchmark: Any = importlib.import_module(f"biomedlm_jax.benchmarks.bench_{kind}")
    arguments = {argument or name: _value(options, name) for name, _, argument in _pairs(kind)}
    if kind in UNCACHED and "peers" in arguments:  # of `all`: generate has a static cache
        names = (peer.split() for peer in arguments["peers"] or ())
        same = (" ".join(word for word in words if word != "static") for words in names)
        arguments["peers"] = list(dict.fromkeys(same))
    if kind in MORE and kind != "tokens":
        arguments["config"] = _config(kind, options)
    if kind == "tokens":
        arguments["paths"] = options.input_paths()
        if options.beam_options is not None:
            arguments["beam"] = shlex.split(options.beam_options)
    return benchmark.measure(**arguments)


def _config(kind: str, options: Flags):
    from biomedlm_jax.benchmarks.rounds import NO_DROPOUT
    from biomedlm_jax.model.families import make_config

    fields = {name: _value(options, name) for name in SHAPE}
    if kind == "generate":
        fields["context_length"] = options.prompt + _value(options, "new_tokens")
    else:
        fields["context_length"] = _value(options, "length")
    more = {"unroll": options.unroll} if "unroll" in MORE[kind] else {}
    more |= {"compute_dtype": options.dtype} if "dtype" in MORE[kind] else {}
    return make_config({"model_type": "gpt2", **fields, **more, **NO_DROPOUT})
