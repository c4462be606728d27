"""Losses on pairs that look at each response by itself: not only the margin counts, also where both log-ratios stand.

Notation as in `pairs`: a and b are the log-ratios of the chosen and the rejected response, s is the logistic sigmoid.

Dimension key: B pairs.
"""

from __future__ import annotations

import jax
from jax.nn import log_sigmoid, sigmoid

from dpo_jax.losses.knobs import Positive, Real, check_knobs
from dpo_jax.losses.pairs import log_ratios
from dpo_jax.types import PairLogps


def nca_pair(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1) -> jax.Array:
    """Noise contrastive alignment of a pair: the chosen reward is lifted, and both are held down.

    loss = -ls(beta a) - 0.5 ls(-beta a) - 0.5 ls(-beta b).

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: scale of the rewards, > 0; a scalar or [B].

    Returns:
        One loss per pair, [B]; 2 log 2 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> zero = PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(nca_pair(zero, zero)[0]), 5)
        1.38629

    References:
        Chen et al. 2024, arXiv:2402.05369.
    """
    check_knobs(nca_pair, beta=beta)
    a_B, b_B = log_ratios(policy, reference)
    return -log_sigmoid(beta * a_B) - 0.5 * log_sigmoid(-beta * a_B) - 0.5 * log_sigmoid(-beta * b_B)


def bco_pair(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, delta: Real = 0.0) -> jax.Array:
    """Binary classifier on each response: rewards above a common level for chosen, below it for rejected.

    loss = -ls(beta a - delta) - ls(-(beta b - delta)).

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: scale of the rewards, > 0; a scalar or [B].
        delta: the level, a running mean of the rewards (`running_mean`); it gets no gradient.

    Returns:
        One loss per pair, [B]; 2 log 2 where policy and reference agree and delta is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> pair, zero = PairLogps(jnp.array([4.0]), jnp.array([-2.0])), PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(bco_pair(pair, zero, beta=0.1, delta=0.1)[0]), 5)  # -2 log sigmoid(0.3)
        1.10871

    References:
        Jung et al. 2024, arXiv:2404.04656.
    """
    check_knobs(bco_pair, beta=beta, delta=delta)
    a_B, b_B = log_ratios(policy, reference)
    delta = jax.lax.stop_gradient(delta)
    return -log_sigmoid(beta * a_B - delta) - log_sigmoid(delta - beta * b_B)


def sppo_hard(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.001) -> jax.Array:
    """Self-play preference optimisation with certain labels: each log-ratio has a target of its own.

    loss = (a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2.

    The authors' own code is half of this. The smaller beta, the further apart the targets.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: the targets are +-1 / (2 beta) nats, > 0; a scalar or [B].

    Returns:
        One loss per pair, [B]; 1 / (2 beta^2) where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> pair, zero = PairLogps(jnp.array([3.0]), jnp.array([-4.0])), PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> float(sppo_hard(pair, zero, beta=0.5)[0])  # (3 - 1)^2 + (-4 + 1)^2
        13.0

    References:
        Wu et al. 2024, arXiv:2405.00675.
    """
    check_knobs(sppo_hard, beta=beta)
    a_B, b_B = log_ratios(policy, reference)
    target = 1.0 / (2.0 * beta)
    return (a_B - target) ** 2 + (b_B + target) ** 2


def apo_zero(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1) -> jax.Array:
    """Anchored preference optimisation: chosen up, rejected down. For chosen answers better than the policy's own.

    loss = 1 - s(beta a) + s(beta b).

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: scale of the rewards, > 0; a scalar or [B].

    Returns:
        One loss per pair, [B], in (0, 2); 1 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> pair, zero = PairLogps(jnp.array([3.0]), jnp.array([-3.0])), PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(apo_zero(pair, zero, beta=0.1)[0]), 5)  # 2 (1 - sigmoid(0.3))
        0.85111

    References:
        D'Oosterlinck et al. 2024, arXiv:2408.06266.
    """
    check_knobs(apo_zero, beta=beta)
    a_B, b_B = log_ratios(policy, reference)
    return sigmoid(-beta * a_B) + sigmoid(beta * b_B)


def apo_down(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1) -> jax.Array:
    """Anchored preference optimisation: chosen down, rejected further down. For answers worse than the policy's own.

    loss = s(beta a) + 1 - s(beta h), with h = a - b.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: scale of the rewards, > 0; a scalar or [B].

    Returns:
        One loss per pair, [B], in (0, 2); 1 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> pair, zero = PairLogps(jnp.array([-3.0]), jnp.array([-6.0])), PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(apo_down(pair, zero, beta=0.1)[0]), 5)  # sigmoid(-0.3) + 1 - sigmoid(0.3)
        0.85111

    References:
        D'Oosterlinck et al. 2024, arXiv:2408.06266.
    """
    check_knobs(apo_down, beta=beta)
    a_B, b_B = log_ratios(policy, reference)
    return sigmoid(beta * a_B) + sigmoid(-beta * (a_B - b_B))


def cal_dpo(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.001) -> jax.Array:
    """DPO calibrated: a logistic loss on the margin, and a target for each log-ratio.

    loss = -ls(h) + 0.5 [(a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2], with h = a - b.

    There is no beta in the first term.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: the targets are +-1 / (2 beta) nats, > 0; a scalar or [B].

    Returns:
        One loss per pair, [B]; log 2 + 1 / (4 beta^2) where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> zero = PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(cal_dpo(zero, zero, beta=0.5)[0]), 5)  # log 2 + 1
        1.69315

    References:
        Xiao et al. 2024, arXiv:2412.14516.
    """
    check_knobs(cal_dpo, beta=beta)
    a_B, b_B = log_ratios(policy, reference)
    target = 1.0 / (2.0 * beta)
    return -log_sigmoid(a_B - b_B) + 0.5 * ((a_B - target) ** 2 + (b_B + target) ** 2)
