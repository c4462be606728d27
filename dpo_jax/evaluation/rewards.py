"""Metrics of rewards: on preference pairs, and on the responses of two models to the same prompts.

Dimension key: B pairs, P slot in the pair (0 chosen, 1 rejected), n samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpo_jax.evaluation.intervals import bootstrap_interval, mean_interval, share_interval
from dpo_jax.evaluation.records import Heldout, Judged, JudgedSide
from dpo_jax.evaluation.winrate import groups_of, win_rate


def reward_metrics(rewards_BP: np.ndarray) -> Heldout:
    """Accuracy, margin and mean rewards of a reward model on pairs; a tie is wrong.

    Raises:
        ValueError: there are no pairs.
    """
    rewards_BP = np.asarray(rewards_BP, np.float64)
    if rewards_BP.ndim != 2 or rewards_BP.shape[1] != 2 or not len(rewards_BP):
        raise ValueError(f"rewards of pairs are [B, 2], not {list(rewards_BP.shape)}")
    margins_B = rewards_BP[:, 0] - rewards_BP[:, 1]
    right = int(np.sum(margins_B > 0))
    chosen, rejected = rewards_BP.mean(axis=0).tolist()
    return Heldout(
        pairs=len(margins_B),
        accuracy=right / len(margins_B),
        accuracy_interval=share_interval(right, len(margins_B)),
        margin=float(margins_B.mean()),
        margin_interval=mean_interval(margins_B),
        chosen=chosen,
        rejected=rejected,
    )


def compare_rewards(
    policy_n: np.ndarray, reference_n: np.ndarray, prompts: Sequence[str], *, judge: str | None = None
) -> Judged:
    """Mean rewards, their difference, and how often the policy's response has the higher one; a tie is half a win.

    Sample i of both models answers prompt i. Answers to one prompt are not independent: intervals are bootstrapped over
    the prompts.

    Raises:
        ValueError: the samples are not as many as the prompts, or there are none.
    """
    policy_n, reference_n = np.asarray(policy_n, np.float64), np.asarray(reference_n, np.float64)
    if not policy_n.shape == reference_n.shape == (len(prompts),) or not len(prompts):
        raise ValueError(f"rewards {policy_n.shape} and {reference_n.shape} of {len(prompts)} prompts: need one each")
    differences_n, groups_n = policy_n - reference_n, groups_of(prompts)
    policy, reference = (
        JudgedSide(reward=float(rewards_n.mean()), interval=bootstrap_interval(rewards_n, groups_n))
        for rewards_n in (policy_n, reference_n)
    )
    return Judged(
        judge=judge,
        policy=policy,
        reference=reference,
        reward_difference=float(differences_n.mean()),
        reward_difference_interval=bootstrap_interval(differences_n, groups_n),
        **vars(win_rate((1 + np.sign(differences_n)) / 2, prompts)),
    )
