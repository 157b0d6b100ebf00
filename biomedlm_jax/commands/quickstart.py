"""The whole journey on a small invented world, without the network: a few minutes on two cores.

    biomedlm quickstart --out=quickstart

Writes a world of invented abstracts, trains a tokenizer and a small GPT on them, exports it to a
Hugging Face directory, converts that back, compares the logits and lets the model speak. Then it
tunes that model, and one that has read nothing, on questions, and compares their answers to others.
"""

from absl import flags

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", "quickstart", "A new directory for it all.", flag_values=FLAGS)
flags.DEFINE_integer("steps", 3000, "Training steps of 512 tokens.", 40, flag_values=FLAGS)
flags.DEFINE_integer("documents", 2400, "Abstracts to write.", 200, flag_values=FLAGS)


def run(options: flags.FlagValues) -> None:
    """Take the tour."""
    from biomedlm_jax.quickstart.tour import take_tour

    take_tour(options.out, steps=options.steps, documents=options.documents)
