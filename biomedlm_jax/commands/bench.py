"""Time this library against its peers in alternating rounds; print medians.

    biomedlm bench train --layers=6 --width=384 --heads=6 --length=256 --batch_size=8
    biomedlm bench decode --layers=6 --width=384 --heads=6 --batch_sizes=1,8,16 --beams=5
    biomedlm bench tokens --input=ARTICLES/ --tokenizer=TOKENIZER
    biomedlm bench questions --model=RUN --path=medqa/dev.jsonl
    biomedlm bench packing --length=512 --batch_size=16
    biomedlm bench readers --path=pubmed25n0001.xml.gz

`train` times a training step against transformers with torch's AdamW, on a GPU with new processes
for each side; `decode` times generation against transformers' generate; `tokens` the building of
token rows against the tokenizer alone; `questions` scoring against lm-evaluation-harness and
fine-tuning against torch; `packing` instruction tuning in packed rows against one padded row for
each conversation; `readers` the readers of NLM's XML against lxml's iterparse. The peers need the
extras `hf` and `harness`, and accelerate.
"""

import importlib
import shlex

from biomedlm_jax.commands.shared_flags import Flags
from biomedlm_jax.errors import InputError

FLAGS = Flags("json", "dtype")
BY_POSITION = "what"
KINDS = ["train", "decode", "tokens", "questions", "packing", "readers"]
FLAGS.define("what", "train", "What to measure; may be the first argument.", choices=KINDS)
FLAGS.define("rounds", 5, "Alternating rounds.", least=1)
for name, default, meaning in (
    ("layers", 6, "train, decode, packing: layers of the model."),
    ("width", 384, "train, decode, packing: width of the model."),
    ("heads", 6, "train, decode, packing: attention heads."),
    ("vocab_size", 28_896, "train, decode, packing: vocabulary size."),
    ("length", 256, "train, packing: tokens of a row."),
    ("batch_size", 8, "train: rows of a batch; packing: conversations."),
    ("loss_chunks", 1, "train: parts of a row whose logits are computed at once."),
    ("unroll", 1, "train: layers per iteration of the scan over layers."),
    ("blocks", None, "train: blocks with new processes; default 2 on a GPU, else none."),
    ("steps", 4, "train, questions, packing: training steps of each side in a round."),
    ("workers", 2, "tokens: processes of the second build."),
    ("beams", 5, "decode: beams of beam search at batch size 1; 1: no beam search."),
    ("prompt", 32, "decode: tokens of a prompt."),
    ("new_tokens", 128, "decode: tokens to generate."),
    ("questions", 100, "questions: questions scored in a round."),
    ("examples", 5_000, "packing: conversations that are packed, to state how full the rows are."),
):
    FLAGS.define(name, default, meaning, kind=int, least=1)
PEERS = ["torch sdpa", "torch sdpa fused"]
FLAGS.define("peers", PEERS, "train: peers, 'torch ATTENTION [fused] [compile]'.")
FLAGS.define("profile", None, "train: directory for a trace; the longest kernels are printed.")
FLAGS.define_sizes("batch_sizes", (1, 8, 16), "decode: batch sizes of greedy decoding.")
FLAGS.define("hf", ["hf sdpa"], "decode: peers, 'hf ATTENTION [static] [compile]'; empty: none.")
FLAGS.define_text("tokens: ")
FLAGS.define("beam_options", None, "tokens: flags of Apache Beam, for a build with it as well.")
FLAGS.define("tokenizer", None, "tokens, questions: directory of the tokenizer.")
FLAGS.define("model", None, "questions: run or Hugging Face directory; without it a random model.")
FLAGS.define("path", None, "questions: file or directory of MedQA; readers: of XML.")
FLAGS.define("parts", ["scoring", "tuning"], "questions: scoring, tuning, or both.")
FLAGS.define_sizes("hf_batch_sizes", (8,), "questions: batch sizes of the harness's hf backend.")

# The flags of each benchmark, and the name of the argument where that is another.
ARGUMENTS = {
    "train": "peers batch_size loss_chunks rounds steps blocks profile",
    "decode": "batch_sizes beams prompt:prompt_length new_tokens rounds hf:peers",
    "tokens": "tokenizer text_field workers rounds",
    "packing": "examples batch_size length steps rounds",
    "readers": "path rounds",
    "questions": "path parts model tokenizer questions hf_batch_sizes rounds steps",
}
CONFIG = ("layers", "width", "heads", "vocab_size", "dtype")
MORE = {
    "train": (*CONFIG, "length", "unroll"),
    "decode": CONFIG,
    "tokens": ("input", "beam_options"),
    "questions": (),
    "readers": (),
    "packing": (*CONFIG, "length"),
}
REQUIRED = {"tokens": ("input", "tokenizer"), "questions": ("path",), "readers": ("path",)}


def run(options: Flags) -> None:
    """Measure, print the tables, and write the figures to --json."""
    what, required = options.what, REQUIRED.get(options.what, ())
    if not all(options[name].value for name in required):
        raise InputError(f"bench {what} needs {' and '.join('--' + name for name in required)}")
    pairs = [pair.partition(":") for pair in ARGUMENTS[what].split()]
    used = {"what", "json", *MORE[what], *(name for name, _, _ in pairs)}
    if unused := [name for name in options if options[name].present and name not in used]:
        raise InputError(f"got --{unused[0]}, which bench {what} does not use; leave it out")
    benchmark = importlib.import_module(f"biomedlm_jax.benchmarks.bench_{what}")
    arguments = {argument or name: options[name].value for name, _, argument in pairs}
    if what in ("train", "decode", "packing"):
        arguments["config"] = _config(options)
    if what == "tokens":
        arguments["paths"] = options.input_paths()
        if options.beam_options is not None:
            arguments["beam"] = shlex.split(options.beam_options)

    from biomedlm_jax.benchmarks.rounds import print_result

    result = benchmark.measure(**arguments)
    print_result(result)
    options.write_json(result)


def _config(options: Flags):
    from biomedlm_jax.benchmarks.rounds import NO_DROPOUT
    from biomedlm_jax.model.families import make_config

    fields = options.pick("layers", "width", "heads", "vocab_size")
    if options.what == "decode":
        fields["context_length"] = options.prompt + options.new_tokens
    else:
        fields |= {"context_length": options.length, "unroll": options.unroll}
    fields |= {"model_type": "gpt2", "compute_dtype": options.dtype}
    return make_config({**fields, **NO_DROPOUT})
