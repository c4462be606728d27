"""The best of n responses: what a judge alone could gain, without any training.

Dimension key: N prompts, S responses to each.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dpo_jax.evaluation.intervals import mean_interval


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
    """At most so many nats is the policy that answers with the best of n from the one whose answers they are.

    References: Beirami et al. 2024, arXiv:2401.01879: the published value log n - (n - 1) / n is an upper bound.
    """
    return math.log(n) - (n - 1) / n


def best_of_table(scores_NS: np.ndarray) -> list[dict[str, Any]]:
    """For n = 1, 2, 4, ... up to S: `n`, `score`, its `interval` over prompts, and `kl`, the bound in nats."""
    sizes = [2**power for power in range(np.shape(scores_NS)[1].bit_length())]
    found = [(n, best_of(scores_NS, n)) for n in sizes]
    return [
        {"n": n, "score": float(best_N.mean()), "interval": mean_interval(best_N), "kl": kl_bound(n)}
        for n, best_N in found
    ]
