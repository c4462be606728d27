"""Rewards of pairs and of samples, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dpo_jax.evaluation.intervals import share_interval
from dpo_jax.evaluation.winrate import compare_rewards


def test_samples_by_hand():
    found = compare_rewards(np.array([1.0, 2.0, 0.0, 5.0]), np.array([0.0, 2.0, 1.0, 1.0]), ["a", "b", "c", "d"])
    assert found.samples == 4 and found.policy.reward == 2.0 and found.reference.reward == 1.0
    assert found.reward_difference == 1.0 and found.win_rate == 0.625  # two wins, a tie, a loss
    low, high = found.reward_difference_interval
    # 2.16025 / 2 * 3.18245, Student of 3 degrees of freedom
    assert low == pytest.approx(1 - 3.43743, abs=1e-5) and high > 1 + 3.43743  # widened to where it is skew
    assert found.win_rate_interval[0] < 0.625 < found.win_rate_interval[1] <= 1.0


def test_win_rates_swap_with_the_models():
    policy, reference = np.random.default_rng(0).normal(size=(2, 30))
    prompts = [f"{i}" for i in range(30)]
    found, turned = compare_rewards(policy, reference, prompts), compare_rewards(reference, policy, prompts)
    assert found.win_rate == pytest.approx(1 - turned.win_rate)
    assert found.policy == turned.reference


def test_where_all_are_won_each_prompt_counts_once():
    found = compare_rewards(np.ones(8), np.zeros(8), ["a", "b"] * 4)
    assert found.win_rate == 1.0 and found.win_rate_interval == share_interval(2, 2)
    assert compare_rewards(np.zeros(8), np.ones(8), ["a", "b"] * 4).win_rate_interval == share_interval(0, 2)


def test_answers_to_one_prompt_are_not_independent():
    policy, reference = (np.repeat(side, 9) for side in np.random.default_rng(3).normal(size=(2, 20)))
    together = compare_rewards(policy, reference, np.repeat(np.arange(20), 9).astype(str).tolist())
    alone = compare_rewards(policy, reference, [f"{i}" for i in range(180)])
    for name in ("win_rate_interval", "reward_difference_interval"):
        widths = [getattr(found, name)[1] - getattr(found, name)[0] for found in (together, alone)]
        assert 2.3 < widths[0] / widths[1] < 3.8  # sqrt(9)


def test_samples_and_prompts_must_match():
    for count, prompts in ((2, ["a"]), (0, [])):
        with pytest.raises(ValueError, match="need one each"):
            compare_rewards(np.zeros(count), np.zeros(count), prompts)
