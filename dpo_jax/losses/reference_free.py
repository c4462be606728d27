"""Losses on pairs that need no reference: the policy's own log-probs are the reward, or (`sft`) the likelihood itself.

Notation as in `pairs`; p = C / n_w and q = R / n_l are the log-probs per token.

Dimension key: B pairs.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from dpo_jax.losses.divergences import alpha_reward
from dpo_jax.losses.knobs import NotNegative, Positive, Real, Smoothing, check_knobs
from dpo_jax.losses.pairs import averages, smoothed, token_counts, widened
from dpo_jax.losses.statistics import AxisName, mean
from dpo_jax.types import PairLogps

LEAST_SURPRISE = 1e-6
"""Nats per token that even a certain response is taken to cost where odds count: its own would be infinite."""


def simpo(
    policy: PairLogps, *, beta: Positive = 2.5, gamma: Real = 1.375, label_smoothing: Smoothing = 0.0
) -> jax.Array:
    """Logistic loss on the log-probs per token, with a target margin: simple preference optimisation.

    x = beta (C / n_w - R / n_l) - gamma;  loss = -(1 - e) ls(x) - e ls(-x), with e = label_smoothing.

    gamma = 0 asks only for the right order. A larger beta lets pairs that are already far apart count less. e = 0
    trusts every label. The authors' files state gamma / beta, here 0.55.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each, with token counts.
        beta: scale of the average log-probs, > 0; a scalar or [B].
        gamma: target of beta (p - q); a scalar or [B].
        label_smoothing: probability that a label is wrong, in [0, 0.5]; or [B], each 1 - its soft label, in [0, 1].

    Returns:
        One loss per pair, [B].

    Raises:
        ValueError: the pairs carry no token counts.

    Example:
        >>> import jax.numpy as jnp
        >>> pair = PairLogps(jnp.array([-2.0]), jnp.array([-8.0]), jnp.array([2.0]), jnp.array([4.0]))
        >>> round(float(simpo(pair, beta=2.0, gamma=1.7)[0]), 5)  # 2 (-1 + 2) - 1.7 = 0.3: -log sigmoid(0.3)
        0.55436

    References:
        Meng et al. 2024, arXiv:2405.14734, equation 6.
    """
    check_knobs(simpo, beta=beta, gamma=gamma, label_smoothing=label_smoothing)
    p_B, q_B = averages(policy)
    return smoothed(beta * (p_B - q_B) - gamma, label_smoothing)


def cpo(policy: PairLogps, *, beta: Positive = 0.1, label_smoothing: Smoothing = 0.0) -> jax.Array:
    """DPO against a uniform reference: contrastive preference optimisation, without its likelihood term.

    x = beta (C - R);  loss = -(1 - e) ls(x) - e ls(-x), with e = label_smoothing.

    Nothing holds the policy in place but the likelihood term (`sft`), which is added with a weight of its own. A small
    beta goes on pushing pairs far apart. e = 0 trusts every label.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        beta: scale of the log-probs, > 0; a scalar or [B].
        label_smoothing: probability that a label is wrong, in [0, 0.5]; or [B], each 1 - its soft label, in [0, 1].

    Returns:
        One loss per pair, [B].

    Example:
        >>> import jax.numpy as jnp
        >>> pair = PairLogps(jnp.array([-10.0]), jnp.array([-13.0]))
        >>> round(float(cpo(pair, beta=0.1)[0]), 5)  # -log sigmoid(0.3)
        0.55436

    References:
        Xu et al. 2024, arXiv:2401.08417, equation 3.
    """
    check_knobs(cpo, beta=beta, label_smoothing=label_smoothing)
    C_B, R_B = widened(policy.chosen, policy.rejected)
    return smoothed(beta * (C_B - R_B), label_smoothing)


def log1mexp(x_B: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x < 0, [B]: of the two ways to write it, each where it loses no digits."""
    near_zero = x_B > -math.log(2.0)
    # Both are evaluated everywhere: a harmless argument keeps infinities out of the gradient of the one not taken.
    small_B, large_B = jnp.where(near_zero, x_B, -1.0), jnp.where(near_zero, -1.0, x_B)
    return jnp.where(near_zero, jnp.log(-jnp.expm1(small_B)), jnp.log1p(-jnp.exp(large_B)))


def _log_odds(average_B: jax.Array) -> jax.Array:
    average_B = jnp.minimum(average_B, -LEAST_SURPRISE)
    return average_B - log1mexp(average_B)


def orpo(policy: PairLogps) -> jax.Array:
    """Logistic loss on the ratio of the odds of both responses, without its likelihood term.

    lo = (p - q) - (log1mexp(p) - log1mexp(q));  loss = -ls(lo), with log1mexp(x) = log(1 - exp(x)).

    The objective adds this, times a weight (0.1 in the paper), to the likelihood term (`sft`). Averages are taken as at
    most -1e-6 nats, with gradient 0 beyond, so that a response that is certain has finite odds.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each, with token counts.

    Returns:
        One loss per pair, [B].

    Raises:
        ValueError: the pairs carry no token counts.

    Example:
        >>> import jax.numpy as jnp
        >>> two = jnp.array([2.0])
        >>> pair = PairLogps(2 * jnp.log(jnp.array([0.5])), 2 * jnp.log(jnp.array([0.25])), two, two)
        >>> round(float(orpo(pair)[0]), 5)  # odds 1 and 1/3: -log(3 / (3 + 1))
        0.28768

    References:
        Hong et al. 2024, arXiv:2403.07691, equation 7.
    """
    p_B, q_B = averages(policy)
    return -log_sigmoid(_log_odds(p_B) - _log_odds(q_B))


