"""A program's share of each chip, compiled for a machine that is not here, as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NotRequired, TypedDict

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dpo_jax.planning.compiled import Compiled, compile_program
from dpo_jax.planning.topologies import Machine


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
    buffers: NotRequired[list[dict[str, Any]]]
    collectives: NotRequired[list[dict[str, Any]]]
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

    model: dict[str, Any]
    machine: dict[str, Any]
    mesh: dict[str, int]
    settings: dict[str, Any]
    lengths: dict[str, Any]
    work: dict[str, float]
    fits: bool
    analysis: Outcome  # of the training step
    programs: NotRequired[dict[str, Outcome]]  # the reference pass and the training step, compiled
    alternatives: list[Alternative]
    search: NotRequired[dict[str, Any]]  # for the largest micro-batch


def bytes_per_chip(tree: object) -> int:
    """The share of one device in arrays, given as shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize for x in leaves)


def held_bytes(call: Call) -> dict[str, int]:
    """The share of one chip in each of a program's arguments."""
    return {name: bytes_per_chip(tree) for name, tree in call.held.items()}


def measure(call: Call, machine: Machine, mesh: Mesh, *, full: bool) -> Outcome:
    """Compile a program for a machine, and read what it takes of each chip."""
    capacity = machine.chip.memory_bytes
    with jax.set_mesh(mesh):
        program = compile_program(call.function, *call.arguments, devices=machine.count, full=full)
    gradients = bytes_per_chip(call.trained)
    sizes = {**held_bytes(call), "gradients": gradients}
    if not isinstance(program, Compiled):
        return Outcome(
            rows=call.rows,
            bytes=sizes,
            fits=False,
            needs=program.needs,
            has=program.has or capacity,
            compile_seconds=program.seconds,
            says=program.says,
        )
    memory = program.memory
    sizes |= {
        "activations": max(0, memory.temporary - gradients),
        "temporary": memory.temporary,
        "outputs": memory.outputs,
        "code": memory.code,
        "arguments": memory.arguments,
        "donated": program.aliased,
    }
    return Outcome(
        rows=call.rows,
        bytes=sizes,
        fits=memory.peak <= capacity,
        needs=memory.peak,
        has=capacity,
        compile_seconds=program.seconds,
        buffers=[buffer._asdict() for buffer in program.buffers],
        collectives=[each._asdict() for each in program.traffic.collectives],
        collectives_in_unknown_loops=program.traffic.uncounted,
    )
