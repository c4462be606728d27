"""The win rate at equal lengths: the logistic regression of AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475).

    logit P(policy wins on x) = theta + phi tanh((len_policy - len_reference) / std) + psi difficulty(x)

is fitted to the verdicts, and the win rate is the mean of the same with phi = 0: what the judge would say had both
responses the same length. As published the lengths are in characters, std is that of the differences, the verdicts may
be probabilities, and theta is penalised as the others are.

Where it differs from the alpaca_eval package (length_controlled_v1): that takes difficulties which were fitted on its
leaderboard for its 805 instructions; here they are an argument, and without them the term is left out. It adds
comparisons of two gamed baselines that only it has, with weight 0.2, to keep phi from being gamed by cut responses. Its
penalty is L1, with a strength of ten tried by 5-fold cross-validation; here it is a fixed, weak L2, which the verdicts
outweigh from some ten on.

Dimension key: S fits, n comparisons, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dpo_jax.evaluation.intervals import ALL_NUMBERS, Interval, bounded_interval, effective_interval, groups_of
from dpo_jax.evaluation.records import LengthControlled

_PARTS = 200
_PENALTY = 0.1
_STEPS = 100
_TOLERANCE = 1e-8


def length_controlled(
    verdicts_n: np.ndarray,
    policy: Sequence[str],
    reference: Sequence[str],
    prompts: Sequence[str],
    *,
    difficulty_n: np.ndarray | None = None,
) -> LengthControlled:
    """The length-controlled win rate, its interval, and phi.

    The interval is made as that of `bounded_interval`: by the jackknife over prompts, each time fitted anew, with a win
    and a loss at equal lengths added. Of one comparison it is all numbers.

    Args:
        verdicts_n: how likely the policy's response is better, in [0, 1].
        policy: its responses; reference: those of the other model.
        prompts: of each comparison.
        difficulty_n: of each comparison's instruction, where it is known from elsewhere.

    Raises:
        ValueError: they are not as many as each other, or there are none.
    """
    verdicts_n = np.asarray(verdicts_n, np.float64)
    if not verdicts_n.shape == (len(policy),) == (len(reference),) == (len(prompts),) or not len(prompts):
        raise ValueError(f"verdicts {verdicts_n.shape} of {len(policy)} and {len(reference)} responses: need one each")
    features_nF = _features(policy, reference, difficulty_n)
    groups_n = groups_of(prompts)
    longer_n = np.array([len(a) > len(b) for a, b in zip(policy, reference, strict=True)])
    once_Sn = np.ones((1, len(prompts)))
    fit_SF = _fit(features_nF, verdicts_n, once_Sn)
    rate = float(_at_equal_lengths(fit_SF, features_nF, once_Sn)[0])
    interval = ALL_NUMBERS if groups_n.max() == 0 else _interval(rate, features_nF, verdicts_n, groups_n)
    return LengthControlled(
        win_rate=rate,
        win_rate_interval=interval,
        length_effect=float(fit_SF[0, 1]),
        longer=float(longer_n.mean()),
        longer_interval=bounded_interval(longer_n, groups_n),
    )


def _features(policy: Sequence[str], reference: Sequence[str], difficulty_n: np.ndarray | None) -> np.ndarray:
    longer_n = np.array([len(a) - len(b) for a, b in zip(policy, reference, strict=True)], np.float64)
    spread = longer_n.std(ddof=1) if len(longer_n) > 1 else 0.0
    columns = [np.ones(len(longer_n)), np.tanh(longer_n / spread) if spread else np.zeros(len(longer_n))]
    return np.stack(columns + ([] if difficulty_n is None else [np.asarray(difficulty_n, np.float64)]), axis=1)


def _interval(rate: float, features_nF: np.ndarray, verdicts_n: np.ndarray, groups_n: np.ndarray) -> Interval:
    """The interval of the rate: the jackknife over groups, and a group that won and one that lost at equal lengths.

    Of many groups some are left out together. A fit without them is two steps of Newton's from that with them.
    """
    groups = int(groups_n.max()) + 1
    parts = min(groups, _PARTS) + 2
    part_n = np.append(groups_n % _PARTS, [parts - 2, parts - 1])
    unseen_2F = np.tile(features_nF.mean(axis=0), (2, 1))
    unseen_2F[:, 1] = 0.0
    features_nF = np.concatenate([features_nF, unseen_2F])
    weight_n = np.append(np.ones(len(groups_n)), [len(groups_n) / groups] * 2)
    all_n = np.append(verdicts_n, [0.0, 1.0])
    fit_SF = _fit(features_nF, all_n, weight_n[None])
    shrunk = float(_at_equal_lengths(fit_SF, features_nF, weight_n[None])[0])
    kept_Sn = np.where(part_n == np.arange(parts)[:, None], 0.0, weight_n)
    without_SF = np.repeat(fit_SF, parts, axis=0)
    for _ in range(2):
        without_SF = without_SF - _step(features_nF, all_n, kept_Sn, without_SF)
    errors_S = _at_equal_lengths(without_SF, features_nF, kept_Sn) - shrunk
    variance = float(errors_S @ errors_S) * (parts - 1) / parts
    low, high = effective_interval(rate, shrunk=shrunk, variance=variance, groups=parts)
    # The model comes only near to 0 or 1, which may be the truth.
    return min(low, float(verdicts_n.max())), max(high, float(verdicts_n.min()))


def _at_equal_lengths(fit_SF: np.ndarray, features_nF: np.ndarray, weights_Sn: np.ndarray) -> np.ndarray:
    """The win rates, [S], of fits to comparisons that count by these weights."""
    equal_nF = features_nF.copy()
    equal_nF[:, 1] = 0.0
    return np.average(_logistic(fit_SF @ equal_nF.T), axis=1, weights=weights_Sn)


def _fit(features_nF: np.ndarray, verdicts_n: np.ndarray, weights_Sn: np.ndarray) -> np.ndarray:
    """The coefficients that minimise the weighted log loss and the penalty, [S, F], by Newton's method."""
    fit_SF = np.zeros((len(weights_Sn), features_nF.shape[1]))
    for _ in range(_STEPS):
        step_SF = _step(features_nF, verdicts_n, weights_Sn, fit_SF)
        fit_SF -= step_SF
        if np.abs(step_SF).max() < _TOLERANCE:
            return fit_SF
    raise ArithmeticError(f"the regression of {len(verdicts_n)} verdicts had not converged after {_STEPS} steps")


def _step(features_nF: np.ndarray, verdicts_n: np.ndarray, weights_Sn: np.ndarray, fit_SF: np.ndarray) -> np.ndarray:
    """Newton's step, [S, F], bounded: from far off, where the curve is flat, a whole step goes astray."""
    chance_Sn = _logistic(fit_SF @ features_nF.T)
    gradient_SF = (weights_Sn * (chance_Sn - verdicts_n)) @ features_nF + _PENALTY * fit_SF
    bend_Sn = weights_Sn * chance_Sn * (1 - chance_Sn)
    hessian_SFF = np.einsum("sn,nf,ng->sfg", bend_Sn, features_nF, features_nF, optimize=True)
    step_SF = np.linalg.solve(hessian_SFF + _PENALTY * np.eye(fit_SF.shape[1]), gradient_SF[..., None])[..., 0]
    return np.clip(step_SF, -1.0, 1.0)


def _logistic(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))
