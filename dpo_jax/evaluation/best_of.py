"""The best of n responses, and softer choices among them: the gain of a judge alone, without any training.

Dimension key: N prompts, S responses to each.
"""

from __future__ import annotations

import math

import numpy as np

from dpo_jax.evaluation.intervals import mean_interval
from dpo_jax.evaluation.records import BestOf


def best_of(scores_NS: np.ndarray, n: int) -> np.ndarray:
    """The expected score of the best of `n` responses to each prompt, [N]: the mean over all choices of n among the S.

    Raises:
        ValueError: n is not within 1 and S.
    """
    scores_NS = np.sort(np.asarray(scores_NS, np.float64), axis=1)
    size = scores_NS.shape[1]
    if not 1 <= n <= size:
        raise ValueError(f"the best of {n}: there are {size} responses to a prompt")
    # The i-th smallest is the best of the choices that take the other n - 1 from the i - 1 below it.
    share_S = np.array([math.comb(i, n - 1) / math.comb(size, n) for i in range(size)])
    return scores_NS @ share_S


def kl_bound(n: int) -> float:
    """The largest KL, nats, of the policy that answers with the best of n, from the one whose answers they are.

    References: Beirami et al. 2024, arXiv:2401.01879: the published value log n - (n - 1) / n is an upper bound.
    """
    return math.log(n) - (n - 1) / n


def soft_best_of(scores_NS: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """One of the S responses to each prompt, drawn with weights exp(score / beta): its expected score and KL, [N] each.

    As S grows this becomes the policy with the largest score - beta KL, reference exp(score / beta) / Z: what PPO with
    a KL penalty and DPO aim at. With S responses it is a policy of its own, with exactly this score; its KL is at most
    the mean of sum w log(S w), that of the choice itself.

    Raises:
        ValueError: beta is not above 0.

    References: Rafailov et al. 2023, arXiv:2305.18290, eq. 4; Verdun et al. 2025, arXiv:2505.03156.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}; it must be above 0")
    scores_NS = np.asarray(scores_NS, np.float64)
    tilted_NS = (scores_NS - scores_NS.max(axis=1, keepdims=True)) / beta
    log_w_NS = tilted_NS - np.log(np.exp(tilted_NS).sum(axis=1, keepdims=True))
    w_NS = np.exp(log_w_NS)
    return (w_NS * scores_NS).sum(axis=1), (w_NS * (log_w_NS + math.log(scores_NS.shape[1]))).sum(axis=1)


def soft_best_of_table(scores_NS: np.ndarray) -> list[BestOf]:
    """Soft choices among S, for betas from 4 to 1/8 of the spread of scores to a prompt."""
    spread = float(np.mean(np.std(scores_NS, axis=1)))
    if spread == 0:  # nothing to choose by
        return []
    table = []
    for beta in (spread * 2.0**power for power in range(2, -4, -1)):
        score_N, kl_N = soft_best_of(scores_NS, beta)
        score, interval, kl = float(score_N.mean()), mean_interval(score_N), float(kl_N.mean())
        table.append(BestOf(n=int(np.shape(scores_NS)[1]), beta=beta, score=score, interval=interval, kl=kl))
    return table


def best_of_table(scores_NS: np.ndarray) -> list[BestOf]:
    """The best of n = 1, 2, 4, ... up to S; intervals are over prompts, and the KL is the bound."""
    sizes = [2**power for power in range(np.shape(scores_NS)[1].bit_length())]
    best = {n: best_of(scores_NS, n) for n in sizes}
    return [
        BestOf(n=n, score=float(best_N.mean()), interval=mean_interval(best_N), kl=kl_bound(n))
        for n, best_N in best.items()
    ]
