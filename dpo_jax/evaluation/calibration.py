"""Calibration of preference probabilities, and accuracy by source and by length.

Dimension key: B pairs, P slot in the pair (0 chosen, 1 rejected).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpo_jax.evaluation.intervals import mean_interval, share_interval
from dpo_jax.evaluation.records import Accuracy, Calibration, CalibrationBin

BINS = 10
ABOUT_EQUAL = 0.1
"""Two responses are about as long where they differ by no more than this share of the longer one."""


def calibration(margins_B: np.ndarray, *, beta: float, soft_label_B: np.ndarray | None = None) -> Calibration:
    """The calibration of p = sigmoid(beta * margin), the probability that the chosen response is better.

    The policy's confidence in whichever response it prefers, max(p, 1 - p), is compared with how often it is right, in
    ten bins from 0.5 to 1; `expected_error` is their mean distance, weighted by pairs. A margin of zero is half right.
    `brier` is the mean of (y - p)^2, `log_loss` that of -y log p - (1 - y) log(1 - p); y is 1, or the soft label.

    Args:
        margins_B: differences of the two log-ratios, nats.
        beta: of the loss.
        soft_label_B: the probability that chosen is better, where the rows have one.

    References: Guo et al. 2017, On calibration of modern neural networks, equation 3; Brier 1950.
    """
    logits_B = beta * np.asarray(margins_B, np.float64)
    label_B = np.ones_like(logits_B) if soft_label_B is None else np.asarray(soft_label_B, np.float64)
    with np.errstate(invalid="ignore"):  # NaN is not hidden
        chance_B = np.exp(-np.logaddexp(0, -logits_B))
        losses_B = label_B * np.logaddexp(0, -logits_B) + (1 - label_B) * np.logaddexp(0, logits_B)
    confidence_B = np.maximum(chance_B, 1 - chance_B)
    right_B = np.where(logits_B > 0, label_B, np.where(logits_B < 0, 1 - label_B, 0.5))
    right_B = np.where(np.isnan(logits_B), np.nan, right_B)
    bins = _bins(confidence_B)
    # Of each bin the pairs times their distance.
    distances = [abs(confidence_B[inside].sum() - right_B[inside].sum()) for inside in bins.values()]
    return Calibration(
        expected_error=float(sum(distances) / len(logits_B)),
        brier=float(np.mean((label_B - chance_B) ** 2)),
        log_loss=float(losses_B.mean()),
        log_loss_interval=mean_interval(losses_B),
        bins=[
            CalibrationBin(
                from_=start,
                pairs=int(inside.sum()),
                confidence=float(confidence_B[inside].mean()),
                accuracy=float(right_B[inside].mean()),
            )
            for start, inside in bins.items()
        ],
    )


def _bins(confidence_B: np.ndarray) -> dict[float, np.ndarray]:
    """The start of each bin that has pairs -> which pairs are in it, bool [B]."""
    places_B = np.clip(np.nan_to_num((confidence_B - 0.5) * 2 * BINS), 0, BINS - 1).astype(int)
    return {0.5 + 0.5 * place / BINS: places_B == place for place in np.unique(places_B).tolist()}


def accuracy_by_source(margins_B: np.ndarray, source_B: np.ndarray, sources: Sequence[str]) -> dict[str, Accuracy]:
    """Accuracy on the pairs of each source that has some; `source_B` are places in `sources`."""
    present = {name: source_B == place for place, name in enumerate(sources)}
    return {name: _accuracy(margins_B[inside]) for name, inside in present.items() if inside.any()}


def accuracy_by_length(margins_B: np.ndarray, tokens_BP: np.ndarray) -> dict[str, Accuracy]:
    """Accuracy where rejected is longer, where both are about as long, and where chosen is longer, by token counts."""
    chosen_B, rejected_B = np.asarray(tokens_BP, np.float64).T
    longer_B = (chosen_B - rejected_B) / np.maximum(np.maximum(chosen_B, rejected_B), 1)
    kinds = {
        "rejected_longer": longer_B < -ABOUT_EQUAL,
        "about_equal": np.abs(longer_B) <= ABOUT_EQUAL,
        "chosen_longer": longer_B > ABOUT_EQUAL,
    }
    return {name: _accuracy(margins_B[inside]) for name, inside in kinds.items() if inside.any()}


def _accuracy(margins_B: np.ndarray) -> Accuracy:
    right, pairs = int(np.sum(margins_B > 0)), len(margins_B)
    return Accuracy(pairs=pairs, accuracy=right / pairs, accuracy_interval=share_interval(right, pairs))
