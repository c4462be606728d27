"""Losses on single completions that are labelled good or bad, not compared with each other.

a is the log-ratio of a completion, its log-prob under the policy less that under the reference; s is the logistic
sigmoid, ls its logarithm.

Dimension key: B completions (of this shard).
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid

from dpo_jax.losses.knobs import Knob, NotNegative, Positive, check_knobs
from dpo_jax.losses.pairs import widened
from dpo_jax.losses.statistics import AxisName, mean


def _log_ratio(policy_logps: jax.Array, reference_logps: jax.Array, desirable: jax.Array) -> jax.Array:
    policy_B, reference_B = widened(policy_logps, reference_logps)
    chex.assert_equal_shape([policy_B, desirable])
    return policy_B - reference_B


def mismatched_kl(
    policy_logps: jax.Array, reference_logps: jax.Array, *, where: jax.Array | None = None, axis_name: AxisName = None
) -> jax.Array:
    """KTO's estimate of the KL between policy and reference: the mean log-ratio of completions of other prompts.

    kl = mean(policy_logps - reference_logps) over the whole batch, without gradient. It may be negative.

    Args:
        policy_logps: log-probs of each prompt with the completion of another row, under the policy, nats, [B].
        reference_logps: the same under the frozen reference.
        where: which rows are real, bool [B]; the others do not count.
        axis_name: inside `shard_map`, the mesh axes over which the batch is split.

    Returns:
        The estimate, nats, []; 0 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> float(mismatched_kl(jnp.array([-10.0, -12.0]), jnp.array([-11.0, -16.0])))  # (1 + 4) / 2
        2.5

    References:
        Ethayarajh et al. 2024, arXiv:2402.01306.
    """
    policy_B, reference_B = jax.lax.stop_gradient(widened(policy_logps, reference_logps))
    return mean(policy_B - reference_B, where=where, axis_name=axis_name)


def kto(
    policy_logps: jax.Array,
    reference_logps: jax.Array,
    desirable: jax.Array,
    kl: Knob,
    *,
    beta: Positive = 0.1,
    desirable_weight: NotNegative = 1.0,
    undesirable_weight: NotNegative = 1.0,
) -> jax.Array:
    """Gains and losses against a common level, as people value them: Kahneman-Tversky optimisation.

    z0 = max(0, kl), without gradient;  loss = w_d (1 - s(beta (a - z0))) if desirable, else w_u (1 - s(beta (z0 - a))).

    The loss is bounded, so completions far on either side of z0 count little, and the larger beta the sooner. The
    weights make up for labels of unequal number: w_d times their number and w_u times theirs are to be about equal.

    Args:
        policy_logps: log-probs of the completions under the policy, nats, [B].
        reference_logps: the same under the frozen reference.
        desirable: the labels, bool or 1 and 0, [B].
        kl: mean log-ratio of mismatched completions (`mismatched_kl`), nats, [].
        beta: steepness around z0, > 0; a scalar or [B].
        desirable_weight: w_d, >= 0; a scalar or [B].
        undesirable_weight: w_u, >= 0; a scalar or [B].

    Returns:
        One loss per completion, [B], between 0 and its weight; half the weight where policy and reference agree and
        kl is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> policy, reference = jnp.array([-6.0, -6.0]), jnp.array([-10.0, -10.0])
        >>> losses = kto(policy, reference, jnp.array([True, False]), 1.0, beta=0.1)  # 1 - sigmoid(+-0.3)
        >>> [round(float(x), 5) for x in losses]
        [0.42556, 0.57444]

    References:
        Ethayarajh et al. 2024, arXiv:2402.01306.
    """
    check_knobs(kto, beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    a_B = _log_ratio(policy_logps, reference_logps, desirable)
    chex.assert_rank(kl, 0)
    x_B = beta * (a_B - jax.lax.stop_gradient(jnp.maximum(kl, 0.0)))
    return jnp.where(desirable, desirable_weight * sigmoid(-x_B), undesirable_weight * sigmoid(x_B))


def apo_zero_unpaired(
    policy_logps: jax.Array,
    reference_logps: jax.Array,
    desirable: jax.Array,
    *,
    beta: Positive = 0.1,
    desirable_weight: NotNegative = 1.0,
    undesirable_weight: NotNegative = 1.0,
) -> jax.Array:
    """Anchored preference optimisation of single completions: desirable ones up, undesirable ones down.

    loss = w_d (1 - s(beta a)) if desirable, else w_u s(beta a).

    It is `kto` with a level of 0: the reference itself is the anchor, and no mismatched completions are needed.

    Args:
        policy_logps: log-probs of the completions under the policy, nats, [B].
        reference_logps: the same under the frozen reference.
        desirable: the labels, bool or 1 and 0, [B].
        beta: steepness around the reference, > 0; a scalar or [B].
        desirable_weight: w_d, >= 0; a scalar or [B].
        undesirable_weight: w_u, >= 0; a scalar or [B].

    Returns:
        One loss per completion, [B], between 0 and its weight; half the weight where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> losses = apo_zero_unpaired(jnp.array([-7.0, -7.0]), jnp.array([-10.0, -10.0]), jnp.array([True, False]))
        >>> [round(float(x), 5) for x in losses]  # 1 - sigmoid(0.3), sigmoid(0.3)
        [0.42556, 0.57444]

    References:
        D'Oosterlinck et al. 2024, arXiv:2408.06266.
    """
    check_knobs(apo_zero_unpaired, beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    x_B = beta * _log_ratio(policy_logps, reference_logps, desirable)
    return jnp.where(desirable, desirable_weight * sigmoid(-x_B), undesirable_weight * sigmoid(x_B))


def bco(
    policy_logps: jax.Array,
    reference_logps: jax.Array,
    desirable: jax.Array,
    delta: Knob,
    *,
    beta: Positive = 0.1,
) -> jax.Array:
    """Binary classifier of completions: rewards above a common level for desirable ones, below it for the others.

    loss = -ls(beta a - delta) if desirable, else -ls(-(beta a - delta)).

    Unlike `kto`, it goes on pushing completions that are far on the wrong side.

    Args:
        policy_logps: log-probs of the completions under the policy, nats, [B].
        reference_logps: the same under the frozen reference.
        desirable: the labels, bool or 1 and 0, [B].
        delta: the level, a running mean of the rewards beta a (`running_mean`), [] or [B]; it gets no gradient.
        beta: scale of the rewards, > 0; a scalar or [B].

    Returns:
        One loss per completion, [B]; log 2 where policy and reference agree and delta is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> losses = bco(jnp.array([-6.0, -6.0]), jnp.array([-10.0, -10.0]), jnp.array([True, False]), 0.1)
        >>> [round(float(x), 5) for x in losses]  # -log sigmoid(+-0.3)
        [0.55436, 0.85436]

    References:
        Jung et al. 2024, arXiv:2404.04656.
    """
    check_knobs(bco, beta=beta)
    x_B = beta * _log_ratio(policy_logps, reference_logps, desirable) - jax.lax.stop_gradient(delta)
    return -log_sigmoid(jnp.where(desirable, x_B, -x_B))
