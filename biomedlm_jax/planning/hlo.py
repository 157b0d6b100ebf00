"""Reading the compiler's optimised program: what runs, how often, for how many cycles.

The text form of HLO is read because the figures stand nowhere else. `cost_analysis()` is not used:
it counts the body of a loop once and a kernel call not at all.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

DTYPE_BITS = {"pred": 8, "bf16": 16, "f16": 16} | {f"{k}{n}": n for k in "suf" for n in (8, 16, 32)}
DTYPE_BITS |= {"s64": 64, "u64": 64, "f64": 64, "s4": 4, "u4": 4, "f8e4m3fn": 8, "f8e5m2": 8}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\]")


@dataclasses.dataclass
class Instruction:
    """One line of a computation: its name, opcode, the text of its result type, and the rest."""

    name: str
    opcode: str
    result: str
    rest: str  # operands, attributes, metadata

    @property
    def cycles(self) -> int:
        """The compiler's estimate of this operation alone; 0 where it makes none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(found[1]) if found else 0

    @property
    def source(self) -> str:
        """The path of the operation in the traced program, such as `jit(step)/while/body/add`."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    @property
    def operands(self) -> list[str]:
        """Names of the operands, in order."""
        return re.findall(r"%([\w.\-]+)", self.rest[: _closing("(" + self.rest)])

    def attribute(self, name: str) -> str | None:
        """The value of an attribute such as `calls`, `body` or `channel_id`, or None."""
        found = re.search(rf"\b{name}=\"?%?([\w.\-]+)", self.rest)
        return found[1] if found else None


class Program:
    """Computations by name, each its instructions in scheduled order, and the entry's name."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        lines: list[str] = []
        for line in text.split("\n"):
            if head := _HEAD.match(line):
                lines = []
                self.computations[head[2]] = lines
                self.entry = head[2] if head[1] else self.entry
            elif _LINE.match(line):
                lines.append(line)
            elif lines and line.strip() != "}":
                lines[-1] += line  # kernel calls hold raw newlines
        for name, found in self.computations.items():
            self.computations[name] = [_instruction(line) for line in found]
        if not self.entry:
            raise ValueError("the program's text has no ENTRY computation; it is not HLO")

    def executed(self) -> Iterator[tuple[Instruction, str, int]]:
        """Every scheduled operation with its computation's name and how often it runs.

        Loop bodies count as often as the loop turns, and every branch of a conditional as if it
        were taken; what is fused or called by an operation is part of that operation.
        """
        yield from self._executed(self.entry, 1)

    def _executed(self, name: str, times: int):
        for instruction in self.computations[name]:
            yield instruction, name, times
            if instruction.opcode == "while":
                turns = self.trip_count(instruction)
                yield from self._executed(instruction.attribute("body"), times * turns)
            elif instruction.opcode == "call":
                yield from self._executed(instruction.attribute("to_apply"), times)
            elif instruction.opcode == "conditional":
                for branch in _branches(instruction):
                    yield from self._executed(branch, times)

    def trip_count(self, loop: Instruction) -> int:
        """How often a `while` turns, read from the constant that its condition compares with.

        Raises ValueError for a condition of another form: a count must not be guessed.
        """
        stated = re.search(r'known_trip_count"?[:=]\{"?n"?:"?(\d+)', loop.rest)
        if stated:
            return int(stated[1])
        condition = self.computations[loop.attribute("condition")]
        root = condition[-1]
        constants = {
            i.name: int(i.rest.split(")")[0])
            for i in condition
            if i.opcode == "constant" and i.rest.split(")")[0].lstrip("-").isdigit()
        }
        if root.opcode == "compare" and root.attribute("direction") == "LT":
            bounds = [constants[name] for name in root.operands if name in constants]
            if len(bounds) == 1:
                return bounds[0]
        raise ValueError(
            f"the loop {loop.name} has the condition {root.name} = {root.opcode}, which is no "
            "comparison with a constant: its turns cannot be counted"
        )

    def inside(self, instruction: Instruction) -> list[Instruction]:
        """All operations of the computations that an instruction calls, at any depth."""
        found = []
        for key in ("calls", "to_apply", "async_computation"):
            called = instruction.attribute(key)
            if called in self.computations:
                for inner in self.computations[called]:
                    found += [inner, *self.inside(inner)]
        return found


def _branches(instruction: Instruction) -> list[str]:
    """The computations of a conditional, by index or by truth.

    Raises ValueError if it names none: what it does must not be left out unsaid.
    """
    if listed := re.search(r"branch_computations=\{([^}]*)\}", instruction.rest):
        return re.findall(r"[\w.\-]+", listed[1])
    both = [instruction.attribute(f"{truth}_computation") for truth in ("true", "false")]
    if None in both:
        raise ValueError(f"the conditional {instruction.name} does not name its branches")
    return both


def _instruction(line: str) -> Instruction:
    found = _LINE.match(line)
    text = line[found.end() :]
    # The type may be a tuple: the opcode is the first word before a bracket outside of it.
    start = _closing(text) if text.startswith("(") else 0
    opcode = _OPCODE.search(text, start)
    if opcode is None:
        return Instruction(found[2], "", text, "")
    return Instruction(found[2], opcode[1], text[: opcode.start()], text[opcode.end() :])


def _closing(text: str) -> int:
    """Where the bracket that opens `text` closes; its end if it does not."""
    depth = 0
    for bracket in re.finditer(r"[()]", text):
        depth += 1 if bracket[0] == "(" else -1
        if not depth:
            return bracket.start()
    return len(text)


def array_bytes(types: str) -> list[int]:
    """Bytes of each array in the text of a type, in order; types of no size count 0."""
    return [
        math.prod(map(int, filter(None, sizes.split(",")))) * DTYPE_BITS.get(dtype, 0) // 8
        for dtype, sizes in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", types))
    ]
