"""Measure this library beside its peers, in alternating rounds, with medians and ratios.

    biomedlm bench train --layers=6 --width=384 --heads=6 --length=256 --batch_size=8
    biomedlm bench tokens --input=ARTICLES.jsonl.gz --tokenizer=TOKENIZER

`train` times a training step beside transformers' GPT-2 and torch's AdamW (extra `hf`); `tokens`
times the building of token rows beside the bare tokenizer. `decode` times generation beside
transformers' own:

    biomedlm bench decode --layers=6 --width=384 --heads=6 --batch_sizes=1,8,16 --beams=5
"""

import json
import sys
from pathlib import Path

from absl import flags

FLAGS = flags.FlagValues()
BY_POSITION = "what"
flags.DEFINE_enum(
    "what", "train", ["train", "tokens", "decode"], "What to measure.", flag_values=FLAGS
)
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
sizes, hf = ["1", "8", "16"], ["hf sdpa"]
flags.DEFINE_list("batch_sizes", sizes, "decode: rows of greedy decoding.", flag_values=FLAGS)
flags.DEFINE_list("hf", hf, "decode: hf ATTENTION [static] [compile].", flag_values=FLAGS)
flags.DEFINE_integer("beams", 5, "decode: beams at batch 1; 1 for none.", 1, flag_values=FLAGS)
flags.DEFINE_integer("prompt", 32, "decode: tokens of a prompt.", 1, flag_values=FLAGS)
flags.DEFINE_integer("new_tokens", 128, "decode: new tokens.", 1, flag_values=FLAGS)
flags.DEFINE_list("input", [], "tokens: files, directories, globs.", flag_values=FLAGS)
flags.DEFINE_string("text_field", "text", "tokens: the field of the text.", flag_values=FLAGS)
flags.DEFINE_string("tokenizer", None, "tokens: the tokenizer's directory.", flag_values=FLAGS)


def run(options: flags.FlagValues) -> None:
    """Measure, print the table, and write the figures where asked."""
    figures = {"train": _train, "tokens": _tokens, "decode": _decode}[options.what](options)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _train(options) -> dict:
    from biomedlm_jax.benchmarks.train import measure_train, print_table
    from biomedlm_jax.model.config import GPTConfig

    names = ("layers", "width", "heads", "vocab_size", "unroll")
    rates = ("embedding_dropout", "attention_dropout", "residual_dropout")
    config = GPTConfig(
        context_length=options.length,
        compute_dtype=options.dtype,
        **{name: options[name].value for name in names},
        **dict.fromkeys(rates, 0.0),
    )
    names = ("batch_size", "loss_chunks", "rounds", "steps")
    figures = measure_train(
        config, peers=tuple(options.peers), **{name: options[name].value for name in names}
    )
    print_table(figures)
    return figures


def _tokens(options) -> dict:
    from biomedlm_jax.benchmarks.tokens import run_benchmark

    if not options.input or not options.tokenizer:
        raise ValueError("bench tokens needs --input and --tokenizer")
    return run_benchmark(
        options.input, options.tokenizer, text_field=options.text_field, repeats=options.rounds
    )


def _decode(options) -> dict:
    from biomedlm_jax.benchmarks.decode import measure_decode, print_table
    from biomedlm_jax.model.config import GPTConfig

    names = ("layers", "width", "heads", "vocab_size")
    config = GPTConfig(
        context_length=options.prompt + options.new_tokens,
        compute_dtype=options.dtype,
        **{name: options[name].value for name in names},
    )
    if not all(size.isdigit() and int(size) for size in options.batch_sizes):
        raise ValueError(f"got --batch_sizes={','.join(options.batch_sizes)}; give numbers above 0")
    figures = measure_decode(
        config,
        batch_sizes=tuple(map(int, options.batch_sizes)),
        beams=options.beams,
        prompt_length=options.prompt,
        new_tokens=options.new_tokens,
        rounds=options.rounds,
        peers=tuple(options.hf),
        notify=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print_table(figures)
    return figures
