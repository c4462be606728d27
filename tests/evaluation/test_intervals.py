"""Intervals against published and hand-worked values."""

import math

import numpy as np
import pytest

from dpo_jax.evaluation.intervals import difference_interval, mean_interval, share_interval


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
    # mean 3, standard deviation sqrt((4 + 1 + 0 + 1 + 4) / 4) = 1.5811, standard error 1.5811 / sqrt(5) = 0.70711
    np.testing.assert_allclose(mean_interval([1, 2, 3, 4, 5]), (3 - 1.38590, 3 + 1.38590), atol=1e-5)
    assert mean_interval([7.0, 7.0]) == (7.0, 7.0)
    assert mean_interval([7.0]) == (-math.inf, math.inf)


def test_mean_interval_does_not_hide_nan():
    assert all(map(math.isnan, mean_interval([1.0, math.nan])))


def test_difference_interval_equals_the_published_one():
    # Newcombe 1998, Interval estimation for the difference between independent proportions, table II, method 10.
    np.testing.assert_allclose(difference_interval((56, 70), (48, 80)), (0.0524, 0.3339), atol=5e-5)
    np.testing.assert_allclose(difference_interval((9, 10), (3, 10)), (0.1705, 0.8090), atol=5e-5)
    np.testing.assert_allclose(difference_interval((10, 10), (0, 20)), (0.6791, 1.0), atol=5e-5)


def test_difference_interval_turns_its_sign_with_its_arguments():
    low, high = difference_interval((9, 10), (3, 10))
    np.testing.assert_allclose(difference_interval((3, 10), (9, 10)), (-high, -low))


@pytest.mark.parametrize(("successes", "total"), [(3, 2), (-1, 2), (0, 0)])
def test_impossible_shares_are_refused(successes, total):
    with pytest.raises(ValueError, match=f"{successes} successes of {total}"):
        share_interval(successes, total)
