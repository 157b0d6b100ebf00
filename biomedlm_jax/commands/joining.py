"""The flags by which a command runs as one of several processes."""

import contextlib
from collections.abc import Iterator

from absl import flags


def define_flags(values: flags.FlagValues) -> None:
    """Add them to a command's flags."""
    flags.DEFINE_bool("distributed", False, "Find the other hosts.", flag_values=values)
    flags.DEFINE_string("coordinator", None, "host:port of process 0.", flag_values=values)
    flags.DEFINE_integer("process_id", 0, "This process among all.", flag_values=values)
    flags.DEFINE_integer("process_count", 1, "Number of processes.", flag_values=values)
    waiting = "Seconds to wait for the others."
    flags.DEFINE_integer("start_timeout", 300, waiting, flag_values=values)
    flags.DEFINE_integer("silence_timeout", 60, "Seconds until one is dead.", flag_values=values)


@contextlib.contextmanager
def joined(options: flags.FlagValues) -> Iterator[None]:
    """Start together with the other processes, if there are any, and leave together."""
    from biomedlm_jax import distributed

    if options.process_count > 1 and not options.coordinator:
        raise ValueError("--process_count needs --coordinator=HOST:PORT of process 0")
    if options.coordinator or options.distributed:
        distributed.start_processes(
            options.coordinator,
            process_id=options.process_id,
            process_count=options.process_count,
            start_timeout=options.start_timeout,
            silence_timeout=options.silence_timeout,
        )
    with distributed.leaving_together(silence_timeout=options.silence_timeout):
        yield
