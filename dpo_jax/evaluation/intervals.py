"""95 % confidence intervals, all deterministic.

An interval says what independent values tell of others like them. Values that belong together (the answers to one
prompt) are a group and count as one. How often each holds the truth is in README.md, and tests measure it anew.

Shares, and all that lies between two bounds, have Clopper's and Pearson's interval of as many values as would say as
much: it is never too short, and of few values too long. Means without bounds have Student's interval, widened to
that of the bootstrap-t, which follows the skew of the values; of few and very skewed values both are too short. Where
such values show no spread nothing is known of others: the interval is then all numbers.

References:
    Clopper and Pearson 1934, The use of confidence or fiducial limits illustrated in the case of the binomial.
    Korn and Graubard 1998, Confidence intervals for proportions with small expected number of positive counts.
    Hall 1988, Theoretical comparison of bootstrap confidence intervals, section 2 (the bootstrap-t).
    DeLong, DeLong and Clarke-Pearson 1988, Comparing the areas under two or more correlated ROC curves.
    Newcombe 2006, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, method 5.

Dimension key: n values, G groups, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

Interval = tuple[float, float]

ALL_NUMBERS: Interval = (-math.inf, math.inf)
UNKNOWN = "not known: the values are too few, or all alike"
_RESAMPLES = 1000
_RESAMPLED = range(4, 1001)  # groups: of fewer no two resamples differ enough, of more the two intervals are one


def share_interval(successes: float, total: float) -> Interval:
    """The interval of a share, `successes` of `total` independent ones, by Clopper and Pearson."""
    if not 0 <= successes <= total or total == 0:
        raise ValueError(f"{successes} successes of {total}: a share needs 0 <= successes <= total, total > 0")
    from scipy.special import betaincinv

    low = betaincinv(successes, total - successes + 1, 0.025) if successes > 0 else 0.0
    high = betaincinv(successes + 1, total - successes, 0.975) if successes < total else 1.0
    return float(low), float(high)


def effective_interval(share: float, *, shrunk: float, variance: float, groups: int) -> Interval:
    """The interval of an estimated share, that of as many values as have the variance of the estimate (Korn, Graubard).

    Args:
        share: the estimate.
        shrunk: an estimate that is not at either end, where a share has no variance.
        variance: of the estimate, where `shrunk` is the truth.
        groups: how many independent ones the variance was measured on; one alone tells nothing.
    """
    if groups < 2:
        return (0.0, 1.0)
    number = shrunk * (1 - shrunk) / variance * (_student(math.inf) / _student(groups - 1)) ** 2
    return share_interval(min(1.0, max(0.0, share)) * number, number)


def mean_interval(values: Sequence[float] | np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """The interval of a mean without bounds; of one value, or of values that are all the same, it is all numbers.

    Args:
        values: [n].
        groups: the group of each, int [n]; without them each is one of its own.
    """
    values = np.asarray(values, np.float64)
    return ratio_interval(values, np.ones(len(values)), groups)


def ratio_interval(sums: np.ndarray, counts: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """The interval of a mean from the sums and the numbers of what belongs together, [n] each."""
    sums, counts = (_of_groups(each, groups)[0] for each in (sums, counts))
    return _unbounded([sums], [counts])


def difference_interval(values: np.ndarray, first: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """The interval of the mean of the values where `first` is true, less that of the others."""
    groups = np.arange(len(values)) if groups is None else groups
    sides = (first, ~first)
    sums, counts = zip(*(_of_groups(values, groups, side.astype(float)) for side in sides), strict=True)
    return _unbounded(sums, counts, fewest=min(int(np.count_nonzero(each)) for each in counts))


def _unbounded(sums: Sequence[np.ndarray], counts: Sequence[np.ndarray], *, fewest: int | None = None) -> Interval:
    """The interval of a mean, or of the first mean less the second, from sums and numbers in groups, [G] each."""
    number = len(counts[0])
    if min(number, fewest or number) < 2:
        return ALL_NUMBERS
    every = np.ones((1, number))
    ((estimate,), (error,)) = _estimates(sums, counts, every)
    if error <= 1e-12 * abs(estimate):
        return ALL_NUMBERS
    reach = _student((fewest or number) - 1) * error
    low, high = float(estimate - reach), float(estimate + reach)
    if number not in _RESAMPLED or not math.isfinite(error):
        return low, high
    resampled_B, errors_B = _estimates(sums, counts, _weights(number))
    usable_B = errors_B > 1e-9 * error  # not one group over and over, nor one side of a difference alone
    scaled_B = (resampled_B[usable_B] - estimate) / errors_B[usable_B]
    below, above = np.quantile(scaled_B, [0.025, 0.975]).tolist() if len(scaled_B) else (0.0, 0.0)
    return min(low, float(estimate - above * error)), max(high, float(estimate - below * error))


def _estimates(
    sums: Sequence[np.ndarray], counts: Sequence[np.ndarray], weights_BG: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The mean, or the difference of two, of groups that count by their weights, and its standard error, [B] each.

    The error is the jackknife's over groups.
    """
    estimate_B, error_BG = np.zeros(len(weights_BG)), np.zeros(weights_BG.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        for sign, sums_G, counts_G in zip((1, -1), sums, counts, strict=False):
            total_B = weights_BG @ counts_G
            mean_B = weights_BG @ sums_G / total_B
            estimate_B = estimate_B + sign * mean_B
            left_BG = total_B[:, None] - counts_G
            error_BG = error_BG + sign * (sums_G - mean_B[:, None] * counts_G) / np.where(left_BG > 0, left_BG, np.nan)
    number = weights_BG.shape[1]
    return estimate_B, np.sqrt((number - 1) / number * (weights_BG * error_BG**2).sum(axis=1))


@lru_cache(maxsize=4)
def _weights(number: int) -> np.ndarray:
    """How often each of so many groups is drawn in each resample, [B, G]."""
    return np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), _RESAMPLES).astype(np.float64)


