"""Traffic between chips of a compiled program: its collectives, and what they move."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from dpo_jax.planning.hlo import Computation, Instruction, array_bytes, called_by, runs

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")

_CHANNEL = re.compile(r"channel_id=\d+")


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
