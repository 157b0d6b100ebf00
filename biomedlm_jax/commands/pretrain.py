"""Pre-train a language model on token rows; the same command resumes a run.

    biomedlm pretrain --config=configs/pretrain.py:gpt_cpu --config.data.path=TOKENS --workdir=RUN
    biomedlm pretrain --config=configs/pretrain.py:continued --init=DIR --config.data.path=TOKENS \\
        --workdir=RUN
    biomedlm pretrain --config=configs/pretrain.py:continued --init=DIR --workdir=RUN \\
        --config.data.mixture=domain=TOKENS:99,general=OTHER_TOKENS:1

TOKENS is what `biomedlm build-tokens` wrote; the last command reads 99 rows of it to each row of
OTHER_TOKENS. Every value of the config file can be set on the command line, as in
--config.training.steps=200; --extend lengthens a run. --init starts from the weights of a run or
Hugging Face directory. On a TPU pod or under Slurm, start it on every host with --distributed;
elsewhere once per process, with --coordinator and --process_id from 0 to --process_count - 1. All
processes write into one --workdir.
"""

import contextlib

from biomedlm_jax.commands.shared_flags import Flags

FLAGS = Flags("config", "workdir", "processes", "faults")
FLAGS.define(
    "init",
    None,
    "Run or Hugging Face directory whose weights a new run starts from, with a new optimizer and "
    "the schedule from step 0. Resuming needs it with LoRA only.",
)
FLAGS.define(
    "extend",
    False,
    "Let a larger --config.training.steps lengthen a run whose learning rate depends on it; the "
    "change of the learning rate is printed.",
)


def run(options: Flags) -> None:
    """Train until the last step, or until Ctrl-C, which saves first."""
    from biomedlm_jax import pretrain
    from biomedlm_jax.interop.initial import initial_weights
    from biomedlm_jax.training.replay import Replayed

    with options.multiprocess_run():
        init = initial_weights(options.init) if options.init else None
        with contextlib.suppress(Replayed):
            given = options.pick("extend", "fallback", "replay")
            pretrain(options.config, options.workdir, init=init, **given)
