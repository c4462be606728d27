"""A policy that is one table of logits over a few actions: what a loss does to it, without a network in between.

Here probabilities sum to one, which is all that couples the actions. With d = -dL/dy_w = dL/dy_l > 0 (y = log pi, a
loss of the margin alone) a step of gradient descent in the logits moves, to first order in its size and in log-probs,

    chosen     by  d (1 - pi_w + pi_l)
    rejected   by -d (1 + pi_w - pi_l)
    all others by -d (pi_w - pi_l)

so in log-probs rejected falls faster than chosen rises exactly when pi_w > pi_l. In probabilities it is the other way
round: chosen gains more than rejected loses exactly when pi_w > pi_l, the rest paying for it.

Dimension key: A actions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dpo_jax.analysis.field import PairLoss
from dpo_jax.types import PairLogps


class Change(NamedTuple):
    """Changes of log-probs in one step, nats, [A] each."""

    first_order_A: jax.Array
    happened_A: jax.Array


def one_step(
    loss: PairLoss, logits_A: jax.Array, reference_A: jax.Array, *, chosen: int, rejected: int, learning_rate: float
) -> Change:
    """What a step of gradient descent in the logits, on one pair, does to the log-probs of all actions.

    Args:
        loss: see `field.pair_loss`; every action is one token.
        logits_A: of the policy.
        reference_A: log-probs of the reference, nats.
        chosen: the action that is preferred.
        rejected: the other one.
        learning_rate: size of the step.
    """
    pair = jnp.array([chosen]), jnp.array([rejected])
    frozen = _pairs(reference_A, *pair)

    def value(logits_A: jax.Array) -> jax.Array:
        return loss(_pairs(_logps(logits_A), *pair), frozen)[0]

    move_A = -learning_rate * jax.grad(value)(logits_A)
    before_A, first_order_A = jax.jvp(_logps, (logits_A,), (move_A,))
    return Change(first_order_A, _logps(logits_A + move_A) - before_A)


def population_minimiser(loss: PairLoss, wins_AA: Any, reference_A: jax.Array, *, steps: int = 200) -> jax.Array:
    """The log-probs [A] that minimise a loss over all pairs of actions at once, found by L-BFGS from the reference.

    Where the minimum lies at infinity, as DPO's does where a preference is certain, they are those after `steps`.

    Args:
        loss: see `field.pair_loss`; every action is one token.
        wins_AA: how often the first action is preferred to the second, as shares or counts; the diagonal is not read.
        reference_A: log-probs of the reference, nats.
        steps: of the optimizer.
    """
    actions = len(reference_A)
    chosen, rejected = jnp.nonzero(~jnp.eye(actions, dtype=bool))
    wins = jnp.asarray(wins_AA, float)[chosen, rejected]
    frozen = _pairs(reference_A, chosen, rejected)

    def value(logits_A: jax.Array) -> jax.Array:
        return (wins * loss(_pairs(_logps(logits_A), chosen, rejected), frozen)).sum() / wins.sum()

    return _logps(_minimise(value, reference_A, steps=steps))


def _minimise(value: Callable[[jax.Array], jax.Array], start_A: jax.Array, *, steps: int) -> jax.Array:
    optimizer = optax.lbfgs()
    with_slope = optax.value_and_grad_from_state(value)

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], None]:
        logits_A, state = carry
        now, slope_A = with_slope(logits_A, state=state)
        move_A, state = optimizer.update(slope_A, state, logits_A, value=now, grad=slope_A, value_fn=value)
        return (logits_A + move_A, state), None

    (logits_A, _), _ = jax.lax.scan(step, (start_A, optimizer.init(start_A)), None, length=steps)
    return logits_A


def _logps(logits_A: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits_A)


def _pairs(logps_A: jax.Array, chosen: jax.Array, rejected: jax.Array) -> PairLogps:
    one = jnp.ones(len(chosen))
    return PairLogps(logps_A[chosen], logps_A[rejected], one, one)
