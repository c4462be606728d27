"""The train state, born sharded: the optimizer's moments lie where their parameters lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from dpo_jax.mesh import named_sharding, replicated
from dpo_jax.types import Params, Tree


class TrainState(NamedTuple):
    """All that changes from step to step. The data position is the step."""

    step: jax.Array  # int32 []
    params: Params
    optimizer: optax.OptState
    key: jax.Array  # uint32, the data of a random key; each step folds its number in
    loss_state: Any = ()  # what the objective remembers from batch to batch; small
    frozen: Params | None = None  # without gradient: the base under an adapter, or the reference where the step runs it
    skipped: jax.Array | np.ndarray = np.zeros((), np.int32)  # steps whose loss or gradient was not finite


def param_shardings(mesh: Mesh, tree: Tree) -> Params:
    """The sharding of each parameter, from its logical axis names."""
    return jax.tree.map(lambda shape, names: named_sharding(mesh, names, shape.shape), *tree)


def state_shardings(
    mesh: Mesh,
    trained: Tree,
    optimizer: optax.GradientTransformation,
    *,
    loss_state: Any = (),
    frozen: Params | None = None,
) -> TrainState:
    """The sharding of each leaf of the train state, as a `TrainState`.

    `loss_state` is one like that of the state, `frozen` the shardings of its frozen parameters, if it has any.

    `jit(optimizer.init)` alone gives replicated moments, and the first step compiles twice: so they are derived.
    """
    params = param_shardings(mesh, trained)
    whole: Any = replicated(mesh)
    optimizer_shapes = jax.eval_shape(optimizer.init, trained.shapes)
    moments = optax.tree_map_params(
        optimizer, lambda _, sharding: sharding, optimizer_shapes, params, transform_non_params=lambda _: whole
    )
    return TrainState(
        step=whole,
        params=params,
        optimizer=moments,
        key=whole,
        loss_state=jax.tree.map(lambda _: whole, loss_state),
        frozen=frozen,
        skipped=whole,
    )


def create_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    *,
    seed: int,
    loss_state: Any = (),
    frozen: Params | None = None,
) -> TrainState:
    """The state before the first step. `params` and `frozen` are used up: they become the state's own buffers."""
    born = jax.jit(_born(optimizer, seed), out_shardings=shardings, donate_argnums=(0, 1))
    return born(params, frozen, loss_state)


def state_shapes(
    params: Params,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    *,
    loss_state: Any = (),
    frozen: Params | None = None,
) -> TrainState:
    """The state as shapes with their shardings, from those of the parameters; nothing is allocated."""
    shapes = jax.eval_shape(_born(optimizer, 0), params, frozen, loss_state)
    return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, shardings)


def _born(optimizer: optax.GradientTransformation, seed: int) -> Callable[..., TrainState]:
    def born(params: Params, frozen: Params | None, loss_state: Any) -> TrainState:
        key = jax.random.key_data(jax.random.key(seed))
        step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
        return TrainState(step, params, optimizer.init(params), key, loss_state, frozen, skipped)

    return born
