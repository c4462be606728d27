"""Reading the text of an optimized XLA program: its computations, and how often each of them runs.

A program is a set of computations that call each other; what stands in the body of a loop runs as often as the loop
turns. XLA writes that number beside a loop, or it follows from the constant that the loop's condition compares its
counter with, which begins at 0, and from what its body adds to that.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

_BYTES = {"pred": 1, "bf16": 2, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{[^}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.$-]+) \(.*\) -> .* \{$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.$-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    rest: str


class Computation(NamedTuple):
    """The lines of one, and whether the program begins there."""

    lines: tuple[Instruction, ...]
    entry: bool

    @property
    def root(self) -> Instruction:
        """The instruction whose result it gives back."""
        return self.lines[-1]


def parse(text: str) -> dict[str, Computation]:
    """Name -> computation."""
    computations: dict[str, Computation] = {}
    lines: list[Instruction] = []
    head: re.Match[str] | None = None
    for line in text.splitlines():
        if head is None:
            head, lines = _HEADER.match(line), []
        elif line == "}":
            computations[head[2]] = Computation(tuple(lines), bool(head[1]))
            head = None
        elif instruction := _instruction(line):
            lines.append(instruction)
    return computations


def _instruction(line: str) -> Instruction | None:
    name, equals, right = line.strip().removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    opcode, _, after = right[end:].strip().partition("(")
    close = _closing("(" + after, 0) - 1
    operands = tuple(part.split()[-1].lstrip("%") for part in after[:close].split(", ") if part.strip())
    return Instruction(name.lstrip("%"), right[:end], opcode, operands, after[close + 1 :])


def _closing(text: str, start: int) -> int:
    """The place at which the bracket that opens at `start` closes."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    return len(text) - 1


def array_bytes(type_text: str) -> list[int]:
    """The bytes of each array in a type, without the padding of its layout."""
    return [
        _width(kind) * math.prod(map(int, dims.split(","))) if dims else _width(kind)
        for kind, dims in _ARRAY.findall(type_text)
    ]


def _width(kind: str) -> int:
    """Bytes of an element; what is smaller than a byte counts as one."""
    bits = re.search(r"\d+", kind)
    return _BYTES[kind] if kind in _BYTES else max(1, int(bits[0]) // 8) if bits else 4


def runs(program: Mapping[str, Computation]) -> tuple[dict[str, int], set[str]]:
    """Count how often each computation runs in one run of the program, and name those in loops of unknown turns.

    Of a conditional every branch counts, as if it were taken; a loop of unknown turns counts as one turn.
    """
    times: dict[str, int] = defaultdict(int)
    unsure: set[str] = set()

    def visit(name: str, count: int, sure: bool) -> None:
        times[name] += count
        if not sure:
            unsure.add(name)
        for line in program[name].lines:
            turns = _turns(program, line) if line.opcode == "while" else 1
            for called in called_by(line):
                if called in program:
                    visit(called, count * (turns or 1), sure and turns is not None)

    for name, computation in program.items():
        if computation.entry:
            visit(name, 1, True)
    return times, unsure


def called_by(line: Instruction) -> list[str]:
    """The computations that an instruction names: its body, its branches, what it fuses."""
    names = []
    for one, several in _CALLED.findall(line.rest):
        names += [one] if one else [name.strip().lstrip("%") for name in several.split(",")]
    return names


def _attribute(line: Instruction, name: str) -> str:
    match = re.search(rf"\b{name}=%?([\w.$-]+)", line.rest)
    return match[1] if match else ""


def _turns(program: Mapping[str, Computation], loop: Instruction) -> int | None:
    """The turns of a loop; None where neither XLA nor its condition says."""
    if said := _TRIPS.search(loop.rest):
        return int(said[1])
    condition, body = (program.get(_attribute(loop, name)) for name in ("condition", "body"))
    if condition is None or body is None:
        return None
    lines = {line.name: line for line in condition.lines}
    compared = [lines[name] for name in condition.root.operands if name in lines]
    if condition.root.opcode != "compare" or "direction=LT" not in condition.root.rest or len(compared) != 2:
        return None
    counter, bound = compared
    if bound.opcode != "constant" or counter.opcode != "get-tuple-element":
        return None
    step = _step(body, int(_attribute(counter, "index")))
    return step and -(-int(bound.operands[0]) // step)


def _step(body: Computation, place: int) -> int | None:
    """By how much a loop's body moves the counter at this place of its state; None where it is not plain."""
    lines = {line.name: line for line in body.lines}

    def behind_copies(name: str) -> Instruction | None:
        line = lines.get(name)
        return behind_copies(line.operands[0]) if line and line.opcode == "copy" else line

    if body.root.opcode != "tuple":
        return None
    moved = behind_copies(body.root.operands[place])
    if moved is None or moved.opcode != "add":
        return None
    by = [line for name in moved.operands if (line := behind_copies(name)) and line.opcode == "constant"]
    return int(by[0].operands[0]) if len(by) == 1 else None
