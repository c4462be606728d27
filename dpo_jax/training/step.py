"""One training step: gradients over micro-batches, one update. It never learns that preferences exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from dpo_jax.training.metrics import divide
from dpo_jax.training.optimizer import Schedule
from dpo_jax.training.state import TrainState
from dpo_jax.types import Knobs, Objective, Params

T = TypeVar("T")


def gradients(objective: Objective, state: TrainState, batch: object, knobs: Knobs, key: jax.Array) -> tuple:
    """(loss, metrics, loss_state), gradient of a batch whose arrays have a leading axis of micro-batches."""
    objective = objective._replace(loss=jax.named_scope("loss")(objective.loss))
    counts = jax.tree.map(lambda x: x.sum(0), jax.vmap(objective.weigh)(batch))
    micro_batches = jax.tree.leaves(batch)[0].shape[0]

    def part(index: jax.Array) -> tuple[Any, jax.Array]:
        return jax.tree.map(lambda x: x[index], batch), jax.random.fold_in(key, index)

    def forward(params: Params, index: jax.Array) -> Any:
        return objective.forward(params, state.frozen, *part(index))

    def micro(index: jax.Array) -> tuple:
        def loss(params: Params) -> tuple:
            rows, own_key = part(index)
            total, *rest = objective.loss(forward(params, index), rows, knobs, counts, state.loss_state, own_key)
            return total, (total, *rest)

        gradient, results = jax.grad(loss, has_aux=True)(state.params)
        return results, gradient

    if micro_batches == 1:
        return micro(jnp.zeros((), jnp.int32))
    if not objective.whole_batch:
        (loss, metrics, _), gradient = _summed(lambda index: _without_loss_state(*micro(index)), micro_batches)
        return (loss, metrics, state.loss_state), gradient

    outputs = jax.lax.map(lambda index: forward(state.params, index), jnp.arange(micro_batches))
    joined = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

    def whole_loss(outputs: Any) -> tuple:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
        results = objective.loss(flat, joined, knobs, counts, state.loss_state, jax.random.fold_in(key, 0))
        return results[0], results

    cotangents, results = jax.grad(whole_loss, has_aux=True)(outputs)

    def backward(index: jax.Array) -> Params:
        _, pull = jax.vjp(lambda params: forward(params, index), state.params)
        return pull(jax.tree.map(lambda x: x[index], cotangents))[0]

    return results, _summed(backward, micro_batches)


def _without_loss_state(results: tuple, gradient: Params) -> tuple:
    loss, metrics, _ = results
    return (loss, metrics, ()), gradient


def _summed(part: Callable[[jax.Array], T], count: int) -> T:
    """The sum of `part(index)` over all indices, one at a time."""

    def accumulate(total: T, index: jax.Array) -> tuple[T, None]:
        return jax.tree.map(jnp.add, total, part(index)), None

    shapes = jax.eval_shape(part, jax.ShapeDtypeStruct((), jnp.int32))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return jax.lax.scan(accumulate, zeros, jnp.arange(count))[0]


def make_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    shardings: TrainState,
    batch_shardings: object,
) -> Callable[[TrainState, Any, Knobs], tuple[TrainState, dict[str, jax.Array]]]:
    """`step(state, batch, knobs) -> (state, metrics)`, jitted once for each shape; the old state is donated.

    The metrics are numbers: `loss`, `grad_norm` before clipping, `learning_rate`, `skipped_steps` of the run so far,
    and those of the objective. A step whose loss or gradient norm is not finite is skipped: it moves on to the next
    batch and changes nothing else.
    """

    def step(state: TrainState, batch: Any, knobs: Knobs) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        (loss, metrics, loss_state), gradient = gradients(objective, state, batch, knobs, key)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        def unless_skipped(new: T, old: T) -> T:
            return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)

        with jax.named_scope("optimizer"):
            direction, moments = optimizer.update(gradient, state.optimizer, state.params)
            learning_rate = knobs["learning_rate"] * schedule(state.step)
            moved = jax.tree.map(lambda p, d: p + (learning_rate * d).astype(p.dtype), state.params, direction)
            params = unless_skipped(moved, state.params)
        skipped = state.skipped + jnp.where(finite, 0, 1)
        numbers = {"loss": loss, "grad_norm": norm, "learning_rate": learning_rate, "skipped_steps": skipped}
        frozen = state.frozen
        if objective.refresh and frozen is not None:
            frozen = objective.refresh(params, frozen, state.step + 1)
        moments, loss_state = unless_skipped((moments, loss_state), (state.optimizer, state.loss_state))
        new = TrainState(state.step + 1, params, moments, state.key, loss_state, frozen, skipped)
        return new, numbers | divide(metrics)

    return jax.jit(
        step, in_shardings=(shardings, batch_shardings, None), out_shardings=(shardings, None), donate_argnums=0
    )
