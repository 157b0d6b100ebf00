"""Read optimised HLO text: which instructions run, how often, and the compiler's cycle estimates.

The text is parsed because no API returns these figures: `cost_analysis()` counts a loop's body once
and a kernel call not at all.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

from biomedlm_jax.errors import InputError

DTYPE_BITS = {"pred": 8, "bf16": 16, "f16": 16} | {f"{k}{n}": n for k in "suf" for n in (8, 16, 32)}
DTYPE_BITS |= {"s64": 64, "u64": 64, "f64": 64, "s4": 4, "u4": 4, "f8e4m3fn": 8, "f8e5m2": 8}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# Name, type, opcode, rest: an opcode follows a space, the brackets in a type do not follow a word.
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?)\s([a-z][\w\-]*)\((.*)", re.DOTALL)
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\]")


@dataclasses.dataclass
class Instruction:
    """One line of a computation."""

    name: str
    result: str  # the text of its result type
    opcode: str
    rest: str  # operands, attributes, metadata

    @property
    def operands(self) -> list[str]:
        """Names of the operands, in order."""
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ")[0])

    def attribute(self, name: str) -> str:
        """Return the value of an attribute such as `body` or `op_name`; empty if it has none."""
        value = re.search(rf'\b{name}"?[=:](?:"([^"]*)"|%?([\w.\-]+))', self.rest)
        return (value[1] or value[2] or "") if value else ""

    @property
    def cycles(self) -> int:
        """The compiler's cycle estimate of this instruction alone; 0 if it has none."""
        return int(self.attribute("estimated_cycles") or 0)


class Program:
    """Computations by name, each a list of instructions in scheduled order; the entry's name.

    Raises InputError for text that is not HLO.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        partitions = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
        self.devices = int(partitions[1]) if partitions else 1
        bodies: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in text.split("\n"):
            if head := _HEAD.match(line):
                lines = bodies[head[2]] = []
                self.entry = head[2] if head[1] else self.entry
            elif _LINE.match(line):
                lines.append(line)
            elif lines and line.strip() != "}":
                lines[-1] += line  # the attributes of a kernel call contain newlines
        if not self.entry:
            raise InputError("the program's text has no ENTRY computation; it is not HLO")
        for name, body in bodies.items():
            parsed = [_LINE.match(line) for line in body]
            self.computations[name] = [Instruction(*match.groups()) for match in parsed if match]

    def executed(self, name: str = "", times: int = 1) -> Iterator[tuple[Instruction, str, int]]:
        """Yield every scheduled instruction, its computation's name and its number of executions.

        A loop's body counts with the trip count, and every branch of a conditional as if taken.
        What a fusion or an asynchronous call contains is part of that instruction.
        """
        name = name or self.entry
        for instruction in self.computations[name]:
            yield instruction, name, times
            if instruction.opcode == "while":
                trips = self.trip_count(instruction)
                yield from self.executed(instruction.attribute("body"), times * trips)
            elif instruction.opcode == "call":
                yield from self.executed(instruction.attribute("to_apply"), times)
            elif instruction.opcode == "conditional":
                for branch in _branches(instruction):
                    yield from self.executed(branch, times)

    def trip_count(self, loop: Instruction) -> int:
        """Return the trip count of a `while`: stated, or the constant in its condition.

        Raises InputError for a condition of another form: the count is never guessed.
        """
        if stated := re.search(r'known_trip_count"?[:=]\{"?n"?:"?(\d+)', loop.rest):
            return int(stated[1])
        condition = self.computations[loop.attribute("condition")]
        root = condition[-1]
        numbers = {i.name: i.rest.split(")")[0] for i in condition if i.opcode == "constant"}
        if root.opcode == "compare" and root.attribute("direction") == "LT":
            bounds = [numbers[name] for name in root.operands if name in numbers]
            if len(bounds) == 1 and bounds[0].isdigit():
                return int(bounds[0])
        condition = f"{root.name} = {root.opcode}, not a comparison with one constant"
        raise InputError(
            f"the trip count of the loop {loop.name} is unknown: it ends by {condition}"
        )

    def inside(self, instruction: Instruction) -> list[Instruction]:
        """Return all instructions of the computations that one calls, at any depth."""
        called = [instruction.attribute(k) for k in ("calls", "to_apply", "async_computation")]
        inner = [i for name in called for i in self.computations.get(name, [])]
        return [one for i in inner for one in (i, *self.inside(i))]


def _branches(instruction: Instruction) -> list[str]:
    """The computations of a conditional, by index or by truth."""
    if listed := re.search(r"branch_computations=\{([^}]*)\}", instruction.rest):
        return re.findall(r"[\w.\-]+", listed[1])
    both = [instruction.attribute(f"{truth}_computation") for truth in ("true", "false")]
    if not all(both):
        raise InputError(f"the conditional {instruction.name} does not name its branches")
    return both


def array_bytes(types: str) -> list[int]:
    """Return the bytes of each array in the text of a type, in order; unsized types count 0."""
    return [
        math.prod(map(int, filter(None, sizes.split(",")))) * DTYPE_BITS.get(dtype, 0) // 8
        for dtype, sizes in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", types))
    ]
