"""The verdict of a run: is the policy better, by how much, at what KL, and the concerns about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from dpo_jax.evaluation.records import Evaluation, Fitted
from dpo_jax.reporting.concerns import (
    data_concerns,
    heldout_concerns,
    judgement_concerns,
    sample_concerns,
    training_concerns,
)
from dpo_jax.reporting.data import SplitReport
from dpo_jax.reporting.numbers import GAP, interval, nats, percent, points
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
    evaluation: Evaluation, rows: Rows, *, fitted: Fitted | None = None, data: Sequence[SplitReport] = ()
) -> Verdict:
    """The verdict read off an evaluation, of which any part may be missing, and the rows of the preference run."""
    status, text = judgement(evaluation)
    concerns = [
        *judgement_concerns(evaluation),
        *sample_concerns(evaluation),
        *heldout_concerns(evaluation),
        *training_concerns(rows, fitted or Fitted()),
        *data_concerns(data),
    ]
    return Verdict(status, text, concerns)


def judgement(evaluation: Evaluation) -> tuple[str, str]:
    """Status and text of a verdict."""
    distance, judged, heldout = _distance(evaluation), evaluation.judged, evaluation.heldout
    policy, reference = judged.policy.positive, judged.reference.positive
    if judged.difference is not None and policy is not None and reference is not None:
        low, high = judged.difference_interval or (math.nan, math.nan)
        status = "better" if low > 0 else "worse" if high < 0 else "unclear"
        shares = f"{percent(policy)} of its samples are positive against {percent(reference)} before training"
        spread = f"{points(judged.difference)} (95{GAP}% interval {interval((low, high), points)})"
        return status, f"{_OPENINGS[status]}: {shares}, a difference of {spread}.{distance}"
    if judged.win_rate is not None and judged.win_rate_interval:
        low, high = judged.win_rate_interval
        status = "better" if low > 0.5 else "worse" if high < 0.5 else "unclear"
        spread = f"{percent(judged.win_rate)} of the comparisons (95{GAP}% interval {interval((low, high), percent)})"
        return status, f"{_OPENINGS[status]}: its samples win {spread}.{distance}"
    if heldout.accuracy is not None:
        compared = f"On {heldout.pairs} held-out pairs the chosen response"
        if heldout.rows is not None:
            compared = f"Of {heldout.rows} labelled rows a desirable one"
        higher = f"{compared} has the higher reward in {percent(heldout.accuracy)}"
        return "unjudged", f"No judge compared samples. {higher}.{distance}"
    return "unjudged", f"The policy has not been evaluated: only its training curves are known.{distance}"


def _distance(evaluation: Evaluation) -> str:
    kl = evaluation.kl.best
    if kl is None:
        return ""
    value, bounds = kl
    spread = f" (95{GAP}% interval {interval(bounds, nats)})" if bounds else ""
    return f" Its sequence KL to the reference is {nats(value)}{spread}."
