"""Turn a Hugging Face directory into a run directory.

    biomedlm import-hf --source=BioMedLM/ --out=run/
    biomedlm import-hf --source=hf://stanford-crfm/BioMedLM --out=run/      (downloads it)
    biomedlm import-hf --source=adapter/ --base=BioMedLM/ --out=run/        (merges LoRA factors)

Reads model.safetensors, safetensors shards, or pytorch_model.bin (which needs torch), and adapters
that peft saved. The run directory can be loaded, compared and exported again. An exported
fine-tuned model becomes a fine-tuned directory.
"""

from biomedlm_jax.commands.shared_flags import Flags

FLAGS = Flags("out")
SOURCE = "Directory with config.json, weights and tokenizer, or hf://OWNER/NAME to download."
FLAGS.define("source", None, SOURCE, required=True)
BASE = "Run or Hugging Face directory to merge a LoRA adapter into; default: what it names."
FLAGS.define("base", None, BASE)
FLAGS.define("eos_token_id", None, "End of text in place of config.json's.", kind=int, least=0)
FLAGS.define("bos_token_id", None, "Begin of text in place of config.json's.", kind=int, least=0)
RESIZE = "Add rows for the tokenizer's ids after the vocabulary: the mean of the others."
FLAGS.define("resize_embeddings", False, RESIZE)


def run(options: Flags) -> None:
    """Import the directory and print the licence of the weights."""
    from biomedlm_jax import import_hf

    ids = options.pick("base", "eos_token_id", "bos_token_id")
    given = {name: value for name, value in ids.items() if value is not None}
    given |= options.pick("overwrite", "resize_embeddings")
    print(f"wrote {import_hf(options.source, options.out, **given)}")