def slic_hf(policy: PairLogps, *, delta: NotNegative = 1.0) -> jax.Array:
    """Hinge loss on the log-probs: sequence likelihood calibration, without its likelihood term.

    loss = max(0, delta - C + R).

    delta = 0 asks only for the right order. At C - R = delta the slope is taken as 0.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        delta: nats by which the chosen response is to be more likely, >= 0; a scalar or [B].

    Returns:
        One loss per pair, [B].

    Example:
        >>> import jax.numpy as jnp
        >>> pair = PairLogps(jnp.array([-5.0, -5.0]), jnp.array([-5.5, -7.0]))
        >>> [float(x) for x in slic_hf(pair)]
        [0.5, 0.0]

    References:
        Zhao et al. 2023, arXiv:2305.10425.
    """
    check_knobs(slic_hf, delta=delta)
    C_B, R_B = widened(policy.chosen, policy.rejected)
    return jax.nn.relu(delta - C_B + R_B)


def alpha_po(policy: PairLogps, *, beta: Positive = 2.5, gamma: Real = 1.375, alpha: Real = 0.25) -> jax.Array:
    """SimPO with a bent reward (AlphaPO; not `alpha_dpo`).

    r(u) = (1 - exp(-alpha u)) / alpha;  loss = -ls(beta (r(p) - r(q)) - gamma).

    alpha = 0 is SimPO. Above 0, changes of unlikely responses count more, below 0 those of likely ones. The exponent
    -alpha u is bounded at 80, with gradient 0 beyond.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each, with token counts.
        beta: scale of the rewards, > 0; a scalar or [B].
        gamma: target of beta (r(p) - r(q)); a scalar or [B].
        alpha: how much the reward is bent; a scalar or [B].

    Returns:
        One loss per pair, [B].

    Raises:
        ValueError: the pairs carry no token counts.

    Example:
        >>> import jax.numpy as jnp
        >>> one = jnp.ones(1)
        >>> pair = PairLogps(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.4])), one, one)
        >>> round(float(alpha_po(pair, beta=1.0, gamma=0.2, alpha=1.0)[0]), 5)  # 1 / 0.4 - 1 / 0.5 - 0.2 = 0.3
        0.55436

    References:
        Gupta et al. 2025, arXiv:2501.03884. TRL quotes the paper's table 3 with alpha 0.25, beta 2.5 and gamma 0.1 for
        Mistral; the default gamma here is SimPO's.
    """
    check_knobs(alpha_po, beta=beta, gamma=gamma, alpha=alpha)
    p_B, q_B = averages(policy)
    return -log_sigmoid(beta * (alpha_reward(p_B, alpha) - alpha_reward(q_B, alpha)) - gamma)


Reduction = Literal["token", "sequence", "sum"]


def sft(
    policy: PairLogps,
    *,
    nll_reduction: Reduction = "token",
    mean_tokens: jax.Array | None = None,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Negative log-likelihood of the chosen responses, in the reduction that is asked for.

    token: -C / mean(n_w), so that the mean over pairs is a mean over all tokens.  sequence: -C / n_w.  sum: -C.

    token lets long responses count more, sequence lets all responses count alike, sum makes the term grow with length.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each, with token counts unless the sum is taken.
        nll_reduction: token, sequence or sum.
        mean_tokens: for token, the mean of n_w over all pairs of the batch, if these are only a part of it (one
            micro-batch of several); it is taken over these pairs otherwise.
        where: which pairs are real, bool [B]; the others do not count in the mean of n_w.
        axis_name: inside `shard_map`, the mesh axes over which the batch is split.

    Returns:
        One loss per pair, [B], nats.

    Example:
        >>> import jax.numpy as jnp
        >>> tokens = jnp.array([1.0, 3.0])
        >>> pair = PairLogps(jnp.array([-2.0, -9.0]), jnp.zeros(2), tokens, tokens)
        >>> [float(sft(pair, nll_reduction=way).mean()) for way in ("token", "sequence", "sum")]  # 11/4, (2+3)/2, 11/2
        [2.75, 2.5, 5.5]
    """
    check_knobs(sft, nll_reduction=nll_reduction)
    chosen_B, _ = widened(policy.chosen, policy.rejected)
    if nll_reduction == "sum":
        return -chosen_B
    n_w_B, _ = token_counts(policy)
    if nll_reduction == "sequence":
        return -chosen_B / n_w_B
    if mean_tokens is None:
        mean_tokens = jnp.maximum(mean(n_w_B, where=where, axis_name=axis_name), 1)  # without a real pair it is 0
    return -chosen_B / mean_tokens
