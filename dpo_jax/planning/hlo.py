"""Reading the text of an optimized XLA program: its computations, how often each runs, and what its collectives move.

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
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
_CHANNEL = re.compile(r"channel_id=\d+")
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


class Collective(NamedTuple):
    """Collectives of one kind over groups of one size, in one run of the program."""

    kind: str
    chips: int  # in a group
    times: int
    bytes: int  # that each chip sends, where a ring of the group does it


class Collectives(NamedTuple):
    """All of a program."""

    collectives: tuple[Collective, ...]
    uncounted: int  # of them stand in loops whose turns are not known, and count once


def collectives(program: Mapping[str, Computation], *, devices: int) -> Collectives:
    """Return what the collectives of a program move, by kind and size of the groups, the most bytes first."""
    times, unsure = runs(program)
    fused = {
        name for each in program.values() for line in each.lines if line.opcode == "fusion" for name in called_by(line)
    }
    begun: set[str] = set()
    sums: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0])
    uncounted = 0
    for name, computation in program.items():
        for line in computation.lines:
            kind, chips = line.opcode.removesuffix("-start"), group_size(line.rest, devices)
            if kind not in KINDS or chips == 1 or not times[name]:
                continue
            if name in fused and (channel := _CHANNEL.search(line.rest)):
                if channel[0] in begun:  # the TPU compiler hides one behind matmuls: it is begun, goes on, and ends
                    continue
                begun.add(channel[0])
            size = _size(line, chips)
            if name.startswith("all-reduce-scatter"):  # the TPU compiler writes a reduce-scatter so, and fuses it
                kind, size = "reduce-scatter", size // chips
            total = sums[kind, chips]
            total[0] += times[name]
            total[1] += times[name] * _sent(kind, size, chips)
            uncounted += name in unsure
    moved = [Collective(kind, chips, count, sent) for (kind, chips), (count, sent) in sums.items()]
    return Collectives(tuple(sorted(moved, key=lambda each: -each.bytes)), uncounted)


def group_size(rest: str, devices: int) -> int:
    """The number of devices in each group of a collective, by any of the three ways in which XLA writes it."""
    if "source_target_pairs=" in rest:
        return 2
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'?([\w-]+)'?=(\d+)", named[1]))
        parts = re.findall(r"'?([\w-]+)'?(?::\(\d+\)(\d+))?(?:,|$)", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    return devices


def _size(line: Instruction, chips: int) -> int:
    """The bytes of a collective's result; what starts one names its operands before the results."""
    arrays = array_bytes(line.type)
    if line.opcode == "all-gather-start":
        return sum(arrays) * chips // (chips + 1)
    return max(arrays) if line.opcode == "collective-permute-start" else sum(arrays)


def _sent(kind: str, size: int, chips: int) -> int:
    """The bytes that each chip sends for a result of this size."""
    if kind == "all-reduce":
        return 2 * size * (chips - 1) // chips
    if kind == "reduce-scatter":
        return size * (chips - 1)
    return size if kind == "collective-permute" else size * (chips - 1) // chips
