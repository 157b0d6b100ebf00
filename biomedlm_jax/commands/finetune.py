"""Fine-tune a model on a task's questions, or go on with a run that was stopped.

    biomedlm finetune --config=configs/finetune_medqa.py --model=RUN --config.task.path=DIR \
        --workdir=TUNED

--model is a run or a Hugging Face directory, or a fine-tuned one, which goes on with its head. The
same command resumes. With --config.sweep.seeds or learning_rates, --workdir holds one run for each.
Several processes are started as those of `biomedlm pretrain` are.
"""

from absl import flags
from ml_collections import config_flags

from biomedlm_jax.commands import joining

FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file("config", None, "The run's config file.", flag_values=FLAGS)
flags.DEFINE_string("model", None, "Run or Hugging Face directory.", flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=FLAGS)
joining.define_flags(FLAGS)
flags.mark_flags_as_required(["config", "model", "workdir"], flag_values=FLAGS)


def run(options: flags.FlagValues) -> None:
    """Tune until the last epoch, or until Ctrl-C, which saves first."""
    from biomedlm_jax.qa.sweep import finetune_all

    with joining.joined(options):
        results = finetune_all(options.config, options.model, options.workdir)
    for result in results:
        print(
            f"{result['workdir']}: best dev accuracy {result['dev_accuracy']:.1f} % "
            f"after epoch {result['epoch']}"
        )
