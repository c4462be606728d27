"""Accuracy, margin and calibration by hand, and where the probabilities are the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpo_jax.evaluation.heldout import (
    accuracy_by_length,
    accuracy_by_source,
    calibration,
    preference_metrics,
    reward_metrics,
    unpaired_metrics,
)
from dpo_jax.evaluation.intervals import mean_interval, share_interval

POLICY_BP = np.array([[-1.0, -5.0], [-4.0, -4.0], [-2.0, -1.0], [-3.0, -9.0]], np.float32)
REFERENCE_BP = np.array([[-2.0, -3.0], [-5.0, -5.0], [-2.0, -2.0], [-1.0, -9.0]], np.float32)
# log-ratios (1, -2), (1, 1), (0, 1), (-2, 0): margins 3, 0, -1, -2


def test_preference_metrics_by_hand():
    metrics = preference_metrics(POLICY_BP, REFERENCE_BP, beta=0.5)
    assert metrics.pairs == 4
    assert metrics.accuracy == 0.25  # only the margin of 3: the tie is wrong
    assert metrics.accuracy_interval == share_interval(1, 4)
    assert metrics.margin == 0.0
    # standard deviation sqrt((9 + 0 + 1 + 4) / 3) = 2.16025, half of it the standard error, times 3.18245 (Student, 3)
    assert metrics.margin_interval[0] == pytest.approx(-3.43743, abs=1e-5) and metrics.margin_interval[1] > 3.43743
    moved = metrics.moved
    assert (moved.chosen.mean, moved.chosen.fell) == (0.0, 0.25)
    assert (moved.rejected.mean, moved.rejected.fell) == (0.0, 0.25)
    assert moved.rejected.interval[1] >= 3.182446 * math.sqrt(5 / 3) / 2 - 1e-6
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


def test_rewards_of_pairs_by_hand():
    found = reward_metrics(np.array([[2.0, 1.0], [0.5, 0.5], [3.0, -1.0], [0.0, 1.0]]))
    assert found.pairs == 4 and found.accuracy == 0.5  # a tie is wrong
    assert found.accuracy_interval == share_interval(2, 4)
    assert found.margin == 1.0 and found.margin_interval == mean_interval([1.0, 0.0, 4.0, -1.0])
    assert found.chosen == 1.375 and found.rejected == 0.375


@pytest.mark.parametrize("rewards", [np.zeros((0, 2)), np.zeros((3, 1)), np.zeros(4)])
def test_no_pairs_are_refused(rewards: np.ndarray):
    with pytest.raises(ValueError, match="rewards of pairs"):
        reward_metrics(rewards)


def test_calibration_by_hand():
    # beta 2: p = sigmoid(2), sigmoid(-1), 1/2: confident 0.8808 and right, 0.7311 and wrong, 0.5 and half right
    found = calibration(np.array([1.0, -0.5, 0.0]), beta=2.0)
    p = [0.880797, 0.268941, 0.5]
    assert found.brier == pytest.approx(np.mean([(1 - each) ** 2 for each in p]), abs=1e-6)
    assert found.log_loss == pytest.approx(np.mean([-math.log(each) for each in p]), abs=1e-6)
    assert [each.from_ for each in found.bins] == [0.5, 0.7, 0.85]
    assert [each.accuracy for each in found.bins] == [0.5, 0.0, 1.0]
    assert found.expected_error == pytest.approx((0.0 + 0.731059 + 1 - 0.880797) / 3, abs=1e-6)


def test_a_bin_counts_by_its_pairs():
    found = calibration(np.array([1.0, 1.0, 1.0, -3.0]), beta=1.0)  # 0.7311, three times right; 0.9526 and wrong
    assert found.expected_error == pytest.approx((3 * (1 - 0.731059) + 0.952574) / 4, abs=1e-6)


def test_soft_labels_are_what_the_probabilities_are_compared_with():
    # chosen is better with 3/4 and with 2/5; p = 0.75 fits the first, p = 0.25 is confident with 0.75, right with 0.6
    margins = np.array([math.log(3), -math.log(3)])
    found = calibration(margins, beta=1.0, soft_label_B=np.array([0.75, 0.4]))
    assert found.brier == pytest.approx((0 + 0.15**2) / 2)
    assert found.expected_error == pytest.approx(0.75 - (0.75 + 0.6) / 2)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), -(0.4 * math.log(0.25) + 0.6 * math.log(0.75))
    assert found.log_loss == pytest.approx(sum(entropy) / 2)


def test_true_probabilities_have_no_error_and_overconfident_ones_do():
    random = np.random.default_rng(0)
    better = random.normal(0, 1.5, 20000)
    margins = np.where(random.random(20000) < 1 / (1 + np.exp(-better)), better, -better)  # seen from the chosen one
    assert calibration(margins, beta=1.0).expected_error < 0.02
    assert calibration(margins, beta=4.0).expected_error > 0.1
    best = min((0.5, 1.0, 2.0), key=lambda beta: calibration(margins, beta=beta).log_loss)
    assert best == 1.0 and len(calibration(margins, beta=1.0).bins) == 10


def test_calibration_of_extremes_and_nan():
    found = calibration(np.array([1e4, -1e4]), beta=1.0)
    assert found.expected_error == pytest.approx(0.5) and found.log_loss == pytest.approx(5e3)
    assert math.isnan(calibration(np.array([1.0, math.nan]), beta=1.0).expected_error)


def test_accuracy_by_source_and_length_by_hand():
    margins = np.array([1.0, -1.0, 2.0, 0.0, 3.0])
    found = accuracy_by_source(margins, np.array([0, 0, 2, 2, 2]), ["reviews", "none", "chats"])
    assert {name: (each.pairs, each.accuracy) for name, each in found.items()} == {
        "reviews": (2, 0.5),
        "chats": (3, pytest.approx(2 / 3)),
    }
    tokens = np.array([[10, 20], [100, 91], [100, 90], [30, 20], [18, 20]])  # -0.5, 0.09, 0.1, 0.33, -0.1
    found = accuracy_by_length(margins, tokens)
    assert {name: (each.pairs, each.accuracy) for name, each in found.items()} == {
        "rejected_longer": (1, 1.0),
        "about_equal": (3, pytest.approx(2 / 3)),
        "chosen_longer": (1, 0.0),
    }
