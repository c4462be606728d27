"""Other divergences than the reverse KL: the log-ratio u is replaced by a score g(u), and then compared as in DPO.

Dimension key: B pairs.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid

from dpo_jax.losses.knobs import Knob, Positive, Share, check_knobs
from dpo_jax.losses.pairs import log_ratios
from dpo_jax.types import PairLogps

LARGEST_EXPONENT = 80.0
"""Exponents stop here, with gradient 0 beyond: exp(88.7) is the last number that float32 holds."""

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


def alpha_reward(u_B: jax.Array, alpha: Knob) -> jax.Array:
    """(1 - exp(-alpha u)) / alpha, [B]; u itself at alpha = 0. The exponent -alpha u is bounded at 80."""
    alpha = jnp.asarray(alpha, u_B.dtype)
    safe = jnp.where(alpha == 0, 1.0, alpha)
    bent_B = -jnp.expm1(jnp.minimum(-safe * u_B, LARGEST_EXPONENT)) / safe
    return jnp.where(alpha == 0, u_B, bent_B)


def f_scores(
    policy: PairLogps, reference: PairLogps, *, divergence: Divergence = "reverse_kl", alpha: Share = 0.5
) -> PairLogps:
    """The score g of each log-ratio under a divergence: what takes the place of a log-ratio in any loss on margins.

    reverse_kl: g(u) = u.  forward_kl: 1 - exp(-u).  js: log 2 + ls(u).  alpha: (1 - exp(-alpha u)) / alpha.

    alpha = 0 is the reverse KL, alpha = 1 the forward KL. Exponents are bounded at 80, with gradient 0 beyond.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each; token counts are passed on.
        reference: the same under the frozen reference.
        divergence: its name.
        alpha: of the alpha-divergence, in [0, 1]; a scalar or [B]. No other divergence reads it.

    Returns:
        g(a) and g(b) as `PairLogps`: give them to a loss as the policy, with zeros as the reference.

    Example:
        >>> import jax.numpy as jnp
        >>> pair, zero = PairLogps(jnp.array([1.0]), jnp.array([-1.0])), PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> [round(float(x[0]), 5) for x in f_scores(pair, zero, divergence="forward_kl")[:2]]  # 1 - 1/e, 1 - e
        [0.63212, -1.71828]

    References:
        Wang et al. 2023, arXiv:2309.16240.
    """
    check_knobs(f_scores, divergence=divergence, alpha=alpha)

    def score(u_B: jax.Array) -> jax.Array:
        if divergence == "forward_kl":
            return alpha_reward(u_B, 1.0)
        if divergence == "js":
            return math.log(2.0) + log_sigmoid(u_B)
        return alpha_reward(u_B, alpha) if divergence == "alpha" else u_B

    a_B, b_B = log_ratios(policy, reference)
    return PairLogps(score(a_B), score(b_B), policy.chosen_tokens, policy.rejected_tokens)


def f_dpo(
    policy: PairLogps,
    reference: PairLogps,
    *,
    beta: Positive = 0.1,
    divergence: Divergence = "reverse_kl",
    alpha: Share = 0.5,
) -> jax.Array:
    """DPO under another divergence from the reference.

    loss = -ls(beta (g(a) - g(b))), g as in `f_scores`.

    The reverse KL is DPO. Forward KL and larger alphas hold on to everything that the reference can say.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, > 0; a scalar or [B].
        divergence: reverse_kl, forward_kl, js or alpha.
        alpha: of the alpha-divergence, in [0, 1]; a scalar or [B]. No other divergence reads it.

    Returns:
        One loss per pair, [B]; log 2 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> pair, zero = PairLogps(jnp.array([1.0]), jnp.array([-1.0])), PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(f_dpo(pair, zero, beta=1.0, divergence="forward_kl")[0]), 5)  # e - 1/e = 2.3504
        0.09106

    References:
        Wang et al. 2023, arXiv:2309.16240.
    """
    check_knobs(f_dpo, beta=beta, divergence=divergence, alpha=alpha)
    scores = f_scores(policy, reference, divergence=divergence, alpha=alpha)
    return -log_sigmoid(beta * (scores.chosen - scores.rejected))


def chi_po(policy: PairLogps, reference: PairLogps, *, beta: Positive = 0.1, clip: Positive | None = None) -> jax.Array:
    """DPO with the chi-squared divergence beside the KL, which holds the policy where the data covers it.

    loss = -ls(clipped(beta (g(a) - g(b)))), g(u) = u + exp(u), clipped to [-2 clip, 2 clip].

    The exponential makes large ratios dear. Its exponent is bounded at 80, with gradient 1 (of the u) beyond.

    Args:
        policy: log-probs of both responses under the policy, nats, [B] each.
        reference: the same under the frozen reference.
        beta: strength of the pull to the reference, > 0; a scalar or [B].
        clip: the largest reward R that is believed in, > 0; the gradient is 0 beyond 2 R. None: no clipping.

    Returns:
        One loss per pair, [B]; log 2 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> pair, zero = PairLogps(jnp.array([1.0]), jnp.array([-1.0])), PairLogps(jnp.zeros(1), jnp.zeros(1))
        >>> round(float(chi_po(pair, zero, beta=0.1)[0]), 5)  # 0.1 (2 + e - 1/e) = 0.43504
        0.4991

    References:
        Huang et al. 2024, arXiv:2407.13399.
    """
    check_knobs(chi_po, beta=beta, clip=clip)
    a_B, b_B = log_ratios(policy, reference)
    # The log-ratios apart from their exponentials, beside which they would be lost to rounding.
    ratios_a_B, ratios_b_B = (jnp.exp(jnp.minimum(u_B, LARGEST_EXPONENT)) for u_B in (a_B, b_B))
    x_B = beta * ((a_B - b_B) + (ratios_a_B - ratios_b_B))
    return -log_sigmoid(x_B if clip is None else jnp.clip(x_B, -2.0 * clip, 2.0 * clip))
