"""The verdict of a run: is the policy better, by how much, at what KL, and what to worry about."""

from __future__ import annotations

import math
from typing import NamedTuple

from dpo_jax.reporting.numbers import GAP, interval, nats, percent, plain, points
from dpo_jax.reporting.results import Evaluation, part
from dpo_jax.reporting.series import Rows, broken_steps, ends, series

FAR_KL_NATS = 8.0
FALLEN_LOGPS_NATS = 1.0
MEMORISED_LOSS = 0.05

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


def verdict(evaluation: Evaluation | None, rows: Rows) -> Verdict:
    """Read off the evaluation (which may be missing, wholly or in parts) and the rows of the preference run."""
    status, text = _judgement(evaluation)
    return Verdict(status, text, _evaluation_concerns(evaluation) + _training_concerns(rows))


def _judgement(evaluation: Evaluation | None) -> tuple[str, str]:
    kl = part(evaluation, "kl", "sequence_kl")
    distance = f" Its sequence KL to the reference is {nats(kl)}." if kl is not None else ""
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


def _evaluation_concerns(evaluation: Evaluation | None) -> list[str]:
    concerns = []
    low, high = _difference_bounds(evaluation)
    if part(evaluation, "judged", "difference") is not None and not (low > 0 or high < 0):
        concerns.append("The interval of the difference is not clear of zero: judge more samples before believing it.")
    bounds = part(evaluation, "judged", "win_rate_interval")
    if bounds and not (bounds[0] > 0.5 or bounds[1] < 0.5):
        concerns.append("The interval of the win rate is not clear of one half: judge more samples before believing.")
    kl = part(evaluation, "kl", "sequence_kl")
    if kl is not None and not kl <= FAR_KL_NATS:
        concerns.append(
            f"The sequence KL is {nats(kl)}, not within {nats(FAR_KL_NATS)}: look for overshoot in the samples."
        )
    bounds = part(evaluation, "heldout", "accuracy_interval")
    if bounds and not bounds[0] > 0.5:
        concerns.append(f"Held-out accuracy is not clear of chance: its interval is {interval(bounds, percent)}.")
    return concerns


def _training_concerns(rows: Rows) -> list[str]:
    concerns = []
    if broken := broken_steps(rows):
        count = f"{len(broken)} of {len(rows)} logged steps"
        concerns.append(f"NaN or infinite values at {count}, first at step {broken[0]}.")
    # Log-ratios are free of how long each batch's responses happen to be; log-probs are not.
    name = "log_ratios/chosen" if any("log_ratios/chosen" in row for row in rows) else "logps/chosen"
    before, after = ends(series(rows, name)[1])
    if after - before < -FALLEN_LOGPS_NATS:
        fall = nats(before - after)
        concerns.append(f"Chosen responses lost {fall} of log-probability in training: likelihood is being displaced.")
    loss = ends(series(rows, "loss")[1])[1]
    if loss < MEMORISED_LOSS:
        concerns.append(f"The training loss ends at {plain(loss)}: the pairs are all but memorised.")
    return concerns


def _difference_bounds(evaluation: Evaluation | None) -> tuple[float, float]:
    low, high = part(evaluation, "judged", "difference_interval") or (math.nan, math.nan)
    return low, high
