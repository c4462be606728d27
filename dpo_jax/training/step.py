"""One training step: gradients over micro-batches, one update. It never learns that preferences exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dpo_jax.training.metrics import add, divide
from dpo_jax.training.optimizer import Schedule
from dpo_jax.training.state import TrainState
from dpo_jax.types import Metrics, Params

Knobs = dict[str, Any]
"""Traced numbers: `learning_rate` (its peak), and those of the objective. Changing one does not recompile."""


class Objective(NamedTuple):
    """What is minimised.

    `weigh(batch)` counts what the losses of one micro-batch are divided by (pairs, tokens); the counts of the whole
    batch go to `loss(params, batch, knobs, counts, key) -> (loss, metrics)`, so that the losses of the micro-batches
    add up to the loss of the batch, exactly, however the tokens lie.
    """

    weigh: Callable[[Any], dict[str, jax.Array]]
    loss: Callable[[Params, Any, Knobs, dict[str, jax.Array], jax.Array], tuple[jax.Array, Metrics]]


def gradients(objective: Objective, params: Params, batch: Any, knobs: Knobs, key: jax.Array) -> tuple:
    """(loss, metrics), gradient of a batch whose arrays have a leading axis of micro-batches."""
    counts = jax.tree.map(lambda x: x.sum(0), jax.vmap(objective.weigh)(batch))
    differentiate = jax.value_and_grad(objective.loss, has_aux=True)
    micro_batches = jax.tree.leaves(batch)[0].shape[0]

    def micro(index: jax.Array) -> tuple:
        part = jax.tree.map(lambda x: x[index], batch)
        return differentiate(params, part, knobs, counts, jax.random.fold_in(key, index))

    if micro_batches == 1:
        return micro(jnp.zeros((), jnp.int32))

    def accumulate(carry: tuple, index: jax.Array) -> tuple[tuple, None]:
        (loss, metrics), gradient = micro(index)
        (loss_sum, metrics_sum), gradient_sum = carry
        return ((loss_sum + loss, add(metrics_sum, metrics)), jax.tree.map(jnp.add, gradient_sum, gradient)), None

    shapes = jax.eval_shape(micro, jax.ShapeDtypeStruct((), jnp.int32))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.scan(accumulate, zeros, jnp.arange(micro_batches))[0]


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    shardings: TrainState,
    batch_shardings: Any,
) -> Callable[[TrainState, Any, Knobs], tuple[TrainState, dict[str, jax.Array]]]:
    """`step(state, batch, knobs) -> (state, metrics)`, jitted once for each shape; the old state is donated.

    The metrics are numbers: `loss`, `grad_norm` before clipping, `learning_rate`, and those of the objective.
    """

    def step(state: TrainState, batch: Any, knobs: Knobs) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        (loss, metrics), gradient = gradients(objective, state.params, batch, knobs, key)
        direction, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        learning_rate = knobs["learning_rate"] * schedule(state.step)
        params = jax.tree.map(lambda p, d: p + (learning_rate * d).astype(p.dtype), state.params, direction)
        numbers = {"loss": loss, "grad_norm": optax.tree.norm(gradient), "learning_rate": learning_rate}
        new = TrainState(state.step + 1, params, optimizer_state, state.key)
        return new, numbers | divide(metrics)

    return jax.jit(
        step, in_shardings=(shardings, batch_shardings, None), out_shardings=(shardings, None), donate_argnums=0
    )
