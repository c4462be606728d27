"""The result table: an evaluation in words, for the report and for the model card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dpo_jax.evaluation.records import Evaluation, Heldout
from dpo_jax.reporting.numbers import Format, interval, nats, percent, plain, points


class Result(NamedTuple):
    """One line of the table. `interval` may be empty."""

    measure: str
    value: str
    interval: str
    note: str


def result_rows(
    evaluation: Evaluation, reward: Heldout | None = None, *, reward_name: str = "Reward model"
) -> list[Result]:
    """The lines of all that was measured, the verdict's numbers first; `reward` is of the run's reward model."""
    of_pictures = bool(evaluation.metrics) or evaluation.heldout.draws is not None
    rows = [
        *(_of_pictures(evaluation) if of_pictures else _of_texts(evaluation)),
    ]
    if reward:
        held = f"{reward.pairs} held-out pairs"
        rows.append(_row(f"{reward_name}'s accuracy", reward.accuracy, reward.accuracy_interval, percent, held))
    return [row for row in rows if row is not None]


def _of_texts(evaluation: Evaluation) -> Sequence[Result | None]:
    judged, kl, heldout = evaluation.judged, evaluation.kl, evaluation.heldout
    policy, reference, equal = judged.policy, judged.reference, judged.length_controlled
    shares = f"share of {judged.samples} samples"
    kind, compared, less = f"{heldout.pairs} pairs", "chosen above rejected", "chosen less rejected"
    if heldout.rows is not None:
        kind, compared, less = (
            f"{heldout.rows} labelled rows",
            "desirable above undesirable",
            "desirable less undesirable",
        )
    by_judge = f"by the judge, {judged.judge}, after training"
    against = f"policy against reference, ties half; judge: {judged.judge}"
    never, error = f"{compared}, {kind} never trained on", heldout.calibration.expected_error
    sampled = f"from the reference, on {kl.samples} samples"
    exactly = "the same, over the vocabulary at each token"
    return (
        _row("Judged positive, policy", policy.positive, policy.interval, percent, f"{shares} after training"),
        _row(
            "Judged positive, reference", reference.positive, reference.interval, percent, f"{shares} before training"
        ),
        _row("Difference", judged.difference, judged.difference_interval, points, f"judge: {judged.judge}"),
        _row("Mean reward, policy", policy.reward, policy.interval, plain, by_judge),
        _row("Mean reward, reference", reference.reward, reference.interval, plain, "the same, before training"),
        _row("Win rate", judged.win_rate, judged.win_rate_interval, percent, against),
        _row(
            "Win rate at equal lengths", equal.win_rate, equal.win_rate_interval, percent, "as AlpacaEval 2 controls it"
        ),
        _row("Sequence KL", kl.sequence_kl, kl.interval, nats, sampled),
        _row("Sequence KL, exact", kl.exact, kl.exact_interval, nats, exactly),
        _row("Held-out accuracy", heldout.accuracy, heldout.accuracy_interval, percent, never),
        _row("Held-out margin", heldout.margin, None, nats, f"{less} log-ratio, the same"),
        _row("Calibration error", error, None, percent, "of preference probabilities, the same"),
        _row("Held-out loss", heldout.loss, None, plain, "the same"),
    )


def _of_pictures(evaluation: Evaluation) -> Sequence[Result | None]:
    judged, classes, heldout = evaluation.judged, evaluation.classes, evaluation.heldout
    rows = [
        _row(
            "Win rate",
            judged.win_rate,
            judged.win_rate_interval,
            percent,
            f"samples from the same noise; {judged.judge}",
        )
    ]
    for side, scores in (("reference", judged.reference), ("policy", judged.policy)):
        rows.append(_row(f"Mean score, {side}", scores.reward, scores.interval, plain, ""))
    for metric, found in evaluation.metrics.items():
        note = f"{_or_none(found.reference, plain)} before, {_or_none(found.policy, plain)} after; their difference:"
        name = metric.replace("_", " ").capitalize()
        rows.append(_row(name, found.difference, found.difference_interval, plain, note))
    before, real = _or_none(classes.reference.share, percent), _or_none(classes.real, percent)
    seen = f"{before} before; the classifier is right on {real} of real samples"
    draws = f"{heldout.pairs} held-out pairs, {heldout.draws} draws of time and noise each"
    errors = f"of held-out samples, {_or_none(heldout.errors.reference, plain)} before"
    return (
        *rows,
        _row("Class asked for is seen", classes.policy.share, classes.policy.interval, percent, seen),
        _row("Preference accuracy", heldout.accuracy, heldout.accuracy_interval, percent, draws),
        _row("Denoising error", heldout.errors.policy, None, plain, errors),
    )


def _or_none(value: float | None, form: Format) -> str:
    return "none" if value is None else form(value)


def _row(measure: str, value: float | None, bounds: Sequence[float] | None, form: Format, note: str) -> Result | None:
    return None if value is None else Result(measure, form(value), interval(bounds, form) if bounds else "", note)
