"""Read a compiled step: memory, matmul FLOPs, the compiler's cycle estimates, collectives."""

import dataclasses
import math
import re
import time
from typing import Any

import jax

from biomedlm_jax.errors import InputError
from biomedlm_jax.planning.hlo import Instruction, Program, array_bytes
from biomedlm_jax.planning.traced import matmul_flops

COLLECTIVES = {"all-gather", "all-reduce", "reduce-scatter", "all-to-all"}
COLLECTIVES |= {"collective-permute", "collective-broadcast"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a step."""

    kind: str  # all-gather, reduce-scatter, ...
    dtype: str
    bytes: int  # of the whole array on one device, per execution
    group: int  # devices that take part
    times: int  # executions per step
    exposed: bool  # synchronous: no computation overlaps it
    source: str  # the operation in the traced program, such as `jit(step)/while/body/add`

    @property
    def total(self) -> int:
        """Bytes per step."""
        return self.bytes * self.times

    @property
    def wire(self) -> float:
        """Bytes per step that one device sends in a ring (an all-reduce goes round twice)."""
        if self.kind == "collective-permute":  # no ring: a device sends the whole array
            return self.total
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.total * (self.group - 1) / self.group


@dataclasses.dataclass(frozen=True)
class Figures:
    """Figures of a compiled step; None where the backend reports none."""

    compile_seconds: float
    memory: dict[str, int]  # bytes on a device: arguments, results, temporaries, code, total
    flops: float  # of the matmuls outside kernels, per device
    kernel_flops: float  # of the matmuls inside kernels, per device
    cycles: int | None = None  # estimate of all instructions but kernels and collectives
    recomputed_cycles: int | None = None  # the part that rematerialisation adds
    kernels: dict[str, int] | None = None  # calls per step, by name
    collectives: list[Collective] | None = None  # of the devices of one slice
    between_slices: list[Collective] = dataclasses.field(default_factory=list)  # group: slices
    unread_reason: str | None = None  # why the program could not be read

    def collective_bytes(self, *, exposed: bool) -> int:
        """Bytes per step of the exposed collectives, or of the overlapped ones."""
        return sum(c.total for c in self.collectives or () if c.exposed == exposed)


def compile_figures(traced, *, devices: int, options: dict | None = None) -> tuple[Figures, str]:
    """Compile a traced step (`jitted.trace(...)`); return its figures and its optimised HLO text.

    The text is empty where the backend cannot print it. Raises what the compiler raises.
    """
    flops, kernel_flops = matmul_flops(traced.jaxpr)
    lowered = traced.lower()
    start = time.perf_counter()
    compiled = lowered.compile(compiler_options=options or None)
    seconds = time.perf_counter() - start
    text, fields = read_compiled(compiled)
    memory = memory_bytes(compiled)
    return Figures(seconds, memory, flops / devices, kernel_flops / devices, **fields), text


def read_compiled(compiled) -> tuple[str, dict[str, Any]]:
    """Return a compiled program's text and the fields of `Figures` that are read from it."""
    text = ""
    try:
        text = compiled.as_text() or ""
        if not text:
            return "", {"unread_reason": "the backend does not print programs"}
        return text, read_program(Program(text))
    # libtpu cannot print some chips' programs; InputError: HLO of an unknown form.
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        return text, {"unread_reason": " ".join(str(error).split())[:200]}


def memory_bytes(compiled) -> dict[str, int]:
    """Return the bytes on one device while the step runs; donated arguments count once."""
    stats = compiled.memory_analysis()
    if stats is None:  # the backend does not report them
        return {"temporaries": 0, "total": 0}
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return {**parts, "total": sum(parts.values())}


def read_program(program: Program) -> dict[str, Any]:
    """Return a program's cycles, kernels and collectives, as the fields of `Figures`."""
    cycles = recomputed = 0
    kernels: dict[str, int] = {}
    collectives: dict[tuple[str, str], Collective] = {}
    between_slices = []
    for instruction, where, times in program.executed():
        cycles += instruction.cycles * times
        if "rematted_computation" in instruction.attribute("op_name"):
            recomputed += instruction.cycles * times
        if instruction.attribute("custom_call_target") == "tpu_custom_call":
            name = re.sub(r"[.\d]+$", "", instruction.name)
            kernels[name] = kernels.get(name, 0) + times
        if instruction.opcode == "send" and "_xla_megascale" in instruction.rest:
            between_slices.append(_between_slices(instruction, times))
        for inner, collective in _collectives(program, instruction, where, times):
            # An asynchronous collective appears at its start, in the fusion that overlaps it and
            # at its end, all with one channel: one asynchronous appearance makes it overlapped.
            # Synchronous ones may share a channel (those of one `ppermute`, reduce-scatters of
            # several arrays), and count one by one.
            scattered = instruction.opcode == "fusion" and collective.kind == "reduce-scatter"
            alone = collective.exposed and (inner is instruction or scattered)
            key = (where, (not alone and inner.attribute("channel_id")) or inner.name)
            if key not in collectives or (collectives[key].exposed and not collective.exposed):
                collectives[key] = collective
    return {
        "cycles": cycles or None,
        "recomputed_cycles": recomputed if cycles else None,
        "kernels": kernels,
        "collectives": list(collectives.values()),
        "between_slices": between_slices,
    }


def _between_slices(send: Instruction, times: int) -> Collective:
    """Return the collective between slices that begins with the send of an array to the host.

    The compiler writes one program for every slice. It reduces inside the slice first, so that
    each device sends the part that it alone has.
    """
    kind = send.attribute("_xla_megascale_transfer_type").lower().replace("_", "-")
    slices = re.search(r'_xla_megascale_target="\{([\d,]+)\}x', send.rest)
    if kind != "all-reduce" or not slices:
        raise InputError(f"a transfer between slices is of an unknown kind: {send.rest[:300]}")
    dtype, size = send.result.lstrip("(").split("[")[0], array_bytes(send.result)[0]
    source = send.attribute("_xla_host_transfer_rendezvous")
    return Collective(kind, dtype, size, slices[1].count(",") + 1, times, False, source)


def _collectives(program: Program, instruction: Instruction, where: str, times: int):
    """Yield the collectives that an executed instruction is, or contains, with their lines."""
    inside, body, scattered = [instruction], program.computations[where], False
    if instruction.opcode in ("fusion", "async-start", "custom-call"):
        called = instruction.attribute("calls")
        inside, body = program.inside(instruction), program.computations.get(called, [])
        # The compiler's fused reduce-scatter is an all-reduce followed by a slice.
        scattered = "all-reduce-scatter" in called
    for inner in inside:
        kind = inner.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        kind = "reduce-scatter" if scattered else kind
        operands, types = inner.operands, inner.result
        if kind == "reduce-scatter":  # the whole array is the operand
            types = " ".join(line.result for line in body if line.name in operands) or types
        sizes = array_bytes(types)
        if inner.opcode in ("all-gather-start", "collective-permute-start"):
            # Their result type is (operands, results, contexts).
            sizes = sizes[len(operands) : 2 * len(operands)]
        dtype = re.search(r"\b([a-z]+\d*\w*)\[", types)
        yield (
            inner,
            Collective(
                kind=kind,
                dtype=dtype[1] if dtype else "",
                bytes=sum(sizes),
                group=_group_size(inner.rest, program.devices),
                times=times,
                exposed=scattered or inner.opcode == instruction.opcode == kind,
                source=inner.attribute("op_name"),
            ),
        )


def _group_size(rest: str, devices: int) -> int:
    """Devices per group, from the forms of `replica_groups`; 2 for a permutation's pairs."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])  # 'a':(2)4 is part of an axis
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if grid := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(grid[1])
    if listed := re.search(r"replica_groups=\{(?:\{([\d,]*)\})?", rest):
        return listed[1].count(",") + 1 if listed[1] else devices
    if "source_target_pairs" in rest:
        return 2
    raise InputError(f"a collective has no known replica_groups: {rest[:100]}")
