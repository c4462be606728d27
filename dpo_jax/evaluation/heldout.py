"""The accuracy of a policy on preferences, from log-probabilities.

Dimension key: B pairs, P slot in the pair (0 chosen, 1 rejected), n completions.
"""

from __future__ import annotations

import math

import numpy as np

from dpo_jax.evaluation.intervals import mean_interval, ranking_interval, share_interval
from dpo_jax.evaluation.records import BothMoved, Heldout, Moved


def preference_metrics(policy_logps_BP: np.ndarray, reference_logps_BP: np.ndarray, *, beta: float) -> Heldout:
    """Accuracy and margin on pairs, from summed response log-probs [B, 2] in nats.

    A pair counts as right where its margin is above zero: a tie is wrong. `margin` is the chosen log-ratio less the
    rejected one in nats, `reward_margin` beta times that. `moved` has both log-ratios, and the share that fell.

    Raises:
        ValueError: the arrays differ in shape, or hold no pairs.
    """
    log_ratios_BP = _log_ratios(policy_logps_BP, reference_logps_BP)
    margins_B = log_ratios_BP[:, 0] - log_ratios_BP[:, 1]
    pairs, right = len(margins_B), int(np.sum(margins_B > 0))
    chosen, rejected = (
        Moved(mean=float(x_B.mean()), interval=mean_interval(x_B), fell=float(np.mean(x_B < 0)))
        for x_B in log_ratios_BP.T
    )
    return Heldout(
        pairs=pairs,
        accuracy=right / pairs,
        accuracy_interval=share_interval(right, pairs),
        margin=float(margins_B.mean()),
        margin_interval=mean_interval(margins_B),
        reward_margin=float(beta * margins_B.mean()),
        moved=BothMoved(chosen=chosen, rejected=rejected),
    )


def unpaired_metrics(
    policy_logps_n: np.ndarray, reference_logps_n: np.ndarray, desirable_n: np.ndarray, *, beta: float
) -> Heldout:
    """Accuracy and margin on labelled completions, from summed log-probs [n] in nats.

    Every desirable completion is compared with every undesirable one, and is right where its log-ratio is larger (the
    area under the ROC curve; a tie is wrong). `margin` is the difference of their mean log-ratios in nats.

    Raises:
        ValueError: one label is missing.
    """
    log_ratios_n = policy_logps_n - reference_logps_n
    good, bad = (np.sort(log_ratios_n[labels]) for labels in (desirable_n, ~desirable_n))
    if not len(good) or not len(bad):
        raise ValueError(f"{len(good)} desirable and {len(bad)} undesirable completions; both are needed")
    right = int(np.searchsorted(bad, good, side="left").sum())
    margin = float(good.mean() - bad.mean())
    return Heldout(
        rows=len(log_ratios_n),
        pairs=len(good) * len(bad),
        accuracy=right / (len(good) * len(bad)),
        accuracy_interval=ranking_interval(right, len(good), len(bad)),
        margin=margin,
        reward_margin=float(beta * margin),
    )


def perplexity(logps_n: np.ndarray, tokens_n: np.ndarray) -> float:
    """The perplexity a token of responses with these summed log-probs; infinite where one is impossible."""
    mean = float(logps_n.sum(dtype=np.float64) / tokens_n.sum())
    return math.exp(-mean) if mean > -700 else math.inf


def _log_ratios(policy_logps: np.ndarray, reference_logps: np.ndarray) -> np.ndarray:
    policy, reference = np.asarray(policy_logps, np.float64), np.asarray(reference_logps, np.float64)
    if policy.shape != reference.shape or policy.size == 0:
        raise ValueError(
            f"log-probs of the policy {policy.shape} and of the reference {reference.shape}: need the same"
        )
    return policy - reference
