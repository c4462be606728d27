"""Losses of reward models and of scorers of images and video: a score for each response, and an order among them.

Dimension key: B prompts, K responses of one prompt.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from dpo_jax.losses.knobs import NotNegative, Positive, Real, check_knobs
from dpo_jax.losses.pairs import widened


def bradley_terry(
    chosen_reward: jax.Array, rejected_reward: jax.Array, *, margin: Real = 0.0, center: NotNegative = 0.0
) -> jax.Array:
    """Logistic loss on the difference of two rewards.

    loss = -ls(r_w - r_l - margin) + center (r_w + r_l)^2.

    A margin asks the rewards of clear preferences to lie further apart. Only differences matter to the first term, so
    rewards may drift; a small center (0.01) keeps them around 0, a large one presses them to it.

    Args:
        chosen_reward: r_w, [B].
        rejected_reward: r_l, [B].
        margin: of a pair; a scalar or [B].
        center: weight of the centring, >= 0; a scalar or [B].

    Returns:
        One loss per pair, [B].

    Example:
        >>> import jax.numpy as jnp
        >>> loss = bradley_terry(jnp.array([1.5]), jnp.array([0.5]), margin=0.7, center=0.01)
        >>> round(float(loss[0]), 5)  # -log sigmoid(0.3) + 0.01 * 2^2
        0.59436

    References:
        Ouyang et al. 2022, arXiv:2203.02155, equation 1; the margin: Touvron et al. 2023, arXiv:2307.09288, equation 2;
        the centring: Eisenstein et al. 2023, arXiv:2312.09244, equation 2.
    """
    check_knobs(bradley_terry, margin=margin, center=center)
    chosen_B, rejected_B = widened(chosen_reward, rejected_reward)
    return -log_sigmoid(chosen_B - rejected_B - margin) + center * (chosen_B + rejected_B) ** 2


def plackett_luce(rewards_BK: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Negative log-likelihood of a ranking: each response in turn is the choice among those not ranked before it.

    loss = sum_k [logsumexp(r_k, ..., r_K) - r_k].

    Two responses give the Bradley-Terry loss.

    Args:
        rewards_BK: the rewards, the best response first, [B, K].
        where: which responses there are, bool [B, K], anywhere in the row; the others neither count nor compete,
            whatever they hold.

    Returns:
        One loss per prompt, [B]; log K! where all rewards are equal, 0 where there is one response or none.

    Example:
        >>> import jax.numpy as jnp
        >>> rewards = jnp.log(jnp.array([[3.0, 2.0, 1.0]]))
        >>> round(float(plackett_luce(rewards)[0]), 5)  # -log(3/6 * 2/3 * 1/1)
        1.09861

    References:
        Plackett 1975, The analysis of permutations. Rafailov et al. 2023, arXiv:2305.18290, appendix A.3.
    """
    chex.assert_rank(rewards_BK, 2)
    rewards_BK = jnp.asarray(rewards_BK, jnp.promote_types(rewards_BK.dtype, jnp.float32))
    present_BK = jnp.ones(rewards_BK.shape, bool) if where is None else jnp.asarray(where, bool)
    chex.assert_equal_shape([rewards_BK, present_BK])
    # The lowest number rather than -inf: infinities subtracted where nobody looks would still trip jax_debug_nans.
    rewards_BK = jnp.where(present_BK, rewards_BK, jnp.finfo(rewards_BK.dtype).min)
    tails_BK = jax.lax.cumlogsumexp(rewards_BK, axis=1, reverse=True)
    return jnp.where(present_BK, tails_BK - rewards_BK, 0.0).sum(axis=1)


def preference_score(chosen_score: jax.Array, rejected_score: jax.Array, *, beta: Positive = 1.0) -> jax.Array:
    """Logistic loss on the difference of two scores, for preferences between images or videos.

    loss = -ls(beta (score_w - score_l)), which is log(1 + exp(beta (score_l - score_w))).

    A larger beta suits scores on a smaller scale: cosines of embeddings lie within 2 of each other.

    Args:
        chosen_score: score_w, [B].
        rejected_score: score_l, [B].
        beta: scale of the scores, > 0; a scalar or [B].

    Returns:
        One loss per pair, [B].

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(preference_score(jnp.array([0.32]), jnp.array([0.29]), beta=10.0)[0]), 5)  # -log sigmoid(0.3)
        0.55436

    References:
        Bradley and Terry 1952, Rank analysis of incomplete block designs.
    """
    check_knobs(preference_score, beta=beta)
    chosen_B, rejected_B = widened(chosen_score, rejected_score)
    return -log_sigmoid(beta * (chosen_B - rejected_B))
