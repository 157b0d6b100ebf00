"""Pre-train a GPT on the token rows that `biomedlm build-tokens` wrote.

    biomedlm pretrain --config=configs/gpt_cpu.py --config.data.path=TOKENS --workdir=RUN

Every value of the config file can be set on the command line, as in --config.training.steps=200.
The same command resumes an interrupted run from its last checkpoint. On a TPU pod or under Slurm,
start it on every host with --distributed; elsewhere once per process, with --coordinator and
--process_id from 0 to --process_count - 1. All of them write into one --workdir.
"""

from absl import flags
from ml_collections import config_flags

FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file("config", None, "The run's config file.", flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=FLAGS)
flags.DEFINE_bool("distributed", False, "Find the other hosts.", flag_values=FLAGS)
flags.DEFINE_string("coordinator", None, "host:port of process 0.", flag_values=FLAGS)
flags.DEFINE_integer("process_id", 0, "This process among all.", flag_values=FLAGS)
flags.DEFINE_integer("process_count", 1, "Number of processes.", flag_values=FLAGS)
flags.DEFINE_integer("start_timeout", 300, "Seconds to wait for the others.", flag_values=FLAGS)
flags.DEFINE_integer("silence_timeout", 60, "Seconds until one is dead.", flag_values=FLAGS)
flags.mark_flags_as_required(["config", "workdir"], flag_values=FLAGS)


def run(options: flags.FlagValues) -> None:
    """Train until the last step, or until Ctrl-C, which saves first."""
    from biomedlm_jax import pretrain, processes

    if options.process_count > 1 and not options.coordinator:
        raise ValueError("--process_count needs --coordinator=HOST:PORT of process 0")
    if options.coordinator or options.distributed:
        processes.start_processes(
            options.coordinator,
            process_id=options.process_id,
            process_count=options.process_count,
            start_timeout=options.start_timeout,
            silence_timeout=options.silence_timeout,
        )
    with processes.leaving_together(silence_timeout=options.silence_timeout):
        pretrain(options.config, options.workdir)
