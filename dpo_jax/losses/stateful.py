"""Losses that remember earlier batches: their state goes in and comes out, and is part of a checkpoint.

A state is updated in training only. An evaluation pass calls with a state of its own and forgets what comes back.

Dimension key: B pairs (of this shard), G pairs of all shards.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid

from dpo_jax.losses.knobs import Interval, Knob, NotNegative, Positive, Real, check_knobs
from dpo_jax.losses.pairs import averages, margin
from dpo_jax.losses.statistics import AxisName, count, gathered, mean, mean_and_std, own, present, total
from dpo_jax.types import PairLogps

_ZERO = np.zeros((), np.float32)  # an array: a Python float in a state would compile the step twice
Decay = Annotated[Knob, Interval(0.0, 1.0, without_high=True)]


class AlphaDPOState(NamedTuple):
    """Exponential averages of a batch statistic and of its standard deviation, and how often they were updated."""

    mean: jax.Array | np.ndarray = _ZERO
    std: jax.Array | np.ndarray = _ZERO
    count: jax.Array | np.ndarray = _ZERO


class RunningMean(NamedTuple):
    """The mean of all values so far, and how many they were."""

    mean: jax.Array | np.ndarray = _ZERO
    count: jax.Array | np.ndarray = _ZERO


def _averaged(
    state: AlphaDPOState, values_B: jax.Array, decay: Decay, where: jax.Array | None, axis_name: AxisName
) -> AlphaDPOState:
    centre, deviation = mean_and_std(values_B, where=where, axis_name=axis_name)
    return AlphaDPOState(
        mean=decay * state.mean + (1.0 - decay) * centre,
        std=decay * state.std + (1.0 - decay) * deviation,
        count=jnp.asarray(state.count, centre.dtype) + 1,
    )


def alpha_dpo(
    policy: PairLogps,
    reference: PairLogps,
    state: AlphaDPOState,
    *,
    beta: Positive = 2.5,
    gamma: Real = 1.5,
    alpha: Real = 0.2,
    decay: Decay = 0.9,
    std_floor: NotNegative = 1e-4,
    bias_correction: bool = False,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
) -> tuple[jax.Array, AlphaDPOState]:
    """SimPO with a target margin for each pair, moved by how far the policy already departs from the reference there.

    With p = C / n_w - R / n_l and g = p - (c / n_w - r / n_l):

        mu <- decay mu + (1 - decay) mean(g);  sd <- decay sd + (1 - decay) std(g)  (over n - 1; both start at 0)
        z = (g - mu) / sd where sd > std_floor, else 0
        loss = -ls(beta (p - k)),  k = alpha z + gamma / beta, without gradient

    alpha = 0 is SimPO. The gradient always points where SimPO's does: the reference only weighs the pairs. With alpha
    above 0 a pair that has moved further than others is pushed harder, below 0 less hard. Averages that start at 0 make
    the first batches' z too large; `bias_correction` divides them by 1 - decay^count and removes that.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each, with token counts.
        reference: the same under the frozen reference.
        state: `AlphaDPOState()` before the first batch.
        beta: scale of the average log-probs, > 0; a scalar or [B].
        gamma: target of beta p; a scalar or [B].
        alpha: how much the margin adapts; a scalar or [B].
        decay: of the averages, in [0, 1).
        std_floor: a deviation (nats per token) up to this counts as none.
        bias_correction: corrects the averages' start; what the trainer uses.
        where: which pairs are real, bool [B]; the others do not count in the averages.
        axis_name: inside `shard_map`, the mesh axes over which the batch is split.

    Returns:
        One loss per pair, [B], 0 where it is not real, and the new state. Where policy and reference agree it is
        SimPO's loss.

    Example:
        >>> import jax.numpy as jnp
        >>> one = jnp.ones(2)
        >>> policy = PairLogps(jnp.array([-1.0, -2.0]), jnp.array([-2.0, -2.0]), one, one)
        >>> losses, state = alpha_dpo(policy, policy, AlphaDPOState(), beta=2.0, gamma=1.0)
        >>> [round(float(x), 5) for x in losses]  # -log sigmoid(2 p - 1), p = 1 and 0
        [0.31326, 1.31326]

    References:
        Wu et al. 2024, arXiv:2410.10148.
    """
    check_knobs(alpha_dpo, beta=beta, gamma=gamma, alpha=alpha, decay=decay, std_floor=std_floor)
    check_knobs(alpha_dpo, bias_correction=bias_correction)
    chosen_B, rejected_B = averages(policy)
    frozen_B, frozen_rejected_B = averages(
        reference._replace(chosen_tokens=policy.chosen_tokens, rejected_tokens=policy.rejected_tokens)
    )
    p_B = chosen_B - rejected_B
    g_B = jax.lax.stop_gradient(p_B - (frozen_B - frozen_rejected_B))
    state = _averaged(state, g_B, decay, where, axis_name)
    whole = 1.0 - decay**state.count if bias_correction else 1.0
    centre, deviation = state.mean / whole, state.std / whole
    steady = deviation > std_floor
    z_B = jnp.where(steady, (g_B - centre) / jnp.where(steady, deviation, 1.0), 0.0)
    k_B = jax.lax.stop_gradient(alpha * z_B + gamma / beta)
    losses_B = -log_sigmoid(beta * (p_B - k_B))
    return (losses_B if where is None else jnp.where(where, losses_B, 0.0)), state


def beta_dpo(
    policy: PairLogps,
    reference: PairLogps,
    state: AlphaDPOState,
    *,
    key: jax.Array,
    beta: Positive = 0.1,
    a: Real = 0.6,
    filter_fraction: Annotated[Knob, Interval(0.0, 1.0, without_high=True)] = 0.2,
    decay: Decay = 0.9,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
) -> tuple[jax.Array, AlphaDPOState]:
    """DPO whose beta follows the batch, on a batch from which pairs far from the usual margin are left out by lot.

    mu and sd are averages of mean(h) and std(h) as in `alpha_dpo`. k = int(B (1 - filter_fraction)) pairs, at least
    one, are drawn without replacement with weight exp(-0.5 ((h - mu) / sd)^2) (uniform while sd is below 1e-4), and

        beta_used = max(0.001, beta (1 + a (mean of the drawn h - mu))), without gradient
        loss = -ls(beta_used h) B / k for the drawn, 0 for the others

    a = 0 and filter_fraction = 0 is DPO.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        state: `AlphaDPOState()` before the first batch.
        key: a random key, new for each batch, the same on all shards.
        beta: the beta of a usual batch, > 0; a scalar.
        a: how much beta follows the margin, per nat; a scalar.
        filter_fraction: share of the batch left out, in [0, 1); a scalar.
        decay: of the averages, in [0, 1).
        where: which pairs are real, bool [B]; the others are never drawn and get 0.
        axis_name: inside `shard_map`, the mesh axes over which the batch is split.

    Returns:
        One loss per pair, [B], and the new state; the plain mean is log 2 where policy and reference agree.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> zero = PairLogps(jnp.zeros(5), jnp.zeros(5))
        >>> losses, state = beta_dpo(zero, zero, AlphaDPOState(), key=jax.random.key(0))
        >>> int((losses > 0).sum()), round(float(losses.mean()), 5)
        (4, 0.69315)

    References:
        Wu et al. 2024, arXiv:2407.08639.
    """
    check_knobs(beta_dpo, beta=beta, a=a, filter_fraction=filter_fraction, decay=decay)
    h_B = margin(policy, reference)
    moved_B = jax.lax.stop_gradient(h_B)
    state = _averaged(state, moved_B, decay, where, axis_name)
    steady = state.std > 1e-4
    z_B = jnp.where(steady, (moved_B - state.mean) / jnp.where(steady, state.std, 1.0), 0.0)
    real_G = gathered(present(h_B, where), axis_name)
    # The k largest of log-weight + Gumbel noise are k draws without replacement.
    lot_G = -0.5 * gathered(z_B, axis_name) ** 2 + jax.random.gumbel(key, real_G.shape, h_B.dtype)
    place_G = jnp.argsort(jnp.argsort(-jnp.where(real_G, lot_G, -jnp.inf)))
    pairs = count(h_B, where, axis_name)
    kept = jnp.maximum(jnp.floor(pairs * (1.0 - filter_fraction) + 1e-3), 1)  # float32 has 10 * (1 - 0.6) below 4
    drawn_B = own((place_G < kept) & real_G, h_B, axis_name)
    beta_used = jnp.maximum(1e-3, beta * (1.0 + a * (total(moved_B, drawn_B, axis_name) / kept - state.mean)))
    return jnp.where(drawn_B, -log_sigmoid(beta_used * h_B) * pairs / kept, 0.0), state


def running_mean(
    values: jax.Array, state: RunningMean, *, where: jax.Array | None = None, axis_name: AxisName = None
) -> tuple[jax.Array, RunningMean]:
    """The mean of all values so far, these among them: delta of `bco_pair` and `bco`.

    Args:
        values: detached here; [n].
        state: `RunningMean()` before the first batch, whose mean is used at once.
        where: which values are real, bool [n].
        axis_name: inside `shard_map`, the mesh axes over which the values are split.

    Returns:
        The mean, [], and the new state.

    Example:
        >>> import jax.numpy as jnp
        >>> _, state = running_mean(jnp.array([1.0, 3.0]), RunningMean())
        >>> delta, state = running_mean(jnp.array([8.0]), state)
        >>> float(delta)
        4.0
    """
    values = jax.lax.stop_gradient(values.astype(jnp.promote_types(values.dtype, jnp.float32)))
    now, new = mean(values, where=where, axis_name=axis_name), count(values, where, axis_name)
    seen = jnp.asarray(state.count, new.dtype) + new
    # As a step towards the new mean: a sum of all values would lose the new ones to rounding.
    moved = jnp.asarray(state.mean) + (now - state.mean) * (new / jnp.maximum(seen, 1))
    return moved, RunningMean(moved, seen)
