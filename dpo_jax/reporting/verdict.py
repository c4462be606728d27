"""The verdict of a run: is the policy better, by how much, at what KL, and the concerns about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from dpo_jax.evaluation.records import Evaluation, Fitted
from dpo_jax.reporting.data import SplitReport, shared_rows
from dpo_jax.reporting.numbers import GAP, Format, counted, interval, nats, percent, plain, points
from dpo_jax.reporting.plots import Rows, broken_steps, finite, series, windows

FAR_KL_NATS = 8.0
FALLEN_LOGPS_NATS = 1.0
MEMORISED_LOSS = 0.05
LONGER = 1.25  # times the words of the reference; or shorter by as much
REPEATED = 0.05  # more of the groups of words than of the reference's
EMPTY = 0.05  # more of the responses than of the reference's
WORSE_ERROR = 1.5  # times the denoising error of the reference
BY_LENGTH = 0.05  # of the win rate, gone or won at equal lengths
FLIPPED = 0.2  # of the verdicts, with the order

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
    evaluation: Evaluation,
    rows: Rows,
    *,
    fitted: Fitted | None = None,
    data: Sequence[SplitReport] = (),
    outdated: Sequence[str] = (),
) -> Verdict:
    """The verdict read off an evaluation, of which any part may be missing, and the rows of the preference run.

    `outdated` are sentences about what was measured of other weights than those of the run's end.
    """
    status, text = judgement(evaluation, shared=shared_rows(data))
    concerns = [
        *outdated,
        *judgement_concerns(evaluation),
        *sample_concerns(evaluation),
        *heldout_concerns(evaluation),
        *training_concerns(rows, fitted or Fitted()),
        *data_concerns(data),
    ]
    return Verdict(status, text, concerns)


def judgement(evaluation: Evaluation, *, shared: int = 0) -> tuple[str, str]:
    """Status and text of a verdict; so many of the held-out rows are training rows, too."""
    distance, judged, heldout = _distance(evaluation), evaluation.judged, evaluation.heldout
    policy, reference = judged.policy.positive, judged.reference.positive
    of_samples, compared = counted(judged.samples, "samples"), counted(judged.samples, "comparisons")
    if judged.difference is not None and policy is not None and reference is not None:
        low, high = judged.difference_interval or (math.nan, math.nan)
        status = "better" if low > 0 else "worse" if high < 0 else "unclear"
        shares = f"{percent(policy)} of its {of_samples} are positive against {percent(reference)} before training"
        spread = f"{points(judged.difference)} (95{GAP}% interval {interval((low, high), points)})"
        return status, f"{_OPENINGS[status]}: {shares}, a difference of {spread}.{distance}"
    if judged.win_rate is not None and judged.win_rate_interval:
        low, high = judged.win_rate_interval
        status = "better" if low > 0.5 else "worse" if high < 0.5 else "unclear"
        spread = f"{percent(judged.win_rate)} of the {compared} (95{GAP}% interval {interval((low, high), percent)})"
        return status, f"{_OPENINGS[status]}: its samples win {spread}.{distance}"
    if heldout.accuracy is not None:
        held = f"{heldout.pairs} pairs of data.eval" if shared else f"{heldout.pairs} held-out pairs"
        compared = f"On {held} the chosen response"
        if heldout.rows is not None:
            compared = f"Of {heldout.rows} labelled rows a desirable one"
        higher = f"{compared} has the higher reward in {percent(heldout.accuracy)}"
        higher += _spread(heldout.accuracy_interval, percent)
        higher += f"; {shared:,} of the rows were also trained on" if shared else ""
        return "unjudged", f"No judge compared samples. {higher}.{distance}"
    return "unjudged", f"The policy has not been evaluated: only its training curves are known.{distance}"


def _distance(evaluation: Evaluation) -> str:
    kl = evaluation.kl.best
    if kl is None:
        return ""
    value, bounds = kl
    on = f", on {evaluation.kl.samples} samples" if evaluation.kl.samples else ""
    return f" Its sequence KL to the reference is {nats(value)}{_spread(bounds, nats)}{on}."


def _spread(bounds: Sequence[float] | None, form: Format) -> str:
    return f" (95{GAP}% interval {interval(bounds, form)})" if bounds else ""


def judgement_concerns(evaluation: Evaluation) -> list[str]:
    """Concerns that the difference is none, or the judge's liking for length, for what comes first, for its own."""
    concerns, judged = [], evaluation.judged
    if judged.difference is not None and not _clear(judged.difference_interval, 0.0):
        concerns.append("The interval of the difference is not clear of zero: judge more samples before believing it.")
    if judged.win_rate_interval and not _clear(judged.win_rate_interval, 0.5):
        concerns.append("The interval of the win rate is not clear of one half: judge more samples before believing.")
    raw, equal = judged.win_rate, judged.length_controlled.win_rate
    if raw is not None and equal is not None and not abs(raw - equal) <= BY_LENGTH:
        share = "part of it is length" if raw > equal else "shorter responses hide part of it"
        concerns.append(f"The win rate is {percent(raw)}, and at equal lengths {percent(equal)}: {share}.")
    flipped = judged.order.flipped
    if flipped is not None and not flipped <= FLIPPED:
        concerns.append(f"The judge is unsure: in {percent(flipped)} of the comparisons the order decided who won.")
    if lost := judged.usage.not_understood:
        concerns.append(f"{lost} answers of the judge were not understood, and count as ties.")
    if (judged.judge or "").startswith("scorer"):
        concerns.append("The judge learned from preferences like those of the training: its scores may flatter.")
    return concerns


