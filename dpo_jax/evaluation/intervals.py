"""95 % confidence intervals, all deterministic.

An interval says what independent values tell of others like them. Values that belong together (the answers to one
prompt) are a group and count as one. Where the values show no spread, and their bounds are unknown, nothing is known of
others: the interval is then all numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

Interval = tuple[float, float]

ALL_NUMBERS: Interval = (-math.inf, math.inf)
UNKNOWN = "not known: the values are too few, or all alike"
_RESAMPLES = 2000
_Z = 1.959963984540054  # the normal distribution holds 95 % within this many standard deviations


def share_interval(successes: float, total: float) -> Interval:
    """Wilson's interval of a share, `successes` of `total`; it stays within [0, 1]."""
    if not 0 <= successes <= total or total == 0:
        raise ValueError(f"{successes} successes of {total}: a share needs 0 <= successes <= total, total > 0")
    share, shrink = successes / total, 1 + _Z**2 / total
    centre = (share + _Z**2 / (2 * total)) / shrink
    half = _Z / shrink * math.sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    return (max(0.0, centre - half), min(1.0, centre + half))


def mean_interval(values: Sequence[float] | np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """Student's interval of a mean; of one value, or of values that are all the same, it is all numbers.

    Args:
        values: [n].
        groups: the group of each, int [n]; without them each is one of its own.
    """
    return ratio_interval(*_of_groups(np.asarray(values, np.float64), groups))


def ratio_interval(sums: np.ndarray, counts: np.ndarray) -> Interval:
    """Student's interval of the mean of values in independent groups, from the sum and the number in each."""
    number = len(counts)
    if number < 2:
        return ALL_NUMBERS
    from scipy.special import stdtrit

    mean = float(sums.sum() / counts.sum())
    errors = sums - mean * counts
    half = float(stdtrit(number - 1, 0.975) * math.sqrt(number / (number - 1) * float(errors @ errors)) / counts.sum())
    return ALL_NUMBERS if half <= 1e-12 * abs(mean) else (mean - half, mean + half)


def difference_interval(a: np.ndarray, b: np.ndarray) -> Interval:
    """The interval of the mean of `a` less that of `b`, independent values; Student's of the smaller side."""
    fewer = min(len(a), len(b))
    if fewer < 2:
        return ALL_NUMBERS
    from scipy.special import stdtrit

    difference = float(np.mean(a) - np.mean(b))
    half = float(stdtrit(fewer - 1, 0.975) * math.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)))
    return (difference - half, difference + half) if half > 0 or math.isnan(half) else ALL_NUMBERS


def bounded_interval(
    values: Sequence[float] | np.ndarray, groups: np.ndarray | None = None, *, low: float = 0.0, high: float = 1.0
) -> Interval:
    """The interval of a mean of values within `low` and `high`: shares, verdicts with ties, differences of shares.

    Shares of values without groups have Wilson's interval, as have all groups at one end. The others have that of the
    Bayesian bootstrap over groups, to which a group at either end is added (so that a single 0 or 1 in n is the uniform
    prior of a share): what was not seen in n groups is not impossible, and eight ties are no certain tie.

    References: Rubin 1981, The Bayesian bootstrap.
    """
    values = (np.asarray(values, np.float64) - low) / (high - low)
    if not np.isfinite(values).all():
        return (math.nan, math.nan)
    sums, counts = _of_groups(values, groups)
    number, mean = len(counts), float(values.mean())
    ends = bool(np.isin(values, (0.0, 1.0)).all())
    if ends and (counts.max() == 1 or mean in (0.0, 1.0)):
        found = share_interval(number * mean, number)
    else:
        size = counts.mean()
        sums, counts = np.append(sums, [0.0, size]), np.append(counts, [size, size])
        means = [(weights @ sums) / (weights @ counts) for weights in bayesian_weights(len(counts), _RESAMPLES)]
        first, last = np.quantile(means, [0.025, 0.975]).tolist()
        found = (min(first, mean), max(last, mean))
    return (low + (high - low) * found[0], low + (high - low) * found[1])


def bayesian_weights(number: int, resamples: int) -> Iterator[np.ndarray]:
    """The weights of groups in each resample of the Bayesian bootstrap, [number], of mean 1."""
    random = np.random.default_rng(0)
    return (random.standard_exponential(number) for _ in range(resamples))


def _of_groups(values: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The sum of the values of each group, and their number."""
    if groups is None:
        return values, np.ones(len(values))
    places = np.unique(groups, return_inverse=True)[1]
    return np.bincount(places, values), np.bincount(places).astype(float)


def groups_of(names: Sequence[object]) -> np.ndarray:
    """The group of each value by its name (its prompt), int [n]: those of one name belong together.

    Where all have one name each is a group of its own: the interval is then of what belongs to that name.
    """
    groups_n = np.unique(np.asarray(names, object), return_inverse=True)[1]
    return groups_n if groups_n.max() else np.arange(len(groups_n))


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


def average_interval(shares: Sequence[float], totals: Sequence[int], weights: Sequence[float]) -> Interval:
    """The interval of a weighted average of independent shares, each of so many values.

    It is Wilson's of as many values as one share would need for the same error, were all shares the same.

    References: Kish 1965, Survey sampling, the design effect of weights.
    """
    part = np.asarray(weights, np.float64) / np.sum(weights)
    effective = 1 / float((part**2 / np.asarray(totals)).sum())
    return share_interval(effective * min(1.0, float(part @ np.asarray(shares))), effective)


def in_words(interval: Interval | None, form: str) -> str:
    """The interval for a message, its ends in this format."""
    low, high = interval or (math.nan, math.nan)
    if math.isinf(low) or math.isinf(high):
        return f"95 % interval {UNKNOWN}"
    return f"95 % interval {low:{form}} to {high:{form}}"
