"""95 % confidence intervals, all deterministic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]

_RESAMPLES = 2000
_Z = 1.959963984540054  # the normal distribution holds 95 % within this many standard deviations


def share_interval(successes: int, total: int) -> Interval:
    """Wilson's interval of a share, `successes` of `total`; it stays within [0, 1]."""
    if not 0 <= successes <= total or total == 0:
        raise ValueError(f"{successes} successes of {total}: a share needs 0 <= successes <= total, total > 0")
    share, shrink = successes / total, 1 + _Z**2 / total
    centre = (share + _Z**2 / (2 * total)) / shrink
    half = _Z / shrink * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    return (max(0.0, centre - half), min(1.0, centre + half))


def mean_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """The interval of a mean, 1.96 standard errors each way; of one value it is all numbers."""
    values = np.asarray(values, np.float64)
    if values.size < 2:
        return (-math.inf, math.inf)
    mean, half = values.mean(), _Z * values.std(ddof=1) / math.sqrt(values.size)
    return (float(mean - half), float(mean + half))


def bootstrap_interval(values: np.ndarray, groups: np.ndarray) -> Interval:
    """The percentile bootstrap of a mean, whole groups drawn; of one group it is all numbers.

    Args:
        values: [n].
        groups: the group of each, int [n], from 0 without a gap: values that belong together.
    """
    sums, counts = np.bincount(groups, values), np.bincount(groups)
    if len(counts) < 2:
        return (-math.inf, math.inf)
    random = np.random.default_rng(0)
    draws = (random.integers(0, len(counts), len(counts)) for _ in range(_RESAMPLES))
    means = [sums[drawn].sum() / counts[drawn].sum() for drawn in draws]
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return (low, high)


def ranking_interval(right: int, good: int, bad: int) -> Interval:
    """The interval of the share of `good * bad` comparisons that are right (the area under the ROC curve).

    The comparisons share their members, so they say less than as many independent ones would. Where all are right, or
    none, the formula has no width: then they count as one for each member of the smaller side.

    References: Hanley and McNeil 1982, The meaning and use of the area under a ROC curve, equation 1.
    """
    if right in (0, good * bad):
        fewer = min(good, bad)
        return share_interval(fewer if right else 0, fewer)
    share = right / (good * bad)
    both_good, both_bad = share / (2 - share), 2 * share**2 / (1 + share)
    variance = share * (1 - share) + (good - 1) * (both_good - share**2) + (bad - 1) * (both_bad - share**2)
    half = _Z * math.sqrt(max(0.0, variance) / (good * bad))
    return (max(0.0, share - half), min(1.0, share + half))


def difference_interval(a: tuple[int, int], b: tuple[int, int]) -> Interval:
    """Newcombe's interval of share(a) - share(b), each (successes, total), counted on independent samples.

    References: Newcombe 1998, Interval estimation for the difference between independent proportions, method 10.
    """
    share_a, share_b = a[0] / a[1], b[0] / b[1]
    (low_a, high_a), (low_b, high_b) = share_interval(*a), share_interval(*b)
    difference = share_a - share_b
    below = math.hypot(share_a - low_a, high_b - share_b)
    above = math.hypot(high_a - share_a, share_b - low_b)
    return (difference - below, difference + above)


def in_words(interval: Interval | None, form: str) -> str:
    """The interval for a message, its ends in this format."""
    low, high = interval or (math.nan, math.nan)
    return f"95 % interval {low:{form}} to {high:{form}}"
