"""Losses and weights of more than one number per response: KL summed over tokens (TDPO), sums of token log-probs.

Notation as in `pairs`: h is the margin, ls log sigmoid.

Dimension key: B pairs, P slot in the pair (0 chosen, 1 rejected), T tokens.
"""

from __future__ import annotations

from typing import Annotated

import chex
import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from dpo_jax.losses.divergences import LARGEST_EXPONENT
from dpo_jax.losses.knobs import Interval, Knob, NotNegative, Positive, Share, check_knobs
from dpo_jax.losses.pairs import log_ratios, widened
from dpo_jax.types import PairLogps


def tdpo1(
    policy: PairLogps,
    reference: PairLogps,
    chosen_kl: jax.Array,
    rejected_kl: jax.Array,
    *,
    beta: Positive = 0.1,
) -> jax.Array:
    """DPO with the difference of the KL along the two responses taken off the margin: token-level DPO.

    loss = -ls(beta (h - (K_l - K_w))).

    It needs the reference's whole distribution at every token, so the reference must run beside the policy.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        chosen_kl: K_w, KL(reference || policy) summed over the tokens of the chosen response, nats, [B].
        rejected_kl: K_l, the same of the rejected response.
        beta: strength of the pull to the reference, > 0; a scalar or [B].

    Returns:
        One loss per pair, [B]; log 2 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> pair, zero = PairLogps(jnp.array([2.0]), jnp.array([-2.0])), PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(tdpo1(pair, zero, jnp.array([0.5]), jnp.array([1.5]))[0]), 5)  # -log sigmoid(0.1 (4 - 1))
        0.55436

    References:
        Zeng et al. 2024, arXiv:2404.11999.
    """
    check_knobs(tdpo1, beta=beta)
    a_B, b_B, K_w_B, K_l_B = _with_kl(policy, reference, chosen_kl, rejected_kl)
    return -log_sigmoid(beta * (a_B - b_B - (K_l_B - K_w_B)))


def tdpo2(
    policy: PairLogps,
    reference: PairLogps,
    chosen_kl: jax.Array,
    rejected_kl: jax.Array,
    *,
    beta: Positive = 0.1,
    alpha: NotNegative = 0.5,
) -> jax.Array:
    """As `tdpo1`, with a weight on the KL, and no gradient through that of the chosen response.

    loss = -ls(beta (h - alpha (K_l - sg K_w))), sg = without gradient.

    alpha = 0 is DPO; a larger one holds the policy closer to the reference along the rejected response.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        chosen_kl: K_w, KL(reference || policy) summed over the tokens of the chosen response, nats, [B].
        rejected_kl: K_l, the same of the rejected response.
        beta: strength of the pull to the reference, > 0; a scalar or [B].
        alpha: weight of the KL, >= 0; a scalar or [B].

    Returns:
        One loss per pair, [B]; log 2 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> pair, zero = PairLogps(jnp.array([2.0]), jnp.array([-2.0])), PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(tdpo2(pair, zero, jnp.array([0.5]), jnp.array([2.5]))[0]), 5)  # -log sigmoid(0.1 (4 - 0.5 * 2))
        0.55436

    References:
        Zeng et al. 2024, arXiv:2404.11999.
    """
    check_knobs(tdpo2, beta=beta, alpha=alpha)
    a_B, b_B, K_w_B, K_l_B = _with_kl(policy, reference, chosen_kl, rejected_kl)
    return -log_sigmoid(beta * (a_B - b_B - alpha * (K_l_B - jax.lax.stop_gradient(K_w_B))))


def _with_kl(
    policy: PairLogps, reference: PairLogps, chosen_kl: jax.Array, rejected_kl: jax.Array
) -> tuple[jax.Array, ...]:
    chex.assert_equal_shape([policy.chosen, chosen_kl, rejected_kl])
    return (*log_ratios(policy, reference), *widened(chosen_kl, rejected_kl))


