"""Win rates, the effect of the order, and the length-controlled win rate where the truth is planted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpo_jax.evaluation.intervals import bounded_interval, share_interval
from dpo_jax.evaluation.judges import Orders
from dpo_jax.evaluation.length_controlled import length_controlled
from dpo_jax.evaluation.winrate import order_effect, win_rate


def test_win_rate_by_hand():
    found = win_rate(np.array([1.0, 0.5, 0.0, 0.75]), ["a", "b", "c", "d"])
    assert (found.win_rate, found.wins, found.ties, found.losses) == (0.5625, 2, 1, 1)
    assert found.samples == 4 and 0 <= found.win_rate_interval[0] < 0.5625 < found.win_rate_interval[1] <= 1


def test_where_all_are_won_each_prompt_counts_once():
    assert win_rate(np.ones(6), ["a", "b", "c"] * 2).win_rate_interval == share_interval(3, 3)
    assert win_rate(np.zeros(6), ["a", "b", "c"] * 2).win_rate_interval == share_interval(0, 3)
    assert win_rate(np.full(4, 0.5), list("abab")).win_rate_interval == bounded_interval([0.5] * 2)


def test_answers_to_one_prompt_alone_are_drawn_each_by_itself():
    verdicts = np.array([1.0, 0.0, 1.0, 0.5] * 10)
    assert win_rate(verdicts, ["same"] * 40) == win_rate(verdicts, [f"{i:02}" for i in range(40)])
    assert win_rate(verdicts[:1], ["same"]).win_rate_interval == share_interval(1, 1)


def test_every_verdict_needs_a_prompt():
    for count, prompts in ((2, ["a"]), (0, [])):
        with pytest.raises(ValueError, match="need one each"):
            win_rate(np.zeros(count), prompts)


def test_the_effect_of_the_order_by_hand():
    # won in both orders; won by whoever is first; a tie and a win, no flip; won by whoever is second
    orders = Orders(np.array([1.0, 1.0, 0.5, 0.0]), np.array([1.0, 0.0, 1.0, 1.0]))
    found = order_effect(orders, ["a", "b", "c", "d"])
    assert found.flipped == 0.5
    # first shown wins: (1 + 0) / 2, (1 + 1) / 2, (0.5 + 0) / 2, (0 + 0) / 2
    assert found.first_preferred == pytest.approx((0.5 + 1 + 0.25 + 0) / 4)
    assert (found.policy_first, found.policy_second) == (2.5 / 4, 3 / 4)
    low, high = found.policy_first_interval
    assert 0 <= low < 2.5 / 4 < high <= 1


def logistic(x):
    return 1 / (1 + np.exp(-x))


def planted(count: int, *, quality: float, bias: float, longer: float, seed: int = 0):
    """Verdicts of a judge with a liking for length on a policy that is longer: the true rate is logistic(quality)."""
    random = np.random.default_rng(seed)
    extra = np.round(random.normal(longer, 60, count)).astype(int)
    policy, reference = ["x" * (300 + more) for more in extra], ["y" * 300] * count
    chance = logistic(quality + bias * np.tanh(extra / extra.std(ddof=1)))
    return (random.random(count) < chance).astype(float), policy, reference, [f"{i}" for i in range(count)], chance


@pytest.mark.parametrize(("quality", "bias", "longer"), [(-0.8, 2.5, 40), (0.7, 1.5, -50), (0.5, 0, 50)])
def test_the_planted_quality_is_recovered_and_the_raw_rate_is_not_it(quality: float, bias: float, longer: float):
    verdicts, policy, reference, prompts, _ = planted(4000, quality=quality, bias=bias, longer=longer)
    found = length_controlled(verdicts, policy, reference, prompts)
    truth = logistic(quality)
    assert abs(found.win_rate - truth) < 0.03 and abs(found.length_effect - bias) < 0.25
    assert found.win_rate_interval[0] < truth < found.win_rate_interval[1]
    if bias:
        assert abs(verdicts.mean() - truth) > 0.1
    else:
        assert abs(found.win_rate - verdicts.mean()) < 0.01


def test_probabilities_as_verdicts_are_fitted_exactly():
    # noise-free verdicts: only the penalty, 0.1 against 4000 comparisons, stands between fit and truth
    *_, policy, reference, prompts, chance = planted(4000, quality=-0.4, bias=1.8, longer=70)
    found = length_controlled(chance, policy, reference, prompts)
    assert found.win_rate == pytest.approx(logistic(-0.4), abs=5e-4)
    assert found.length_effect == pytest.approx(1.8, abs=2e-3)


def test_instructions_differ_in_difficulty():
    random = np.random.default_rng(1)
    difficulty = random.normal(0, 1.5, 4000)
    extra = np.round(80 * difficulty + random.normal(0, 60, 4000)).astype(int)  # hard instructions are answered longer
    chance = logistic(0.3 + 1.2 * np.tanh(extra / extra.std(ddof=1)) - 0.9 * difficulty)
    texts = ["x" * (900 + more) for more in extra], ["y" * 900] * 4000, [f"{i}" for i in range(4000)]
    truth = logistic(0.3 - 0.9 * difficulty).mean()
    found = length_controlled(chance, *texts, difficulty_n=difficulty)
    assert found.win_rate == pytest.approx(truth, abs=5e-4)
    assert found.length_effect == pytest.approx(1.2, abs=5e-3)
    assert abs(length_controlled(chance, *texts).length_effect - 1.2) > 0.3  # it takes the blame of the difficulty


def test_the_models_change_sides():
    verdicts, policy, reference, prompts, _ = planted(300, quality=0.4, bias=2.0, longer=50)
    found = length_controlled(verdicts, policy, reference, prompts)
    turned = length_controlled(1 - verdicts, reference, policy, prompts)
    assert found.win_rate == pytest.approx(1 - turned.win_rate) and found.longer > 0.5 > turned.longer
    assert found.length_effect == pytest.approx(turned.length_effect)


def test_equal_lengths_leave_the_raw_rate_and_extremes_end():
    verdicts = np.array([1.0, 1.0, 0.5, 0.0, 1.0] * 20)
    found = length_controlled(verdicts, ["aa"] * 100, ["bb"] * 100, [f"{i}" for i in range(100)])
    assert found.win_rate == pytest.approx(0.7, abs=0.002) and found.length_effect == 0.0
    won = length_controlled(np.ones(40), [f"{'a' * i}" for i in range(40)], ["b"] * 40, [f"{i}" for i in range(40)])
    assert 0.95 < won.win_rate < 1.0
    alone = length_controlled(np.ones(1), ["aa"], ["b"], ["one"])
    assert alone.win_rate_interval == (-math.inf, math.inf)


def test_ties_alone_are_no_certain_tie_at_equal_lengths_either():
    for verdict in (0.5, 1.0):
        found = length_controlled(np.full(8, verdict), ["aa"] * 8, ["b"] * 8, list("abcdefgh"))
        low, high = found.win_rate_interval
        assert low <= found.win_rate <= high and high - low > 0.15


def test_answers_to_one_prompt_are_not_independent():
    verdicts, policy, _, prompts, _ = planted(60, quality=0.2, bias=1.0, longer=20)
    widths = []
    for names in (np.repeat(prompts, 9).tolist(), [f"{i}" for i in range(540)]):
        found = length_controlled(
            np.repeat(verdicts, 9), [p for p in policy for _ in range(9)], ["y" * 300] * 540, names
        )
        widths.append(found.win_rate_interval[1] - found.win_rate_interval[0])
    assert 2.3 < widths[0] / widths[1] < 3.8  # sqrt(9)


def test_all_must_be_as_many():
    with pytest.raises(ValueError, match="need one each"):
        length_controlled(np.zeros(2), ["a"], ["b", "c"], ["d", "e"])
