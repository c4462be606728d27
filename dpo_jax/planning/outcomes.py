"""A program's share of each chip, compiled for a machine that is not here and read, as plain data."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NotRequired, TypedDict

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dpo_jax.planning.hlo import Computation, array_bytes, called_by, collectives, parse
from dpo_jax.planning.topologies import GIB, Machine

_LOW_EFFORT = {"optimization_level": 19}  # O1, by its number: so every jax knows it
_LABEL = re.compile(r'op_name="([^"]*)"')

Facts = dict[str, Any]
"""Facts by name, as JSON has them."""


class Rows(TypedDict):
    """The rows that a program is compiled for."""

    shape: list[int]
    scored: int  # places in a row


class Call(NamedTuple):
    """A jitted function and what it is called with, as shapes with shardings."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    held: Mapping[str, object]  # the trees of which the arguments consist, by name
    trained: object  # the parameters that get a gradient, or None
    rows: Rows


class Outcome(TypedDict):
    """Bytes of each chip, and whether they fit."""

    rows: Rows
    bytes: dict[str, int]  # of what
    fits: bool
    needs: int | None  # None where the compiler does not say
    has: int
    compile_seconds: NotRequired[float]
    says: NotRequired[str]  # the compiler's words on a program that is too large
    buffers: NotRequired[list[Facts]]
    collectives: NotRequired[list[Facts]]
    collectives_in_unknown_loops: NotRequired[int]
    activations: NotRequired[dict[str, int]]  # by analysis, of what


class Alternative(TypedDict):
    """A training step with other settings."""

    change: str  # as on the command line
    fits: bool
    needs: int | None
    has: int
    compile_seconds: NotRequired[float]


class Plan(TypedDict):
    """All that is known of an experiment on a machine; written as it is by `dpo-jax plan --json`."""

    model: Facts
    machine: Facts
    mesh: dict[str, int]
    settings: Facts
    lengths: Facts
    work: dict[str, float]
    fits: bool
    analysis: Outcome  # of the training step
    programs: NotRequired[dict[str, Outcome]]  # the reference pass and the training step, compiled
    alternatives: list[Alternative]
    search: NotRequired[Facts]  # for the largest micro-batch


def bytes_per_chip(tree: object) -> int:
    """The share of one device in arrays, given as shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize for x in leaves)


def held_bytes(call: Call) -> dict[str, int]:
    """The share of one chip in each of a program's arguments."""
    return {name: bytes_per_chip(tree) for name, tree in call.held.items()}


def measure(call: Call, machine: Machine, mesh: Mesh, *, full: bool) -> Outcome:
    """Compile a program for a machine, and read what it takes of each chip.

    At low effort, unless `full`, it takes seconds instead of minutes, and memory comes out a little otherwise.
    """
    capacity, gradients = machine.chip.memory_bytes, bytes_per_chip(call.trained)
    sizes = {**held_bytes(call), "gradients": gradients}
    start = time.perf_counter()
    try:
        with jax.set_mesh(mesh):
            lowered = call.function.lower(*call.arguments)
            compiled = lowered.compile(compiler_options=None if full else _LOW_EFFORT)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needs, has = too_large(str(error))
        return Outcome(
            rows=call.rows,
            bytes=sizes,
            fits=False,
            needs=needs,
            has=has or capacity,
            compile_seconds=time.perf_counter() - start,
            says=str(error).splitlines()[0],
        )
    seconds, memory, program = time.perf_counter() - start, compiled.memory_analysis(), parse(compiled.as_text())
    traffic = collectives(program, devices=machine.count)
    sizes |= {
        "activations": max(0, memory.temp_size_in_bytes - gradients),
        "temporary": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,  # beyond what takes arguments' place
        "code": memory.generated_code_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "donated": memory.alias_size_in_bytes,
    }
    peak = sum(sizes[name] for name in ("arguments", "temporary", "outputs", "code"))
    return Outcome(
        rows=call.rows,
        bytes=sizes,
        fits=peak <= capacity,
        needs=peak,
        has=capacity,
        compile_seconds=seconds,
        buffers=[buffer._asdict() for buffer in largest_buffers(program)],
        collectives=[each._asdict() for each in traffic.collectives],
        collectives_in_unknown_loops=traffic.uncounted,
    )


class Buffer(NamedTuple):
    """An array of the program on one chip."""

    shape: str
    bytes: int
    label: str  # where in the program it is made


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


def too_large(message: str) -> tuple[int | None, int | None]:
    """Bytes that a program needs of a chip and that this has, from a RESOURCE_EXHAUSTED; None where it does not say."""
    match = next((hit for pattern in _NEEDS if (hit := pattern.search(message))), None)
    if not match:
        return None, None
    needs, has = (int(float(match[place]) * _UNITS[match[place + 1]]) for place in (1, 3))
    return needs, has
