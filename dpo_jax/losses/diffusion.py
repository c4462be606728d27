"""Preference losses of diffusion models: the error of the predicted noise takes the place of the log-prob.

An error is the squared difference between the noise and its prediction, averaged over all axes but the first. s is the
logistic sigmoid, ls its logarithm.

Dimension key: B pairs or samples (of this shard).
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid

from dpo_jax.losses.knobs import Knob, Positive, check_knobs
from dpo_jax.losses.pairs import widened
from dpo_jax.losses.statistics import AxisName, mean


def diffusion_dpo(policy_errors: jax.Array, reference_errors: jax.Array, *, beta: Positive = 5000.0) -> jax.Array:
    """DPO of a diffusion model: the policy is to denoise the preferred sample better, compared with the reference.

    loss = -ls(-0.5 beta [(m_w - m_l) - (m_w_ref - m_l_ref)]).

    A small beta lets the policy move far from the reference, a large one holds it close. Both samples of a pair, and
    both models, must see the same timestep and the same noise.

    Args:
        policy_errors: errors of the policy, [B, 2]: 0 the preferred sample (m_w), 1 the rejected one (m_l).
        reference_errors: the same of the frozen reference.
        beta: strength of the pull to the reference, > 0; a scalar or [B].

    Returns:
        One loss per pair, [B]; log 2 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> policy, reference = jnp.array([[0.10, 0.24]]), jnp.array([[0.12, 0.20]])
        >>> round(float(diffusion_dpo(policy, reference, beta=10.0)[0]), 5)  # -5 (-0.14 + 0.08) = 0.3
        0.55436

    References:
        Wallace et al. 2023, arXiv:2311.12908, equation 14.
    """
    check_knobs(diffusion_dpo, beta=beta)
    chex.assert_shape([policy_errors, reference_errors], (None, 2))
    policy_w_B, policy_l_B, reference_w_B, reference_l_B = widened(*policy_errors.T, *reference_errors.T)
    return -log_sigmoid(-0.5 * beta * ((policy_w_B - policy_l_B) - (reference_w_B - reference_l_B)))


def diffusion_baseline(
    policy_errors: jax.Array, reference_errors: jax.Array, *, where: jax.Array | None = None, axis_name: AxisName = None
) -> jax.Array:
    """The level of `diffusion_kto`: by how much the policy denoises the whole batch better than the reference.

    baseline = max(0, mean(e_ref - e_pol)), without gradient.

    Args:
        policy_errors: e_pol, errors of the policy, [B].
        reference_errors: e_ref, the same of the frozen reference.
        where: which samples are real, bool [B]; the others do not count.
        axis_name: inside `shard_map`, the mesh axes over which the batch is split.

    Returns:
        The level, []; 0 where policy and reference agree.

    Example:
        >>> import jax.numpy as jnp
        >>> float(diffusion_baseline(jnp.array([0.5, 0.5]), jnp.array([1.0, 2.0])))  # (0.5 + 1.5) / 2
        1.0

    References:
        Li et al. 2024, arXiv:2404.04465.
    """
    policy_B, reference_B = jax.lax.stop_gradient(widened(policy_errors, reference_errors))
    return jnp.maximum(mean(reference_B - policy_B, where=where, axis_name=axis_name), 0.0)


def diffusion_kto(
    policy_errors: jax.Array,
    reference_errors: jax.Array,
    desirable: jax.Array,
    baseline: Knob,
    *,
    beta: Positive = 5000.0,
) -> jax.Array:
    """KTO of a diffusion model: single samples labelled good or bad, against a common level.

    loss = 1 - s(sign beta ((e_ref - e_pol) - baseline)), sign = 1 if desirable, else -1.

    The loss is bounded, so samples far on either side of the level count little, and the larger beta the sooner.

    Args:
        policy_errors: e_pol, errors of the policy, [B].
        reference_errors: e_ref, the same of the frozen reference, at the same timestep and noise.
        desirable: the labels, bool or 1 and 0, [B].
        baseline: the level (`diffusion_baseline`), []; it gets no gradient.
        beta: steepness around the level, > 0; a scalar or [B].

    Returns:
        One loss per sample, [B], in (0, 1); 0.5 where policy and reference agree and the baseline is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> policy, reference = jnp.array([0.1, 0.1]), jnp.array([0.5, 0.5])
        >>> losses = diffusion_kto(policy, reference, jnp.array([True, False]), 0.1, beta=1.0)  # 1 - sigmoid(+-0.3)
        >>> [round(float(x), 5) for x in losses]
        [0.42556, 0.57444]

    References:
        Li et al. 2024, arXiv:2404.04465.
    """
    check_knobs(diffusion_kto, beta=beta)
    policy_B, reference_B = widened(policy_errors, reference_errors)
    chex.assert_equal_shape([policy_B, desirable])
    chex.assert_rank(baseline, 0)
    x_B = beta * (reference_B - policy_B - jax.lax.stop_gradient(baseline))
    return sigmoid(jnp.where(desirable, -x_B, x_B))
