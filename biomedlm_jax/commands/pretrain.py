"""Pre-train a language model on the token rows that `biomedlm build-tokens` wrote.

    biomedlm pretrain --config=configs/pretrain.py:gpt_cpu --config.data.path=TOKENS --workdir=RUN

Every value of the config file can be set on the command line, as in --config.training.steps=200.
The same command resumes an interrupted run from its last checkpoint. On a TPU pod or under Slurm,
start it on every host with --distributed; elsewhere once per process, with --coordinator and
--process_id from 0 to --process_count - 1. All processes write into one --workdir.
"""

from biomedlm_jax.commands.shared_flags import Flags

FLAGS = Flags()
FLAGS.define_config()
FLAGS.define_workdir()
FLAGS.define_processes()


def run(options: Flags) -> None:
    """Train until the last step, or until Ctrl-C, which saves first."""
    from biomedlm_jax import pretrain

    with options.joined():
        pretrain(options.config, options.workdir)
