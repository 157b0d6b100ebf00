"""Pre-train a language model on token rows; the same command resumes a run.

    biomedlm pretrain --config=configs/pretrain.py:gpt_cpu --config.data.path=TOKENS --workdir=RUN

TOKENS is what `biomedlm build-tokens` wrote. Every value of the config file can be set on the
command line, as in --config.training.steps=200. On a TPU pod or under Slurm, start it on every host
with --distributed; elsewhere once per process, with --coordinator and --process_id from 0 to
--process_count - 1. All processes write into one --workdir.
"""

from biomedlm_jax.commands.shared_flags import Flags

FLAGS = Flags("config", "workdir", "processes")


def run(options: Flags) -> None:
    """Train until the last step, or until Ctrl-C, which saves first."""
    from biomedlm_jax import pretrain

    with options.multiprocess_run():
        pretrain(options.config, options.workdir)
