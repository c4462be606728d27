"""Compiling for a machine that is not here: what a program needs of each chip, or by how much it is too large."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from dpo_jax.planning.hlo import Computation, array_bytes, called_by, parse
from dpo_jax.planning.topologies import GIB
from dpo_jax.planning.traffic import Collectives, collectives

_LOW_EFFORT = {"optimization_level": 19}  # O1, by its number: so every jax knows it
_LABEL = re.compile(r'op_name="([^"]*)"')


class Memory(NamedTuple):
    """Bytes of one chip, as the compiler has laid them out."""

    arguments: int
    temporary: int
    outputs: int  # beyond what takes the place of arguments
    code: int

    @property
    def peak(self) -> int:
        """All of it together."""
        return sum(self)


class Buffer(NamedTuple):
    """An array of the program on one chip."""

    shape: str
    bytes: int
    label: str  # where in the program it is made


class Compiled(NamedTuple):
    """A program that fits."""

    memory: Memory
    aliased: int  # bytes of results that take the place of arguments
    traffic: Collectives
    buffers: tuple[Buffer, ...]
    seconds: float  # that the compiler took


class TooLarge(NamedTuple):
    """A program that does not."""

    needs: int | None  # bytes of one chip; None where the compiler does not say
    has: int | None
    seconds: float
    says: str  # what the compiler said first


def compile_program(function: Any, *arguments: object, devices: int, full: bool = False) -> Compiled | TooLarge:
    """Compile a jitted function for the machine on which its arguments, shapes with shardings, lie.

    At low effort, unless `full`, it takes seconds instead of minutes, and memory comes out a little otherwise.
    """
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    try:
        compiled = lowered.compile(compiler_options=None if full else _LOW_EFFORT)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return too_large(str(error), time.perf_counter() - start)
    seconds, sizes, program = time.perf_counter() - start, compiled.memory_analysis(), parse(compiled.as_text())
    memory = Memory(
        sizes.argument_size_in_bytes,
        sizes.temp_size_in_bytes,
        sizes.output_size_in_bytes - sizes.alias_size_in_bytes,
        sizes.generated_code_size_in_bytes,
    )
    traffic = collectives(program, devices=devices)
    return Compiled(memory, sizes.alias_size_in_bytes, traffic, tuple(largest_buffers(program)), seconds)


_PASSED_ON = {"get-tuple-element", "tuple", "bitcast", "while", "conditional", "optimization-barrier", "call"}


def largest_buffers(program: Mapping[str, Computation], *, count: int = 8) -> list[Buffer]:
    """The largest arrays in main memory that a program is given or makes, one of each shape.

    XLA lets arrays share memory when their lives do not overlap: these need not all exist at once.
    """
    outer = [name for name, computation in program.items() if computation.entry]
    for computation in program.values():
        for line in computation.lines:
            if line.opcode in ("while", "conditional", "call"):
                outer += called_by(line)
    lines = [(line, program[name].entry) for name in outer if name in program for line in program[name].lines]
    buffers: dict[str, Buffer] = {}
    for line, entry in sorted(lines, key=lambda each: each[0].opcode != "parameter"):  # those have better labels
        passed_on = line.opcode in _PASSED_ON or (line.opcode == "parameter" and not entry)
        if passed_on or line.type.startswith("(") or "S(" in line.type:  # S(1) and others: memory on the chip
            continue
        shape, label = line.type.partition("{")[0], _LABEL.search(line.rest)
        buffers.setdefault(shape, Buffer(shape, sum(array_bytes(line.type)), label[1] if label else line.name))
    return sorted(buffers.values(), key=lambda buffer: -buffer.bytes)[:count]


# The first counts arguments and results too, whatever it says; the second is of older compilers.
_NEEDS = (
    re.compile(r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"),
    re.compile(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


def too_large(message: str, seconds: float = 0.0) -> TooLarge:
    """Read the sizes in a RESOURCE_EXHAUSTED of the TPU compiler."""
    match = next((hit for pattern in _NEEDS if (hit := pattern.search(message))), None)
    says = message.splitlines()[0]
    if not match:
        return TooLarge(None, None, seconds, says)
    needs, has = (int(float(match[place]) * _UNITS[match[place + 1]]) for place in (1, 3))
    return TooLarge(needs, has, seconds, says)
