"""Measure this library beside its peers, in alternating rounds, with medians and ratios.

    biomedlm bench train --layers=6 --width=384 --heads=6 --length=256 --batch_size=8
    biomedlm bench tokens --input=ARTICLES.jsonl.gz --tokenizer=TOKENIZER
    biomedlm bench questions --model=RUN --path=medqa/dev.jsonl

`train` times a training step beside transformers' GPT-2 and torch's AdamW (extra `hf`), on a GPU
each side in processes of its own, and with `--profile=DIR` lists our longest kernels; `tokens`
times the building of token rows beside the bare tokenizer; `questions` times scoring beside
lm-evaluation-harness and fine-tuning beside torch (extras `hf` and `harness`, and accelerate);
`decode` times generation beside transformers' own:

    biomedlm bench decode --layers=6 --width=384 --heads=6 --batch_sizes=1,8,16 --beams=5
"""

import importlib
import json
from pathlib import Path

from absl import flags

FLAGS = flags.FlagValues()
BY_POSITION = "what"
kinds = ["train", "tokens", "questions", "decode"]
flags.DEFINE_enum("what", "train", kinds, "What to measure.", flag_values=FLAGS)
flags.DEFINE_string("json", None, "Also write the figures to this file.", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 5, "Alternating rounds.", 1, flag_values=FLAGS)
for name, default, meaning in (
    ("steps", 4, "Steps of each side in a round."),
    ("layers", 6, "Layers."),
    ("width", 384, "Width."),
    ("heads", 6, "Heads."),
    ("length", 256, "Tokens in a row."),
    ("batch_size", 8, "Rows in a batch."),
    ("vocab_size", 28_896, "Entries of the vocabulary."),
    ("loss_chunks", 1, "Parts of the output head's loss."),
    ("unroll", 1, "Layers per iteration of the scan."),
):
    flags.DEFINE_integer(name, default, f"train: {meaning}", 1, flag_values=FLAGS)
flags.DEFINE_string("dtype", "auto", "train: compute dtype.", flag_values=FLAGS)
peers = ["torch sdpa", "torch sdpa fused"]
flags.DEFINE_list("peers", peers, "train: torch ATTENTION [fused] [compile].", flag_values=FLAGS)
meaning = "train: blocks of processes, each side's own; default 2 on a GPU, else one process."
flags.DEFINE_integer("blocks", None, meaning, 1, flag_values=FLAGS)
flags.DEFINE_string("profile", None, "train: directory for a trace of ours.", flag_values=FLAGS)
sizes, hf = ["1", "8", "16"], ["hf sdpa"]
flags.DEFINE_list("batch_sizes", sizes, "decode: rows of greedy decoding.", flag_values=FLAGS)
flags.DEFINE_list("hf", hf, "decode: hf ATTENTION [static] [compile].", flag_values=FLAGS)
flags.DEFINE_integer("beams", 5, "decode: beams at batch 1; 1 for none.", 1, flag_values=FLAGS)
flags.DEFINE_integer("prompt", 32, "decode: tokens of a prompt.", 1, flag_values=FLAGS)
flags.DEFINE_integer("new_tokens", 128, "decode: new tokens.", 1, flag_values=FLAGS)
flags.DEFINE_list("input", [], "tokens: files, directories, globs.", flag_values=FLAGS)
flags.DEFINE_string("text_field", "text", "tokens: the field of the text.", flag_values=FLAGS)
flags.DEFINE_string("tokenizer", None, "The tokenizer's directory.", flag_values=FLAGS)
flags.DEFINE_string("model", None, "questions: a run; else random.", flag_values=FLAGS)
flags.DEFINE_string("path", None, "questions: MedQA's file or folder.", flag_values=FLAGS)
flags.DEFINE_list("parts", ["scoring", "tuning"], "questions: of both.", flag_values=FLAGS)
flags.DEFINE_integer("questions", 100, "questions: scored in a round.", 1, flag_values=FLAGS)
flags.DEFINE_list("hf_batch_sizes", ["8"], "questions: of the peer.", flag_values=FLAGS)


# The flags of each benchmark, and what its function calls them where that is something else.
OPTIONS = {
    "train": "layers width heads length vocab_size unroll dtype peers batch_size loss_chunks rounds"
    " steps blocks profile",
    "tokens": "input:paths tokenizer text_field rounds:repeats",
    "decode": "layers width heads vocab_size dtype batch_sizes beams prompt:prompt_length"
    " new_tokens rounds hf:peers",
    "questions": "path parts model tokenizer questions hf_batch_sizes rounds steps",
}
MODULES = {"tokens": "tokenization"}  # where the name differs
NEEDED = {"train": (), "tokens": ("input", "tokenizer"), "questions": ("path",), "decode": ()}


def run(options: flags.FlagValues) -> None:
    """Measure, print the table, and write the figures where asked."""
    what = options.what
    if not all(options[name].value for name in NEEDED[what]):
        raise ValueError(f"bench {what} needs {' and '.join('--' + n for n in NEEDED[what])}")
    benchmark = importlib.import_module(f"biomedlm_jax.benchmarks.{MODULES.get(what, what)}")
    names = (name.partition(":") for name in OPTIONS[what].split())
    asked = {parameter or name: options[name].value for name, _, parameter in names}
    figures = benchmark.run_benchmark(**asked)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
