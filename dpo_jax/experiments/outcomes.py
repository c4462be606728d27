"""The figures of a plan: what a program takes of each chip, compiled or by arithmetic, as plain data."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from dpo_jax.experiments.planned import Call, Planned, train_call
from dpo_jax.experiments.rows import DataRows
from dpo_jax.models.costs import activation_bytes, matmul_parameters
from dpo_jax.planning.compiled import Compiled, compile_program
from dpo_jax.training.state import TrainState


def mesh_words(mesh: Any) -> dict[str, int]:
    """Devices along each axis."""
    return {name: int(size) for name, size in mesh.shape.items()}


def bytes_per_chip(tree: Any) -> int:
    """What arrays, given as shapes with shardings, take of one device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize for x in leaves)


def _held(call: Call) -> dict[str, int]:
    """What the arguments of a program take of one chip, by name."""
    first, batch = call.arguments[:2]
    if not isinstance(first, TrainState):
        return {"parameters": bytes_per_chip(first), "batch": bytes_per_chip(batch)}
    held = {"parameters": first.params, "optimizer": first.optimizer, "frozen": first.frozen, "batch": batch}
    return {name: bytes_per_chip(tree) for name, tree in held.items()}


def _gradients(call: Call) -> int:
    """As large as what is trained."""
    first = call.arguments[0]
    return bytes_per_chip(first.params) if isinstance(first, TrainState) else 0


def measure(planned: Planned, call: Call, *, full: bool) -> dict[str, Any]:
    """Compiles a program, and says what of each chip it takes."""
    capacity = planned.machine.chip.memory_bytes
    with jax.set_mesh(planned.mesh):
        found = compile_program(call.function, *call.arguments, devices=planned.machine.count, full=full)
    gradients, shape = _gradients(call), call.arguments[1].tokens_RT.shape
    known: dict[str, Any] = {
        "rows": {"shape": list(shape), "scored": call.arguments[1].target_RN.shape[-1]},
        "bytes": {**_held(call), "gradients": gradients},
        "compile_seconds": found.seconds,
    }
    if not isinstance(found, Compiled):
        return known | {"fits": False, "needs": found.needs, "has": found.has or capacity, "says": found.says}
    memory = found.memory
    known["bytes"] |= {
        "activations": max(0, memory.temporary - gradients),
        "temporary": memory.temporary,
        "outputs": memory.outputs,
        "code": memory.code,
        "arguments": memory.arguments,
        "donated": found.aliased,
    }
    traffic = found.traffic
    return known | {
        "fits": memory.peak <= capacity,
        "needs": memory.peak,
        "has": capacity,
        "buffers": [buffer._asdict() for buffer in found.buffers],
        "collectives": [each._asdict() for each in traffic.found],
        "collectives_in_unknown_loops": traffic.uncounted,
    }


def _gathered(planned: Planned) -> int:
    """What fsdp gathers at one time: the embedding, the head and the matrices of one layer, in the compute dtype."""
    mesh, model = planned.mesh.shape, planned.model
    if mesh["fsdp"] == 1:
        return 0
    tables, layer = 2 * model.spec.vocabulary * model.spec.width, matmul_parameters(model.tree) // model.spec.layers
    return (tables + layer) * jnp.dtype(model.dtype).itemsize // mesh["tensor"]


def analyse_train(planned: Planned, data: DataRows) -> dict[str, Any]:
    """The training step by arithmetic: sizes of arrays are exact, activations are a formula's."""
    call = train_call(planned, data)
    batch, config, mesh = call.arguments[1], planned.config, planned.mesh.shape
    _, rows, length = batch.tokens_RT.shape
    activations = activation_bytes(
        planned.model.spec,
        rows=-(-rows // planned.row_multiple),
        length=-(-length // mesh["sequence"]),
        scored=batch.target_RN.shape[-1],
        width_bytes=jnp.dtype(config.model.dtype).itemsize,
        remat=config.model.remat,
        tensor=mesh["tensor"],
        dense_attention=planned.attention == "dense",
        tile=(config.tiles.tokens, config.tiles.vocabulary),
    )
    at_once = 1 if batch.tokens_RT.shape[0] == 1 else 2  # of a micro-batch, beside the sum of those before
    found = {
        **_held(call),
        "gradients": at_once * _gradients(call),
        "gathered": _gathered(planned),
        "activations": activations.total,
    }
    capacity = planned.machine.chip.memory_bytes
    needs = sum(found.values())
    return {
        "rows": {"shape": list(batch.tokens_RT.shape), "scored": batch.target_RN.shape[-1]},
        "bytes": found,
        "activations": activations._asdict(),
        "fits": needs <= capacity,
        "needs": needs,
        "has": capacity,
    }
