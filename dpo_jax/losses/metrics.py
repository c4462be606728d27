"""Metrics of a training step beside the loss: detached, one value per pair.

Dimension key: B pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.losses.divergences import LARGEST_EXPONENT
from dpo_jax.losses.knobs import Knob
from dpo_jax.losses.pairs import averages, log_ratios, widened
from dpo_jax.types import PairLogps


def implicit_rewards(policy: PairLogps, reference: PairLogps, *, beta: Knob) -> tuple[jax.Array, jax.Array]:
    """The rewards that the policy implies: beta times the log-ratio, for chosen and rejected, detached, [B] each.

    References: arXiv:2305.18290, equation 5 (up to a function of the prompt).
    """
    a_B, b_B = jax.lax.stop_gradient(log_ratios(policy, reference))
    return beta * a_B, beta * b_B


def preference_metrics(policy: PairLogps, reference: PairLogps | None, *, beta: Knob) -> dict[str, jax.Array]:
    """Metrics of a policy from its log-probs, one value per pair, [B] each, detached.

    Rewards, their margins and accuracies (a tie counts 0), log-probs and log-ratios (nats), and whether the chosen
    response became less likely than it is under the reference. Without a reference the rewards are beta times the
    log-prob, per token where token counts are given, and there are no log-ratios.
    """
    C_B, R_B = jax.lax.stop_gradient(widened(policy.chosen, policy.rejected))
    metrics = {"logps/chosen": C_B, "logps/rejected": R_B}
    if reference is not None:
        a_B, b_B = jax.lax.stop_gradient(log_ratios(policy, reference))
        metrics |= {
            "log_ratios/chosen": a_B,
            "log_ratios/rejected": b_B,
            "log_ratios/chosen_below_reference": (a_B < 0).astype(a_B.dtype),
        }
    elif policy.chosen_tokens is None:
        a_B, b_B = C_B, R_B
    else:
        a_B, b_B = jax.lax.stop_gradient(averages(policy))
    return {
        "rewards/chosen": beta * a_B,
        "rewards/rejected": beta * b_B,
        "rewards/margins": beta * (a_B - b_B),
        "rewards/accuracies": (a_B > b_B).astype(a_B.dtype),
        **metrics,
    }


class KLEstimates(NamedTuple):
    """Three estimates of KL(policy || reference) in nats from one sample each, [B]; their means are what counts."""

    k1: jax.Array
    k2: jax.Array
    k3: jax.Array


def kl_estimates(policy_logps: jax.Array, reference_logps: jax.Array) -> KLEstimates:
    """Sequence KL from responses that the policy itself sampled, with u = log policy - log reference, detached.

    k1 = u (unbiased, may be negative);  k2 = u^2 / 2 (biased, small variance);  k3 = exp(-u) - 1 + u (unbiased, never
    negative; the exponent is bounded at 80).

    Args:
        policy_logps: log-probs of the sampled responses under the policy, nats, [B].
        reference_logps: the same under the reference.

    References: Schulman 2020, joschu.net/blog/kl-approx.html.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(k[0]), 5) for k in kl_estimates(jnp.array([-3.0]), jnp.array([-4.0]))]
        [1.0, 0.5, 0.36788]
    """
    policy_B, reference_B = jax.lax.stop_gradient(widened(policy_logps, reference_logps))
    u_B = policy_B - reference_B
    return KLEstimates(u_B, 0.5 * u_B**2, jnp.expm1(jnp.minimum(-u_B, LARGEST_EXPONENT)) + u_B)
