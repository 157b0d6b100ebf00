"""Turn a Hugging Face directory into a run directory.

    biomedlm import-hf --source=BioMedLM/ --out=run/
    biomedlm import-hf --source=hf://stanford-crfm/BioMedLM --out=run/      (downloads it)

Reads model.safetensors, safetensors shards, or pytorch_model.bin (which needs torch). The run
directory can be loaded, compared and exported again. An exported fine-tuned model becomes a
fine-tuned directory.
"""

from absl import flags as absl_flags

FLAGS = absl_flags.FlagValues()
SOURCE = "directory with config.json, weights and tokenizer, or hf://owner/name to download"
absl_flags.DEFINE_string("source", None, SOURCE, required=True, flag_values=FLAGS)
absl_flags.DEFINE_string("out", None, "run directory to write", required=True, flag_values=FLAGS)
absl_flags.DEFINE_bool("overwrite", False, "replace the run in --out", flag_values=FLAGS)


def run(flags: absl_flags.FlagValues) -> None:
    """Import the directory and print the licence of the weights."""
    from biomedlm_jax import import_hf

    print(f"wrote {import_hf(flags.source, flags.out, overwrite=flags.overwrite)}")
