"""Losses on pairs that set the margin against the lengths of the two responses.

Notation as in `pairs`: n_w and n_l are the token counts of the chosen and the rejected response.

Dimension key: B pairs.
"""

from __future__ import annotations

import jax
from jax.nn import log_sigmoid

from dpo_jax.losses.knobs import Positive, Real, check_knobs
from dpo_jax.losses.pairs import log_ratios, margin, token_counts
from dpo_jax.types import PairLogps


def length_normalized_dpo(policy: PairLogps, reference: PairLogps, *, beta: Positive = 5.0) -> jax.Array:
    """DPO on log-ratios per token.

    loss = -ls(beta (a / n_w - b / n_l)).

    beta counts per nat per token: values that suit DPO, multiplied by a typical length, suit here.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each, with token counts.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, > 0; a scalar or [B].

    Returns:
        One loss per pair, [B]; log 2 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> two, five = jnp.array([2.0]), jnp.array([5.0])
        >>> pair = PairLogps(jnp.array([1.0]), jnp.array([-0.5]), two, five)
        >>> zero = PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(length_normalized_dpo(pair, zero, beta=0.5)[0]), 5)  # 0.5 + 0.1: -log sigmoid(0.3)
        0.55436

    References:
        Lambert et al. 2024 (Tulu 3), arXiv:2411.15124.
    """
    check_knobs(length_normalized_dpo, beta=beta)
    a_B, b_B = log_ratios(policy, reference)
    n_w_B, n_l_B = token_counts(policy)
    return -log_sigmoid(beta * (a_B / n_w_B - b_B / n_l_B))


def r_dpo(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, penalty: Real = 0.05) -> jax.Array:
    """DPO with a margin for length: a longer chosen response is pushed less, a shorter one more.

    loss = -ls(beta h + penalty (n_w - n_l)).

    penalty = 0 is DPO.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each, with token counts.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, > 0; a scalar or [B].
        penalty: logits per token of length difference; a scalar or [B].

    Returns:
        One loss per pair, [B]; -ls(penalty (n_w - n_l)) where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> zero = PairLogps(jnp.zeros(1), jnp.zeros(1), jnp.array([7.0]), jnp.array([1.0]))
        >>> round(float(r_dpo(zero, zero, penalty=0.05)[0]), 5)  # -log sigmoid(0.3)
        0.55436

    References:
        Park et al. 2024, arXiv:2403.19159.
    """
    check_knobs(r_dpo, beta=beta, penalty=penalty)
    n_w_B, n_l_B = token_counts(policy)
    return -log_sigmoid(beta * margin(policy, reference) + penalty * (n_w_B - n_l_B))