def student_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Student's interval of the mean of values that are nearly normal, being themselves means of many."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return ALL_NUMBERS
    mean, reach = float(values.mean()), float(_student(len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return ALL_NUMBERS if reach <= 1e-12 * abs(mean) else (mean - reach, mean + reach)


def _student(freedom: float) -> float:
    """The half width of Student's interval in standard errors; without end of freedom, of the normal one."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def bounded_interval(
    values: Sequence[float] | np.ndarray, groups: np.ndarray | None = None, *, low: float = 0.0, high: float = 1.0
) -> Interval:
    """The interval of a mean of values within `low` and `high`: shares, verdicts with ties, differences of shares.

    Where all values are at an end, and have no groups or are all at the same, they are counted. Else their variance
    is the jackknife's over groups, to which a group at either end is added: what was not seen in n groups is not
    impossible, and eight ties are no certain tie.
    """
    values = (np.asarray(values, np.float64) - low) / (high - low)
    if not np.isfinite(values).all():
        return (math.nan, math.nan)
    sums, counts = _of_groups(values, groups)
    number, mean = len(counts), float(values.mean())
    ends = bool(np.isin(values, (0.0, 1.0)).all())
    if ends and (counts.max() == 1 or mean in (0.0, 1.0)):
        found = share_interval(round(number * mean), number)
    else:
        size = counts.mean()
        sums, counts = np.append(sums, [0.0, size]), np.append(counts, [size, size])
        (shrunk,), (error,) = _estimates([sums], [counts], np.ones((1, number + 2)))
        found = effective_interval(mean, shrunk=float(shrunk), variance=float(error) ** 2, groups=number + 2)
    return (low + (high - low) * found[0], low + (high - low) * found[1])


def _of_groups(
    values: np.ndarray, groups: np.ndarray | None, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of the values of each group, and their number."""
    weights = np.ones(len(values)) if weights is None else weights
    if groups is None:
        return values * weights, weights
    places = np.unique(groups, return_inverse=True)[1]
    return np.bincount(places, values * weights), np.bincount(places, weights)


def groups_of(names: Sequence[object]) -> np.ndarray:
    """The group of each value by its name (its prompt), int [n]: those of one name belong together.

    Where all have one name each is a group of its own: the interval is then of what belongs to that name.
    """
    groups_n = np.unique(np.asarray(names, object), return_inverse=True)[1]
    return groups_n if groups_n.max() else np.arange(len(groups_n))


def ranking_interval(values: np.ndarray, first: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """The interval of how often a value where `first` is true is above one of the others (the area under the curve).

    The comparisons share their members, so they say less than as many independent ones would. It is Newcombe's score
    interval, with Student's factor in place of the normal one, and with DeLong's variance, summed over groups, where
    that is larger than his. Where all comparisons are right, or none, a group counts as one value.
    """
    if not np.isfinite(values).all():
        return (math.nan, math.nan)
    groups_n = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    good, bad, number = np.sort(values[first]), np.sort(values[~first]), int(groups_n.max()) + 1
    lower_n, not_above_n = np.searchsorted(bad, values, side="left"), np.searchsorted(good, values, side="right")
    placed_n = np.where(first, lower_n / len(bad), 1 - not_above_n / len(good))
    share = float(placed_n[first].mean())
    if number < 3:
        return (0.0, 1.0)

    def variance(at: float) -> float:
        of_sides = (len(values) / 2 - 1) * ((1 - at) / (2 - at) + at / (1 + at))
        return at * (1 - at) * (1 + of_sides) / (len(good) * len(bad))

    raised = len(values) / number
    if 0 < share < 1:
        errors_G = np.bincount(groups_n, (placed_n - share) / np.where(first, len(good), len(bad)))
        raised = max(1.0, number / (number - 1) * float(errors_G @ errors_G) / variance(share))
    reach = _student(number - 2) ** 2 * raised
    low, high = (_border(lambda at: (at - share) ** 2 <= reach * variance(at), share, end) for end in (0.0, 1.0))
    return low, high


def _border(inside: Callable[[float], bool], within: float, without: float) -> float:
    """The border between a place that is inside and an end, which is the border itself where it is the place."""
    for _ in range(60):
        middle = (within + without) / 2
        within, without = (middle, without) if inside(middle) else (within, middle)
    return without


def average_interval(shares: Sequence[float], totals: Sequence[int], weights: Sequence[float]) -> Interval:
    """The interval of a weighted average of independent shares, each of so many values.

    The variance of each is that of a share with a success and a failure more.
    """
    part_n, shares_n, totals_n = (np.asarray(each, np.float64) for each in (weights, shares, totals))
    part_n = part_n / part_n.sum()
    likely_n = (shares_n * totals_n + 1) / (totals_n + 2)
    likely = float(part_n @ likely_n)
    variance = float((part_n**2 * likely_n * (1 - likely_n) / totals_n).sum())
    share = float(part_n @ shares_n)
    return effective_interval(share, shrunk=likely, variance=variance, groups=int(totals_n.sum()))


def in_words(interval: Interval | None, form: str) -> str:
    """The interval for a message, its ends in this format."""
    low, high = interval or (math.nan, math.nan)
    if math.isinf(low) or math.isinf(high):
        return f"95 % interval {UNKNOWN}"
    return f"95 % interval {low:{form}} to {high:{form}}"
