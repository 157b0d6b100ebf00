"""Run every step on a small invented world, offline, in about two minutes on two CPU cores.

    biomedlm quickstart --out=quickstart

Writes abstracts about invented diseases, trains a tokenizer and a small GPT on them, exports it to
a Hugging Face directory, imports that, compares the logits and completes sentences. Then fine-tunes
the model, and one with random parameters, on questions, and compares their answers about diseases
that no training question mentions.
"""

from absl import flags

FLAGS = flags.FlagValues()
flags.DEFINE_string("out", "quickstart", "New directory for all files.", flag_values=FLAGS)
flags.DEFINE_integer("steps", 1_200, "Pre-training steps of 1,024 tokens.", 40, flag_values=FLAGS)
flags.DEFINE_integer("documents", 2_400, "Abstracts to write.", 200, flag_values=FLAGS)


def run(options: flags.FlagValues) -> None:
    """Take the tour."""
    from biomedlm_jax.quickstart.tour import take_tour

    take_tour(options.out, steps=options.steps, documents=options.documents)
