"""Calibration and slices by hand, and where the probabilities are the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dpo_jax.evaluation.calibration import accuracy_by_length, accuracy_by_source, calibration


def test_by_hand():
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


def test_extremes_and_nan():
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