def sample_concerns(evaluation: Evaluation) -> list[str]:
    """Concerns about how far the policy went, and what its samples became: long, short, empty, repetitive, other."""
    concerns = []
    kl = evaluation.kl.best
    if kl is not None and not kl[0] <= FAR_KL_NATS:
        concerns.append(
            f"The sequence KL is {nats(kl[0])}, not within {nats(FAR_KL_NATS)}: look for overshoot in the samples."
        )
    after, before = evaluation.texts.policy, evaluation.texts.reference
    words, usual = after.words, before.words
    if words is not None and usual is not None and not usual / LONGER <= words <= usual * LONGER:
        became = "longer" if words > usual else "shorter"
        concerns.append(f"Responses became {became}: {plain(words)} words against {plain(usual)} before.")
    if _above(after.repeated, before.repeated, REPEATED):
        concerns.append(
            f"Samples repeat themselves: {_percent(after.repeated)} of their groups of four words were there before in "
            f"the same response, {_percent(before.repeated)} in the reference's."
        )
    if _above(after.empty, before.empty, EMPTY):
        concerns.append(
            f"{_percent(after.empty)} of the samples are empty, {_percent(before.empty)} of the reference's."
        )
    classes = evaluation.classes
    if classes.difference is not None and classes.difference_interval and classes.difference_interval[1] < 0:
        concerns.append(
            f"Fewer of its samples show the class that was asked for, by {points(classes.difference)} "
            f"(95{GAP}% interval {interval(classes.difference_interval, points)})."
        )
    return concerns


def heldout_concerns(evaluation: Evaluation) -> list[str]:
    """Concerns that it does not prefer what it never saw, or denoises it worse."""
    concerns = []
    bounds, errors = evaluation.heldout.accuracy_interval, evaluation.heldout.errors
    if bounds and not bounds[0] > 0.5:
        on = f" on {pairs} pairs" if (pairs := evaluation.heldout.pairs) else ""
        concerns.append(f"Held-out accuracy{on} is not clear of chance: its interval is {interval(bounds, percent)}.")
    if errors.policy is not None and errors.reference is not None and errors.policy > WORSE_ERROR * errors.reference:
        concerns.append(
            f"It denoises held-out samples worse than before, error {plain(errors.policy)} against "
            f"{plain(errors.reference)}: it has moved far."
        )
    return concerns


def training_concerns(rows: Rows, fitted: Fitted) -> list[str]:
    """Concerns about the course of the training, and about where it began."""
    concerns = []
    if broken := broken_steps(rows):
        count = f"{len(broken)} of {len(rows)} logged steps"
        concerns.append(f"NaN or infinite values at {count}, first at step {broken[0]}.")
    if skipped := int(rows[-1].get("skipped_steps", 0)) if rows else 0:
        concerns.append(f"Steps skipped because their loss or gradient was not finite: {skipped}.")
    # Log-ratios are free of how long each batch's responses happen to be; log-probs are not.
    # Of both, one step is one batch: means over windows are compared, and nothing is said of fewer steps than two.
    ratios = finite(series(rows, "log_ratios/chosen")[1])
    logps, losses = (windows(finite(series(rows, name)[1])) for name in ("logps/chosen", "loss"))
    if (ratio := windows(ratios)) and ratio[1].most < -FALLEN_LOGPS_NATS:
        where = f"{ratio[1].words(nats)} from the reference over the last {ratio[1].steps} logged steps"
        concerns.append(f"Chosen responses fell, {where}: likelihood is being displaced.")
    elif logps and not len(ratios) and logps[1].most - logps[0].least < -FALLEN_LOGPS_NATS:
        fall = (
            f"{logps[0].words(nats)} at first, {logps[1].words(nats)} at last, means of {logps[0].steps} logged steps"
        )
        concerns.append(f"Chosen responses lost log-probability in training, {fall}: likelihood is being displaced.")
    if losses and losses[1].most < MEMORISED_LOSS:
        end = f"{losses[1].words(plain)} over its last {losses[1].steps} logged steps"
        concerns.append(f"The training loss is {end}: the pairs are all but memorised.")
    if fitted.fitted is False and fitted.perplexity is not None and fitted.before_fine_tuning is not None:
        concerns.append(
            "Fine-tuning had not fitted the policy to the chosen responses: their perplexity was "
            f"{plain(fitted.perplexity)} a token, and {plain(fitted.before_fine_tuning)} before it."
        )
    return concerns


def data_concerns(splits: Sequence[SplitReport]) -> list[str]:
    """Facts that `check-data` called odd, one concern for each split."""
    odd = {split.name: [f"{count} {what}" for what, count, is_odd in split.facts if is_odd] for split in splits}
    return [f"Odd in {name}: {'; '.join(facts)}." for name, facts in odd.items() if facts]


def _clear(bounds: Sequence[float] | None, value: float) -> bool:
    return bounds is not None and (bounds[0] > value or bounds[1] < value)


def _above(after: float | None, before: float | None, more: float) -> bool:
    """True if it rose by more than that, or to NaN."""
    return after is not None and before is not None and not after <= before + more


def _percent(share: float | None) -> str:
    return "" if share is None else percent(share)
