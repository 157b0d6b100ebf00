"""Run every step on a synthetic corpus, offline, in minutes on two cores.

    biomedlm quickstart --out=quickstart

Writes abstracts about invented diseases, trains a tokenizer and a small model on them, exports the
model to a Hugging Face directory, imports that, compares the logits and completes sentences. Then
fine-tunes the model and its random initialisation on questions, and compares their answers about
diseases that no training question mentions.
"""

from biomedlm_jax.commands.shared_flags import Flags

FLAGS = Flags()
FLAGS.define("out", "quickstart", "New directory for all files.")
FLAGS.define("steps", 700, "Pre-training steps of 1,024 tokens.", least=40)
FLAGS.define("family", "gpt2", "Architecture of the model.", choices=("gpt2", "llama"))
FLAGS.define("documents", 3_600, "Abstracts to write.", least=240)


def run(options: Flags) -> None:
    """Run the stages and print their results."""
    from biomedlm_jax.quickstart.quickstart import run_quickstart

    run_quickstart(options.out, **options.pick("steps", "documents", "family"))
