"""Preference metrics by hand."""

import math

import numpy as np
import pytest

from dpo_jax.evaluation.intervals import share_interval
from dpo_jax.evaluation.preference import preference_metrics, unpaired_metrics

POLICY_BP = np.array([[-1.0, -5.0], [-4.0, -4.0], [-2.0, -1.0], [-3.0, -9.0]], np.float32)
REFERENCE_BP = np.array([[-2.0, -3.0], [-5.0, -5.0], [-2.0, -2.0], [-1.0, -9.0]], np.float32)
# log-ratios (1, -2), (1, 1), (0, 1), (-2, 0): margins 3, 0, -1, -2


def test_preference_metrics_by_hand():
    metrics = preference_metrics(POLICY_BP, REFERENCE_BP, beta=0.5)
    assert metrics.pairs == 4
    assert metrics.accuracy == 0.25  # only the margin of 3: the tie is wrong
    assert metrics.accuracy_interval == share_interval(1, 4)
    assert metrics.margin == 0.0
    # standard deviation sqrt((9 + 0 + 1 + 4) / 3) = 2.16025, half of it the standard error, times 1.96
    np.testing.assert_allclose(metrics.margin_interval, (-2.11701, 2.11701), atol=1e-5)
    moved = metrics.moved
    assert (moved.chosen.mean, moved.chosen.fell) == (0.0, 0.25)
    assert (moved.rejected.mean, moved.rejected.fell) == (0.0, 0.25)
    assert moved.rejected.interval[1] == pytest.approx(1.959964 * math.sqrt(2) / 2, rel=1e-4)
    first_two = preference_metrics(POLICY_BP[:2], REFERENCE_BP[:2], beta=0.5).moved
    assert (first_two.chosen.mean, first_two.rejected.mean) == (1.0, -0.5)
    assert preference_metrics(POLICY_BP[:1], REFERENCE_BP[:1], beta=0.5).reward_margin == 1.5


def test_an_untrained_policy_is_never_right():
    assert preference_metrics(POLICY_BP, POLICY_BP, beta=0.1).accuracy == 0.0


def test_nan_is_not_hidden():
    broken_BP = np.where(POLICY_BP == -1.0, np.nan, POLICY_BP)
    assert math.isnan(preference_metrics(broken_BP, REFERENCE_BP, beta=0.1).margin)


@pytest.mark.parametrize("shape", [(0, 2), (3, 2)])
def test_shapes_must_agree_and_hold_something(shape):
    with pytest.raises(ValueError, match="need the same"):
        preference_metrics(np.zeros(shape), np.zeros((0, 2)), beta=0.1)


def test_labelled_completions_are_compared_each_with_each():
    # log-ratios: desirable 2, 0, -1; undesirable 0, -3. Right: 2>0, 2>-3, 0>-3, -1>-3; the tie 0, 0 is wrong
    policy = np.array([2.0, 0.0, 0.0, -1.0, -3.0]) - 10
    desirable = np.array([True, False, True, True, False])
    found = unpaired_metrics(policy, np.full(5, -10.0), desirable, beta=0.5)
    assert (found.rows, found.pairs, found.accuracy) == (5, 6, pytest.approx(4 / 6))
    assert found.margin == pytest.approx(1 / 3 + 1.5) and found.reward_margin == pytest.approx(found.margin / 2)
    low, high = found.accuracy_interval
    assert 0 <= low < 4 / 6 < high <= 1
    with pytest.raises(ValueError, match="5 desirable and 0 undesirable"):
        unpaired_metrics(policy, policy, np.ones(5, bool), beta=0.5)
