"""Figures of a compiled step: memory, matmul FLOPs, the compiler's cycles, collectives."""

import dataclasses
import math
import re
import time

import jax

from biomedlm_jax.planning.hlo import COLLECTIVES, Instruction, Program, array_bytes
from biomedlm_jax.planning.traced import matmul_flops


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices: what moves, how often in a step, and whether compute waits."""

    kind: str  # all-gather, reduce-scatter, ...
    dtype: str
    bytes: int  # of the whole array, on one device, each time
    group: int  # devices that take part
    times: int  # in a step
    exposed: bool  # synchronous: nothing is computed meanwhile
    source: str  # where it came from in the traced program

    @property
    def total(self) -> int:
        """Bytes a step."""
        return self.bytes * self.times

    @property
    def wire(self) -> float:
        """Bytes a step that leave a device in a ring: an all-reduce goes round twice.

        A permutation is no ring: a device sends all it holds at once.
        """
        if self.kind == "collective-permute":
            return self.total
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.total * (self.group - 1) / self.group


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a compiled step says of itself; None where the backend does not say."""

    compile_seconds: float
    memory: dict[str, int]  # bytes on a device: arguments, temporaries, code, total
    flops: float  # of the matrix products, on a device, kernels left out
    kernel_flops: float  # of the products inside kernels, on a device
    cycles: int | None  # the compiler's estimate of all operations but kernels and collectives
    recomputed_cycles: int | None  # of these, what the backward pass computes a second time
    kernels: dict[str, int] | None  # calls in a step by name
    collectives: list[Collective] | None
    why_not: str | None = None  # why the program could not be read

    def exposed(self) -> int:
        """Bytes a step of the collectives that compute waits for."""
        return sum(c.total for c in self.collectives or () if c.exposed)


def compile_figures(traced, *, devices: int, options: dict | None = None) -> tuple[Figures, str]:
    """Lower and compile a traced step (`jitted.trace(...)`), and read its program.

    Any step does: training, scoring, decoding. Returns the figures and the optimised HLO text,
    which is empty where the backend cannot print it. Raises what the compiler raises.
    """
    products, in_kernels = matmul_flops(traced.jaxpr)
    lowered = traced.lower()
    began = time.perf_counter()
    compiled = lowered.compile(compiler_options=options or None)
    seconds = time.perf_counter() - began
    text, read = read_compiled(compiled)
    figures = Figures(
        compile_seconds=seconds,
        memory=memory_bytes(compiled),
        flops=products / devices,
        kernel_flops=in_kernels / devices,
        **read,
    )
    return figures, text


def read_compiled(compiled) -> tuple[str, dict]:
    """The program's text and what it says; where it cannot be printed or read, why not."""
    unread = {"cycles": None, "recomputed_cycles": None, "kernels": None, "collectives": None}
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:  # some versions cannot print some chips' programs
        return "", unread | {"why_not": " ".join(str(error).split())[:200]}
    if text is None:
        return "", unread | {"why_not": "the backend does not print programs"}
    try:
        return text, read_program(Program(text))
    except ValueError as error:  # a form that the reader does not know, and says so
        return text, unread | {"why_not": " ".join(str(error).split())[:200]}


def memory_bytes(compiled) -> dict[str, int]:
    """Bytes on one device while the step runs; arguments that the result reuses count once."""
    stats = compiled.memory_analysis()
    if stats is None:
        return {}
    parts = {
        "arguments": stats.argument_size_in_bytes,
        "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return {**parts, "total": sum(parts.values())}


def read_program(program: Program) -> dict:
    """The cycles, kernels and collectives of a program, as the fields of `Figures`."""
    cycles = again = 0
    kernels: dict[str, int] = {}
    found: dict[tuple, Collective] = {}
    for instruction, where, times in program.executed():
        cycles += instruction.cycles * times
        if "rematted_computation" in instruction.source:
            again += instruction.cycles * times
        if instruction.attribute("custom_call_target") == "tpu_custom_call":
            name = re.sub(r"[.\d]+$", "", instruction.name)
            kernels[name] = kernels.get(name, 0) + times
        for inner, collective in _collectives(program, instruction, where, times):
            # An asynchronous exchange appears at its start, within what overlaps it and at its end;
            # these share a channel. If any of them is asynchronous, all are. Synchronous ones may
            # share one, too (those of one `ppermute`), but each stands for itself.
            alone = inner is instruction and collective.exposed
            key = (where, inner.name if alone else inner.attribute("channel_id") or inner.name)
            if key not in found or (found[key].exposed and not collective.exposed):
                found[key] = collective
    return {
        "cycles": cycles or None,
        "recomputed_cycles": again if cycles else None,
        "kernels": kernels,
        "collectives": list(found.values()),
    }


def _collectives(program: Program, instruction: Instruction, where: str, times: int):
    """The exchanges that an executed operation is or holds."""
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        operands = _types(program.computations[where], instruction.operands)
        exposed = not instruction.opcode.endswith("-start")
        yield instruction, _collective(kind, instruction, operands, times, exposed=exposed)
        return
    if instruction.opcode not in ("fusion", "async-start", "custom-call"):
        return
    called = instruction.attribute("calls") or ""
    for inner in program.inside(instruction):
        kind = inner.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        # The compiler's fused reduce-scatter is an all-reduce and a slice of it.
        scattered = "all-reduce-scatter" in called
        operands = _types(program.computations.get(called, []), inner.operands)
        kind = "reduce-scatter" if scattered else kind
        yield inner, _collective(kind, inner, operands, times, exposed=scattered)


def _collective(kind, instruction, operands: str, times: int, *, exposed: bool) -> Collective:
    types = instruction.result
    if kind == "reduce-scatter" and operands:
        types = operands
    sizes = array_bytes(types)
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        # The type of such a start is (operands, results, contexts).
        count = len(instruction.operands)
        sizes = sizes[count : 2 * count]
    dtype = re.search(r"\b([a-z]+\d*\w*)\[", types)
    return Collective(
        kind=kind,
        dtype=dtype[1] if dtype else "",
        bytes=sum(sizes),
        group=_group(instruction.rest),
        times=times,
        exposed=exposed,
        source=instruction.source,
    )


def _types(lines: list[Instruction], names: list[str]) -> str:
    wanted = set(names)
    return " ".join(line.result for line in lines if line.name in wanted)


def _group(rest: str) -> int:
    """How many devices exchange with each other, from the three forms of `replica_groups`."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    if grid := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(grid[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return listed[1].count(",") + 1
    return 2  # pairs of a permutation
