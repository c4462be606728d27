"""What is watched beside the loss: detached, one value per pair.

Dimension key: B pairs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dpo_jax.types import PairLogps


def implicit_rewards(
    policy: PairLogps, reference: PairLogps, *, beta: float | jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The rewards that the policy implies: beta times the log-ratio, for chosen and rejected, detached, [B] each.

    References: arXiv:2305.18290, equation 5 (up to a function of the prompt).
    """
    chosen_B = jax.lax.stop_gradient(policy.chosen - reference.chosen)
    rejected_B = jax.lax.stop_gradient(policy.rejected - reference.rejected)
    return beta * chosen_B, beta * rejected_B


def preference_metrics(policy: PairLogps, reference: PairLogps, *, beta: float | jax.Array) -> dict[str, jax.Array]:
    """Rewards, margins, accuracies (a tie counts 0), log-probs and log-ratios (nats), one value per pair, [B] each."""
    chosen_B, rejected_B = implicit_rewards(policy, reference, beta=beta)
    detached = jax.lax.stop_gradient(policy)
    return {
        "rewards/chosen": chosen_B,
        "rewards/rejected": rejected_B,
        "rewards/margins": chosen_B - rejected_B,
        "rewards/accuracies": (chosen_B > rejected_B).astype(jnp.float32),
        "logps/chosen": detached.chosen,
        "logps/rejected": detached.rejected,
        "log_ratios/chosen": detached.chosen - reference.chosen,
        "log_ratios/rejected": detached.rejected - reference.rejected,
    }