def wpo_weights(
    token_logps: jax.Array,
    log_sum_sq_probs: jax.Array,
    mask: jax.Array,
    *,
    clamp: Annotated[Knob, Interval(0.0, without_low=True)] = 1.0,
) -> jax.Array:
    """Likeness of a response to the policy's own, to weigh pairs that another model wrote.

    w = min(clamp, exp(mean_t[token_logps - log_sum_sq_probs])), without gradient.

    A pair's weight is the product of those of its two responses, at most 1; it multiplies any loss on pairs. With
    clamp = 1 each response is held to 1, and so is the product. With clamp = jnp.inf none is: a likely response then
    makes up for an unlikely one, and the product is still to be clamped.

    Args:
        token_logps: log-prob of each token under the policy, nats, [..., T].
        log_sum_sq_probs: log sum_v p_v^2 of the policy's distribution at each token, nats, [..., T].
        mask: which tokens belong to the response, bool or 1 and 0, [..., T].
        clamp: largest weight of a response, > 0.

    Returns:
        One weight per response, [...]; 1 for a response without tokens, if the clamp allows.

    Example:
        >>> import jax.numpy as jnp
        >>> probs = jnp.array([[0.2, 0.4, 0.9]])
        >>> weight = wpo_weights(jnp.log(probs), jnp.log(jnp.full((1, 3), 0.5)), jnp.array([[True, True, False]]))
        >>> round(float(weight[0]), 5)  # sqrt(0.2 / 0.5 * 0.4 / 0.5)
        0.56569

    References:
        Zhou et al. 2024, arXiv:2406.11827, equation 2.
    """
    check_knobs(wpo_weights, clamp=clamp)
    chex.assert_equal_shape([token_logps, log_sum_sq_probs, mask])
    dtype = jnp.promote_types(jnp.result_type(token_logps, log_sum_sq_probs), jnp.float32)
    typical = jnp.where(mask, jnp.asarray(token_logps, dtype) - jnp.asarray(log_sum_sq_probs, dtype), 0.0)
    averages = typical.sum(axis=-1) / jnp.maximum(jnp.count_nonzero(mask, axis=-1), 1)
    return jax.lax.stop_gradient(jnp.minimum(jnp.exp(jnp.minimum(averages, LARGEST_EXPONENT)), clamp))


def ld_reduce(token_logps_BPT: jax.Array, mask_BPT: jax.Array, *, alpha: Share) -> jax.Array:
    """Response log-probs in which the tokens beyond the length of the shorter response count less: for LD-DPO.

    logps = sum of the first m tokens + alpha * sum of the rest, with m the smaller token count of the pair.

    alpha = 1 is the plain sum, so DPO stays DPO; alpha = 0 leaves the rest out. Reduce policy and reference alike.

    Args:
        token_logps_BPT: log-prob of each token, nats, [B, P, T].
        mask_BPT: which tokens belong to the response, bool or 1 and 0, [B, P, T]; they may start anywhere.
        alpha: weight of the rest, in [0, 1]; a scalar or [B].

    Returns:
        One log-prob per response, nats, [B, P].

    Example:
        >>> import jax.numpy as jnp
        >>> logps, mask = jnp.full((1, 2, 4), -1.0), jnp.array([[[0, 1, 1, 0], [1, 1, 1, 1]]])
        >>> [float(x) for x in ld_reduce(logps, mask, alpha=0.5)[0]]  # -2, -2 + 0.5 * -2
        [-2.0, -3.0]

    References:
        Liu et al. 2024, arXiv:2409.06411.
    """
    check_knobs(ld_reduce, alpha=alpha)
    chex.assert_rank(token_logps_BPT, 3)
    chex.assert_equal_shape([token_logps_BPT, mask_BPT])
    dtype = jnp.promote_types(token_logps_BPT.dtype, jnp.float32)
    present_BPT = jnp.asarray(mask_BPT, bool)
    place_BPT = jnp.cumsum(present_BPT, axis=2)
    shorter_B11 = present_BPT.sum(axis=2, keepdims=True).min(axis=1, keepdims=True)
    logps_BPT = jnp.where(present_BPT, jnp.asarray(token_logps_BPT, dtype), 0.0)
    heads_BPT = jnp.where(place_BPT <= shorter_B11, logps_BPT, 0.0)
    return weigh_tails(logps_BPT.sum(axis=2), heads_BPT.sum(axis=2), jnp.asarray(alpha, dtype).reshape(-1, 1))


def weigh_tails(logps: jax.Array, heads: jax.Array, alpha: Knob) -> jax.Array:
    """Log-probs of responses whose head, the first tokens, counts whole and whose tail counts by alpha: for LD-DPO."""
    return heads + alpha * (logps - heads)
