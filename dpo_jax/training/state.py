"""The train state, born sharded: the optimizer's moments lie where their parameters lie."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dpo_jax.mesh import named_sharding, replicated
from dpo_jax.types import Params


class TrainState(NamedTuple):
    """All that changes from step to step. The data position is the step."""

    step: jax.Array  # int32 []
    params: Params
    optimizer: Any
    key: jax.Array  # uint32, the data of a random key; each step folds its number in
    memory: Any = ()  # what the objective remembers from batch to batch; small
    frozen: Params | None = None  # the reference's parameters, where it must be at hand in the step


def param_shardings(mesh: Mesh, shapes: Params, axes: Params) -> Params:
    """The sharding of each parameter, from its logical axis names."""
    return jax.tree.map(lambda shape, names: named_sharding(mesh, names, shape.shape), shapes, axes)


def state_shardings(
    mesh: Mesh,
    shapes: Params,
    axes: Params,
    optimizer: optax.GradientTransformation,
    *,
    memory: Any = (),
    with_frozen: bool = False,
) -> Any:
    """The sharding of each leaf of the train state, as a `TrainState`; `memory` is one like that of the state.

    `jit(optimizer.init)` alone gives replicated moments, and the first step compiles twice: so they are derived.
    """
    params = param_shardings(mesh, shapes, axes)
    whole: Any = replicated(mesh)
    optimizer_shapes = jax.eval_shape(optimizer.init, shapes)
    moments = optax.tree_map_params(
        optimizer, lambda _, sharding: sharding, optimizer_shapes, params, transform_non_params=lambda _: whole
    )
    return TrainState(
        step=whole,
        params=params,
        optimizer=moments,
        key=whole,
        memory=jax.tree.map(lambda _: whole, memory),
        frozen=params if with_frozen else None,
    )


def create_state(
    params: Params, optimizer: optax.GradientTransformation, shardings: TrainState, *, seed: int, memory: Any = ()
) -> Any:
    """The state before the first step. `params` are used up: they become the state's own buffers.

    Where `shardings` has a place for frozen parameters, they begin as a copy of `params`.
    """

    def born(params: Params, memory: Any) -> TrainState:
        key = jax.random.key_data(jax.random.key(seed))
        frozen = None if shardings.frozen is None else jax.tree.map(jnp.copy, params)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key, memory, frozen)

    return jax.jit(born, out_shardings=shardings, donate_argnums=0)(params, memory)
