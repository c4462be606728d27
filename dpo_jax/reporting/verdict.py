"""The verdict of a run: is the policy better, by how much, at what KL, and what to worry about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax.reporting.concerns import (
    data_concerns,
    heldout_concerns,
    judgement_concerns,
    sample_concerns,
    training_concerns,
)
from dpo_jax.reporting.numbers import GAP, interval, nats, percent, points
from dpo_jax.reporting.results import Evaluation, kl_of, part
from dpo_jax.reporting.series import Rows

_OPENINGS = {
    "better": "The policy is judged better than the reference",
    "worse": "The policy is judged worse than the reference",
    "unclear": "The judge finds no clear difference between policy and reference",
}


class Verdict(NamedTuple):
    """`status` is better, worse, unclear (a judge could not tell) or unjudged; `text` is one or two sentences."""

    status: str
    text: str
    concerns: list[str]


def verdict(
    evaluation: Evaluation | None,
    rows: Rows,
    *,
    fitted: Mapping[str, Any] | None = None,
    data: Sequence[Mapping[str, Any]] = (),
) -> Verdict:
    """Read off the evaluation (which may be missing, wholly or in parts) and the rows of the preference run.

    `fitted` and `data` as `RunReport` has them.
    """
    status, text = judgement(evaluation)
    concerns = [
        *judgement_concerns(evaluation),
        *sample_concerns(evaluation),
        *heldout_concerns(evaluation),
        *training_concerns(rows, fitted),
        *data_concerns(data),
    ]
    return Verdict(status, text, concerns)


def judgement(evaluation: Evaluation | None) -> tuple[str, str]:
    """Status and text of a verdict."""
    distance = _distance(evaluation)
    difference = part(evaluation, "judged", "difference")
    policy, reference = (part(evaluation, "judged", side, "positive") for side in ("policy", "reference"))
    if None not in (difference, policy, reference):
        low, high = _difference_bounds(evaluation)
        status = "better" if low > 0 else "worse" if high < 0 else "unclear"
        shares = f"{percent(policy)} of its samples are positive against {percent(reference)} before training"
        spread = f"{points(difference)} (95{GAP}% interval {interval((low, high), points)})"
        return status, f"{_OPENINGS[status]}: {shares}, a difference of {spread}.{distance}"
    win_rate, bounds = part(evaluation, "judged", "win_rate"), part(evaluation, "judged", "win_rate_interval")
    if win_rate is not None and bounds:
        status = "better" if bounds[0] > 0.5 else "worse" if bounds[1] < 0.5 else "unclear"
        spread = f"{percent(win_rate)} of the comparisons (95{GAP}% interval {interval(bounds, percent)})"
        return status, f"{_OPENINGS[status]}: its samples win {spread}.{distance}"
    accuracy = part(evaluation, "heldout", "accuracy")
    if accuracy is not None:
        rows, pairs = part(evaluation, "heldout", "rows"), part(evaluation, "heldout", "pairs")
        text = f"No judge compared samples. On {pairs} held-out pairs the chosen response has the higher reward in "
        if rows is not None:
            text = f"No judge compared samples. Of {rows} labelled rows a desirable one has the higher reward in "
        return "unjudged", f"{text}{percent(accuracy)}.{distance}"
    return "unjudged", f"The policy has not been evaluated: only its training curves are known.{distance}"


def _distance(evaluation: Evaluation | None) -> str:
    kl = kl_of(evaluation)
    if kl is None:
        return ""
    value, bounds = kl
    spread = f" (95{GAP}% interval {interval(bounds, nats)})" if bounds else ""
    return f" Its sequence KL to the reference is {nats(value)}{spread}."


def _difference_bounds(evaluation: Evaluation | None) -> tuple[float, float]:
    low, high = part(evaluation, "judged", "difference_interval") or (math.nan, math.nan)
    return low, high
