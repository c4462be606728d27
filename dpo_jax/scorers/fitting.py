"""Weights of quality metrics from preferences: which of them, and how much of each, told what was preferred.

Dimension key: B pairs, M metrics.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

_STEPS = 30  # Newton's method doubles the digits in each; far fewer are needed


def fit_weights(
    metrics_chosen_BM: jax.Array, metrics_rejected_BM: jax.Array, *, ridge: float | jax.Array = 1.0
) -> jax.Array:
    """The weights under which preferences are likeliest, float32 [M], by logistic regression on differences.

    min_w sum_B log(1 + exp(-d u)) + ridge / 2 u^2, d = (chosen - rejected) / scale, u = w scale.

    `scale` is the root mean square of each difference, so that `ridge` treats metrics of any unit alike. A metric that
    never differs gets weight 0. The weighted sum is in nats: the logistic function of a difference of two of them is
    the probability of the preference (Bradley and Terry).

    Args:
        metrics_chosen_BM: of what was preferred, see `quality.measured`.
        metrics_rejected_BM: of what was not.
        ridge: pull to 0, > 0; small trusts few pairs, large wants many. Without it clear preferences have no maximum.

    Example:
        >>> import jax.numpy as jnp
        >>> chosen, rejected = jnp.array([[3.0, 5.0], [1.0, 2.0]]), jnp.array([[1.0, 5.0], [2.0, 2.0]])
        >>> [round(float(w), 4) for w in fit_weights(chosen, rejected)]  # the first is larger twice as far
        [0.1336, 0.0]
    """
    chex.assert_equal_shape([metrics_chosen_BM, metrics_rejected_BM])
    chex.assert_rank(metrics_chosen_BM, 2)
    difference_BM = jnp.asarray(metrics_chosen_BM, jnp.float32) - jnp.asarray(metrics_rejected_BM, jnp.float32)
    scale_M = jnp.sqrt(jnp.square(difference_BM).mean(axis=0))
    scale_M = jnp.where(scale_M > 0, scale_M, 1.0)
    difference_BM /= scale_M[None]

    def newton(_: int, weights_M: jax.Array) -> jax.Array:
        wrong_B = jax.nn.sigmoid(-difference_BM @ weights_M)
        slope_M = ridge * weights_M - wrong_B @ difference_BM
        bend_MM = (difference_BM.T * (wrong_B * (1.0 - wrong_B))[None]) @ difference_BM
        bend_MM += ridge * jnp.eye(len(weights_M))
        return weights_M - jnp.linalg.solve(bend_MM, slope_M)

    return jax.lax.fori_loop(0, _STEPS, newton, jnp.zeros_like(scale_M)) / scale_M
