"""Intervals against published and hand-worked values."""

import math

import numpy as np
import pytest

from dpo_jax.evaluation.intervals import (
    ALL_NUMBERS,
    average_interval,
    bounded_interval,
    difference_interval,
    in_words,
    mean_interval,
    ranking_interval,
    share_interval,
    student_interval,
)


def test_share_interval_equals_the_published_one():
    # Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 5.
    np.testing.assert_allclose(share_interval(81, 263), (0.2527, 0.3676), atol=5e-5)
    np.testing.assert_allclose(share_interval(15, 148), (0.0578, 0.1617), atol=5e-5)
    np.testing.assert_allclose(share_interval(0, 20), (0.0, 0.1684), atol=5e-5)
    np.testing.assert_allclose(share_interval(29, 29), (0.8806, 1.0), atol=5e-5)


def test_share_interval_by_hand():
    # all of 8: 0.025^(1/8) = exp(-3.68888 / 8) = 0.63058
    np.testing.assert_allclose(share_interval(8, 8), (0.63058, 1.0), atol=1e-5)


def test_mean_interval_by_hand():
    # mean 3, standard deviation sqrt((4 + 1 + 0 + 1 + 4) / 4) = 1.5811, standard error 1.5811 / sqrt(5) = 0.70711;
    # Student's t of 4 degrees of freedom is 2.77645
    np.testing.assert_allclose(student_interval([1, 2, 3, 4, 5]), (3 - 1.96324, 3 + 1.96324), atol=1e-5)
    low, high = mean_interval([1, 2, 3, 4, 5])
    assert low <= 3 - 1.9632 and high >= 3 + 1.9632


def test_the_interval_of_a_mean_follows_the_skew():
    values = np.random.default_rng(3).exponential(size=40)
    mean, (low, high), (least, most) = values.mean(), mean_interval(values), student_interval(values)
    assert low == pytest.approx(least) and high - mean > 1.2 * (most - mean)  # more may come above than was seen
    mirrored = mean_interval(-values)
    np.testing.assert_allclose(mirrored, (-high, -low))


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
    low, high = bounded_interval([0.5] * 8)
    assert 0.25 < low < 0.4 and low == pytest.approx(1 - high)
    assert bounded_interval([1.0] * 3) == share_interval(3, 3)
    np.testing.assert_allclose(bounded_interval([0.0] * 8, low=-1.0), (2 * low - 1, 2 * high - 1))


def test_an_average_of_shares():
    np.testing.assert_allclose(average_interval([0.5, 0.5], [40, 40], [1, 1]), share_interval(40, 80), atol=0.01)
    assert average_interval([1.0, 1.0], [40, 1], [1, 1])[0] < share_interval(4, 4)[0]  # one row has half of the weight


def test_mean_interval_does_not_hide_nan():
    assert all(map(math.isnan, mean_interval([1.0, math.nan])))


@pytest.mark.parametrize(("successes", "total"), [(3, 2), (-1, 2), (0, 0)])
def test_impossible_shares_are_refused(successes, total):
    with pytest.raises(ValueError, match=f"{successes} successes of {total}"):
        share_interval(successes, total)


def test_a_ranking_interval_by_hand():
    # all of 2 x 2 right: the end solves (t - 1)^2 = 4.30265^2 v(t), Student's of 2 degrees, v being Newcombe's variance
    low, high = ranking_interval(np.array([3.0, 2.0, 0.0, 1.0]), np.array([True, True, False, False]))
    variance = low * (1 - low) * (1 + (1 - low) / (2 - low) + low / (1 + low)) / 4
    assert (1 - low) ** 2 == pytest.approx(4.30265**2 * variance, rel=1e-4) and high == 1.0


def test_a_perfect_ranking_is_not_certain():
    values, first = np.arange(7.0), np.arange(7) > 3
    low, high = ranking_interval(values, first)
    assert low < 0.7 and high == 1.0
    np.testing.assert_allclose(ranking_interval(-values, first), (0.0, 1 - low), atol=1e-9)
    assert ranking_interval(np.array([0.0, 1.0]), np.array([False, True])) == (0.0, 1.0)


def test_no_more_is_known_of_copies():
    values, first = np.random.default_rng(5).normal(size=24), np.arange(24) % 2 == 0
    copies = np.repeat(values, 4), np.repeat(first, 4), np.repeat(np.arange(24), 4)
    for of in (ranking_interval, difference_interval):
        np.testing.assert_allclose(of(*copies), of(values, first), atol=0.03)
