"""Intervals against published and hand-worked values."""

import math

import numpy as np
import pytest

from dpo_jax.evaluation.intervals import (
    ALL_NUMBERS,
    average_interval,
    bounded_interval,
    in_words,
    mean_interval,
    ranking_interval,
    share_interval,
)


def test_share_interval_equals_the_published_one():
    # Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3.
    np.testing.assert_allclose(share_interval(81, 263), (0.2553, 0.3662), atol=5e-5)
    np.testing.assert_allclose(share_interval(15, 148), (0.0624, 0.1605), atol=5e-5)
    np.testing.assert_allclose(share_interval(0, 20), (0.0, 0.1611), atol=5e-5)
    np.testing.assert_allclose(share_interval(29, 29), (1 - 0.1170, 1.0), atol=5e-5)


def test_share_interval_by_hand():
    # z^2 = 3.8415; centre (0.5 + 3.8415 / 8) / (1 + 3.8415 / 4) = 0.5
    # half = 1.96 / 1.96036 * sqrt(0.25 / 4 + 3.8415 / 64) = 0.99980 * 0.35003
    np.testing.assert_allclose(share_interval(2, 4), (0.1500, 0.8500), atol=5e-5)


def test_mean_interval_by_hand():
    # mean 3, standard deviation sqrt((4 + 1 + 0 + 1 + 4) / 4) = 1.5811, standard error 1.5811 / sqrt(5) = 0.70711;
    # Student's t of 4 degrees of freedom is 2.77645
    np.testing.assert_allclose(mean_interval([1, 2, 3, 4, 5]), (3 - 1.96324, 3 + 1.96324), atol=1e-5)


@pytest.mark.parametrize("values", [[7.0], [7.0, 7.0], [0.1] * 9, [0.0] * 9])
def test_without_a_spread_nothing_is_known_of_others(values: list[float]):
    assert mean_interval(values) == ALL_NUMBERS
    assert in_words(ALL_NUMBERS, ".2f") == "95 % interval not known: the values are too few, or all alike"


def test_values_that_belong_together_count_as_one():
    values, groups = np.repeat(np.random.default_rng(2).normal(size=40), 10), np.repeat(np.arange(40), 10)
    np.testing.assert_allclose(mean_interval(values, groups), mean_interval(values[::10]))
    np.testing.assert_allclose(mean_interval(values, 3 * groups), mean_interval(values[::10]))  # groups of a part
    np.testing.assert_allclose(bounded_interval(values > 0, groups), bounded_interval(values[::10] > 0), atol=0.03)
    assert mean_interval(np.arange(3.0), np.zeros(3, int)) == ALL_NUMBERS


def test_eight_ties_are_no_certain_tie():
    # With a win and a loss added, chances of them are Beta(1, 9): mean 0.1, and 0.336 at the most by 97.5 %.
    low, high = bounded_interval([0.5] * 8)
    assert 0.5 - 0.336 / 2 < low < 0.4 and 0.6 < high < 0.5 + 0.336 / 2
    assert bounded_interval([1.0] * 3) == share_interval(3, 3)
    np.testing.assert_allclose(bounded_interval([0.0] * 8, low=-1.0), (2 * low - 1, 2 * high - 1))


@pytest.mark.parametrize("chances", [(0.2, 0.8, 0.0), (0.45, 0.1, 0.45), (0.7, 0.2, 0.1), (0.3, 0.7, 0.0)])
def test_few_verdicts_cover_the_truth_as_often_as_they_say(chances: tuple[float, ...]):
    random, inside = np.random.default_rng(1), 0
    for _ in range(100):
        low, high = bounded_interval(random.choice([1.0, 0.5, 0.0], 8, p=chances))
        inside += low <= chances[0] + chances[1] / 2 <= high
    assert inside >= 90


def test_an_average_of_shares():
    assert average_interval([0.5, 0.5], [40, 40], [1, 1]) == share_interval(40, 80)
    assert average_interval([1.0, 1.0], [40, 1], [1, 1])[0] < share_interval(4, 4)[0]  # 1 / (1 / 160 + 1 / 4) = 3.9


def test_mean_interval_does_not_hide_nan():
    assert all(map(math.isnan, mean_interval([1.0, math.nan])))


@pytest.mark.parametrize(("successes", "total"), [(3, 2), (-1, 2), (0, 0)])
def test_impossible_shares_are_refused(successes, total):
    with pytest.raises(ValueError, match=f"{successes} successes of {total}"):
        share_interval(successes, total)


def test_a_ranking_interval_covers_the_truth_as_often_as_it_says():
    # normal scores one standard deviation apart: the truth is Phi(1 / sqrt(2)) = 0.7602
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        good, bad = random.normal(1, 1, 60), random.normal(0, 1, 40)
        low, high = ranking_interval(int((good[:, None] > bad).sum()), 60, 40)
        inside += low <= 0.7602 <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_a_ranking_interval_by_hand():
    # share 0.75 of 2 x 2; Q1 = 0.75 / 1.25 = 0.6, Q2 = 1.125 / 1.75 = 0.642857; variance
    # (0.1875 + 0.6 - 0.5625 + 0.642857 - 0.5625) / 4 = 0.0763393, deviation 0.276296
    low, high = ranking_interval(3, 2, 2)
    assert low == pytest.approx(0.75 - 1.959964 * 0.276296, abs=1e-5) and high == 1.0


def test_a_perfect_ranking_is_not_certain():
    assert ranking_interval(12, 3, 4) == share_interval(3, 3) and ranking_interval(12, 3, 4)[0] < 0.5
    assert ranking_interval(0, 3, 4) == share_interval(0, 3)
