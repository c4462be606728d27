"""The win rate of the policy's responses by verdicts or by rewards, and the effect of their order on a judge.

Dimension key: n comparisons or samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpo_jax.evaluation.intervals import bounded_interval, groups_of, mean_interval
from dpo_jax.evaluation.judges import Orders
from dpo_jax.evaluation.records import Judged, JudgedSide, OrderEffect, WinRate


def win_rate(verdicts_n: np.ndarray, prompts: Sequence[str]) -> WinRate:
    """The mean verdict, a tie being half a win, and how many were won, tied and lost.

    Answers to one prompt are not independent: the interval is that of the prompts, if there are several.

    Args:
        verdicts_n: how likely the policy's response is better, in [0, 1].
        prompts: of each comparison.

    Raises:
        ValueError: the verdicts are not as many as the prompts, or there are none.
    """
    verdicts_n = np.asarray(verdicts_n, np.float64)
    if verdicts_n.shape != (len(prompts),) or not len(prompts):
        raise ValueError(f"verdicts {verdicts_n.shape} of {len(prompts)} prompts: need one each")
    return WinRate(
        samples=len(prompts),
        win_rate=float(verdicts_n.mean()),
        win_rate_interval=bounded_interval(verdicts_n, groups_of(prompts)),
        wins=int(np.sum(verdicts_n > 0.5)),
        ties=int(np.sum(verdicts_n == 0.5)),
        losses=int(np.sum(verdicts_n < 0.5)),
    )


def compare_rewards(
    policy_n: np.ndarray, reference_n: np.ndarray, prompts: Sequence[str], *, judge: str | None = None
) -> Judged:
    """Mean rewards, their difference, and how often the policy's response has the higher one; a tie is half a win.

    Sample i of both models answers prompt i. Answers to one prompt are not independent: intervals are those of the
    prompts.

    Raises:
        ValueError: the samples are not as many as the prompts, or there are none.
    """
    policy_n, reference_n = np.asarray(policy_n, np.float64), np.asarray(reference_n, np.float64)
    if not policy_n.shape == reference_n.shape == (len(prompts),) or not len(prompts):
        raise ValueError(f"rewards {policy_n.shape} and {reference_n.shape} of {len(prompts)} prompts: need one each")
    differences_n, groups_n = policy_n - reference_n, groups_of(prompts)
    policy, reference = (
        JudgedSide(reward=float(rewards_n.mean()), interval=mean_interval(rewards_n, groups_n))
        for rewards_n in (policy_n, reference_n)
    )
    return Judged(
        judge=judge,
        policy=policy,
        reference=reference,
        reward_difference=float(differences_n.mean()),
        reward_difference_interval=mean_interval(differences_n, groups_n),
        **vars(win_rate((1 + np.sign(differences_n)) / 2, prompts)),
    )


def order_effect(orders: Orders, prompts: Sequence[str]) -> OrderEffect:
    """The effect of the order of the policy's response (a) and the reference's (b) to `prompts`.

    `flipped` is the share of comparisons whose winner was another in the other order, `first_preferred` how often the
    response shown first won, a tie being half: 0.5 for a judge without a position bias. `policy_first` and
    `policy_second` are the win rates of the policy in either order. Each has its `_interval`.
    """
    sides = (orders.a_first - 0.5) * (orders.b_first - 0.5)
    first, groups = (orders.a_first + 1 - orders.b_first) / 2, groups_of(prompts)
    policy_first, policy_second = (win_rate(verdicts_n, prompts) for verdicts_n in orders)
    return OrderEffect(
        flipped=float(np.mean(sides < 0)),
        flipped_interval=bounded_interval(sides < 0, groups),
        first_preferred=float(first.mean()),
        first_preferred_interval=bounded_interval(first, groups),
        policy_first=policy_first.win_rate,
        policy_first_interval=policy_first.win_rate_interval,
        policy_second=policy_second.win_rate,
        policy_second_interval=policy_second.win_rate_interval,
    )
