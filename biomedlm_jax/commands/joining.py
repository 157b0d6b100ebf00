"""The flags of a command's devices: the mesh, and the processes of one run."""

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


def define_mesh_flags(values: flags.FlagValues) -> None:
    """Add --data, --fsdp and --tensor, the arguments of `mesh.make_mesh`, to a command's flags."""
    for name, size, meaning in (
        ("data", -1, "Copies of the model, each with a share of the rows; -1: all other devices."),
        ("fsdp", 1, "Devices that shard the weights, gathered before use, and the rows."),
        ("tensor", 1, "Devices that split heads, MLP and vocabulary."),
    ):
        flags.DEFINE_integer(name, size, meaning, flag_values=values)


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
