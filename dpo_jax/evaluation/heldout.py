"""Accuracy on held-out rows, from log-probs or from rewards: as a whole, by part, and its calibration.

Dimension key: B pairs, P slot in the pair (0 chosen, 1 rejected), n completions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dpo_jax.evaluation.intervals import (
    Interval,
    bounded_interval,
    difference_interval,
    mean_interval,
    ranking_interval,
    ratio_interval,
)
from dpo_jax.evaluation.records import Accuracy, BothMoved, Calibration, CalibrationBin, Heldout, Moved

Groups = np.ndarray | None
"""The group of each row, int [B], rows of one prompt being no independent ones; None: each is one of its own."""

BINS = 10
ABOUT_EQUAL = 0.1
"""Two responses are about as long where they differ by no more than this share of the longer one."""


def preference_metrics(
    policy_logps_BP: np.ndarray, reference_logps_BP: np.ndarray, *, beta: float, groups_B: Groups = None
) -> Heldout:
    """Accuracy and margin on pairs, from summed response log-probs [B, 2] in nats.

    A pair counts as right where its margin is above zero: a tie is wrong. `margin` is the chosen log-ratio less the
    rejected one in nats, `reward_margin` beta times that. `moved` has both log-ratios, and the share that fell.

    Raises:
        ValueError: the arrays differ in shape, or hold no pairs.
    """
    policy_BP, reference_BP = np.asarray(policy_logps_BP, np.float64), np.asarray(reference_logps_BP, np.float64)
    if policy_BP.shape != reference_BP.shape or not policy_BP.size:
        shapes = f"of the policy {policy_BP.shape} and of the reference {reference_BP.shape}"
        raise ValueError(f"log-probs {shapes}: need the same")
    log_ratios_BP = policy_BP - reference_BP
    margins_B = log_ratios_BP[:, 0] - log_ratios_BP[:, 1]
    chosen, rejected = (
        Moved(mean=float(x_B.mean()), interval=mean_interval(x_B, groups_B), fell=float(np.mean(x_B < 0)))
        for x_B in log_ratios_BP.T
    )
    return Heldout(
        **vars(_accuracy(margins_B, groups_B)),
        margin=float(margins_B.mean()),
        margin_interval=mean_interval(margins_B, groups_B),
        reward_margin=float(beta * margins_B.mean()),
        moved=BothMoved(chosen=chosen, rejected=rejected),
    )


def reward_metrics(rewards_BP: np.ndarray, groups_B: Groups = None) -> Heldout:
    """Accuracy, margin and mean rewards of a reward model on pairs; a tie is wrong.

    Raises:
        ValueError: there are no pairs.
    """
    rewards_BP = np.asarray(rewards_BP, np.float64)
    if rewards_BP.ndim != 2 or rewards_BP.shape[1] != 2 or not len(rewards_BP):
        raise ValueError(f"rewards of pairs are [B, 2], not {list(rewards_BP.shape)}")
    margins_B = rewards_BP[:, 0] - rewards_BP[:, 1]
    chosen, rejected = rewards_BP.mean(axis=0).tolist()
    return Heldout(
        **vars(_accuracy(margins_B, groups_B)),
        margin=float(margins_B.mean()),
        margin_interval=mean_interval(margins_B, groups_B),
        chosen=chosen,
        rejected=rejected,
    )


def unpaired_metrics(
    policy_logps_n: np.ndarray,
    reference_logps_n: np.ndarray,
    desirable_n: np.ndarray,
    *,
    beta: float,
    groups_n: Groups = None,
) -> Heldout:
    """Accuracy and margin on labelled completions, from summed log-probs [n] in nats.

    Every desirable completion is compared with every undesirable one, and is right where its log-ratio is larger (the
    area under the ROC curve; a tie is wrong). `margin` is the difference of their mean log-ratios in nats.

    Raises:
        ValueError: one label is missing.
    """
    log_ratios_n = np.asarray(policy_logps_n, np.float64) - reference_logps_n
    good, bad = (np.sort(log_ratios_n[labels]) for labels in (desirable_n, ~desirable_n))
    if not len(good) or not len(bad):
        raise ValueError(f"{len(good)} desirable and {len(bad)} undesirable completions; both are needed")
    right = int(np.searchsorted(bad, good, side="left").sum())
    margin = float(good.mean() - bad.mean())
    return Heldout(
        rows=len(log_ratios_n),
        pairs=len(good) * len(bad),
        accuracy=right / (len(good) * len(bad)),
        accuracy_interval=ranking_interval(log_ratios_n, desirable_n, groups_n),
        margin=margin,
        margin_interval=difference_interval(log_ratios_n, desirable_n, groups_n),
        reward_margin=float(beta * margin),
    )


def perplexity(logps_n: np.ndarray, tokens_n: np.ndarray) -> float:
    """The perplexity a token of responses with these summed log-probs; infinite where one is impossible."""
    mean = float(logps_n.sum(dtype=np.float64) / tokens_n.sum())
    return _exp(-mean)


def perplexity_interval(logps_n: np.ndarray, tokens_n: np.ndarray, groups_n: Groups = None) -> Interval:
    """The interval of `perplexity`."""
    low, high = ratio_interval(np.asarray(-logps_n, np.float64), np.asarray(tokens_n, np.float64), groups_n)
    return _exp(low), _exp(high)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def calibration(
    margins_B: np.ndarray, *, beta: float, soft_label_B: np.ndarray | None = None, groups_B: Groups = None
) -> Calibration:
    """The calibration of p = sigmoid(beta * margin), the probability that the chosen response is better.

    The policy's confidence in whichever response it prefers, max(p, 1 - p), is compared with how often it is right, in
    ten bins from 0.5 to 1; `expected_error` is their mean distance, weighted by pairs. A margin of zero is half right.
    `brier` is the mean of (y - p)^2, `log_loss` that of -y log p - (1 - y) log(1 - p); y is 1, or the soft label.

    Args:
        margins_B: differences of the two log-ratios, nats.
        beta: of the loss.
        soft_label_B: the probability that chosen is better, where the rows have one.
        groups_B: of the interval.

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
        log_loss_interval=mean_interval(losses_B, groups_B),
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


