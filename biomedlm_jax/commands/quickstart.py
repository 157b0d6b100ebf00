"""Run every stage on a small invented world, offline: a few minutes on two CPU cores.

    biomedlm quickstart --out=quickstart

Writes invented abstracts, trains a tokenizer and a small model on them, exports it as a Hugging
Face directory, converts that back, compares the logits and generates text. Then it fine-tunes that
model, and a randomly initialised one, on questions and compares their accuracy.
"""

from biomedlm_jax.commands.shared_flags import Flags

FLAGS = Flags()
FLAGS.define("out", "quickstart", "Directory to write; it must be new.")
FLAGS.define("steps", 3000, "Pre-training steps of 512 tokens.", least=40)
FLAGS.define("documents", 2400, "Abstracts to write.", least=200)


def run(options: Flags) -> None:
    """Run the stages and print their results."""
    from biomedlm_jax.quickstart.tour import take_tour

    take_tour(options.out, steps=options.steps, documents=options.documents)
