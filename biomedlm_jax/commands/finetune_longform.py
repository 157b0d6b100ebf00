"""Fine-tune a model to answer at length or to summarise, and report ROUGE and wrong numbers.

    biomedlm finetune-longform --config=configs/longform_meqsum.py --model=RUN --workdir=OUT \\
        --config.data.train=meqsum.jsonl

--config.data.train is a JSONL file, or the common stem of a .source and a .target file. OUT is a
run directory: continue `SOURCE<|startoftext|>` with `biomedlm generate --model=OUT`. Ctrl-C saves,
and the same command goes on from there. Several processes are started as those of `biomedlm
pretrain` are.
"""

from absl import flags as absl_flags
from ml_collections import config_flags

from biomedlm_jax.commands import joining

FLAGS = absl_flags.FlagValues()
config_flags.DEFINE_config_file("config", None, "The run's config file.", flag_values=FLAGS)
MODEL = "run directory or Hugging Face directory to begin from"
absl_flags.DEFINE_string("model", None, MODEL, required=True, flag_values=FLAGS)
absl_flags.DEFINE_string("workdir", None, "run to write", required=True, flag_values=FLAGS)
joining.define_flags(FLAGS)
absl_flags.mark_flag_as_required("config", flag_values=FLAGS)


def run(flags: absl_flags.FlagValues) -> None:
    """Fine-tune, and show the report."""
    import json

    from biomedlm_jax.longform.finetuning import finetune_longform

    with joining.joined(flags):
        report = finetune_longform(flags.config, flags.model, flags.workdir)
    print(json.dumps(report, indent=2))