def accuracy_by_source(
    margins_B: np.ndarray, source_B: np.ndarray, sources: Sequence[str], groups_B: Groups = None
) -> dict[str, Accuracy]:
    """Accuracy on the pairs of each source that has some; `source_B` are places in `sources`."""
    return _by_part(margins_B, {name: source_B == place for place, name in enumerate(sources)}, groups_B)


def accuracy_by_length(margins_B: np.ndarray, tokens_BP: np.ndarray, groups_B: Groups = None) -> dict[str, Accuracy]:
    """Accuracy where rejected is longer, where both are about as long, and where chosen is longer, by token counts."""
    chosen_B, rejected_B = np.asarray(tokens_BP, np.float64).T
    longer_B = (chosen_B - rejected_B) / np.maximum(np.maximum(chosen_B, rejected_B), 1)
    parts = {"rejected_longer": longer_B < -ABOUT_EQUAL, "about_equal": np.abs(longer_B) <= ABOUT_EQUAL}
    return _by_part(margins_B, {**parts, "chosen_longer": longer_B > ABOUT_EQUAL}, groups_B)


def _by_part(margins_B: np.ndarray, parts: Mapping[str, np.ndarray], groups_B: Groups) -> dict[str, Accuracy]:
    return {
        name: _accuracy(margins_B[inside], None if groups_B is None else groups_B[inside])
        for name, inside in parts.items()
        if inside.any()
    }


def _accuracy(margins_B: np.ndarray, groups_B: Groups) -> Accuracy:
    right_B = margins_B > 0
    interval = bounded_interval(right_B, groups_B)
    return Accuracy(pairs=len(right_B), accuracy=float(right_B.mean()), accuracy_interval=interval)
