"""Pre-train a GPT on the token rows that `biomedlm build-tokens` wrote.

    biomedlm pretrain --config=configs/gpt_cpu.py --config.data.path=TOKENS --workdir=RUN

Every value of the config file can be set on the command line, as in --config.training.steps=200.
The same command resumes an interrupted run from its last checkpoint. On a TPU pod or under Slurm,
start it on every host with --distributed; elsewhere once per process, with --coordinator and
--process_id from 0 to --process_count - 1. All of them write into one --workdir.
"""

from absl import flags
from ml_collections import config_flags

from biomedlm_jax.commands import joining

FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file("config", None, "The run's config file.", flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=FLAGS)
joining.define_flags(FLAGS)
flags.mark_flags_as_required(["config", "workdir"], flag_values=FLAGS)


def run(options: flags.FlagValues) -> None:
    """Train until the last step, or until Ctrl-C, which saves first."""
    from biomedlm_jax import pretrain

    with joining.joined(options):
        pretrain(options.config, options.workdir)
