"""The result table: an evaluation in words, for the report and for the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax.reporting.numbers import Format, interval, nats, percent, plain, points

Evaluation = Mapping[str, Any]


class Result(NamedTuple):
    """One line of the table. `interval` may be empty."""

    measure: str
    value: str
    interval: str
    note: str


def part(evaluation: Evaluation | None, *path: str) -> Any:
    """What lies under a path of names, None where any of it is missing."""
    value: Any = evaluation
    for name in path:
        value = (value or {}).get(name)
    return value


def kl_of(evaluation: Evaluation | None) -> tuple[float, Sequence[float] | None] | None:
    """The sequence KL and its interval, nats: over the vocabulary where that was measured, else by log-ratios."""
    kl: Mapping[str, Any] = part(evaluation, "kl") or {}
    for name, bounds in (("exact", "exact_interval"), ("sequence_kl", "interval")):
        if kl.get(name) is not None:
            return kl[name], kl.get(bounds)
    return None


def result_rows(evaluation: Evaluation | None) -> list[Result]:
    """What was measured, the verdict's numbers first; what was not has no row."""
    judged, kl, heldout = (part(evaluation, name) or {} for name in ("judged", "kl", "heldout"))
    policy, reference = judged.get("policy") or {}, judged.get("reference") or {}
    judge, equal = judged.get("judge"), judged.get("length_controlled") or {}
    shares = f"share of {judged.get('samples')} samples"
    calibration = heldout.get("calibration") or {}
    labelled = "rows" in heldout
    compared = "desirable above undesirable" if labelled else "chosen above rejected"
    less = "desirable less undesirable" if labelled else "chosen less rejected"
    kind = f"{heldout['rows']} labelled rows" if labelled else f"{heldout.get('pairs')} pairs"
    rows = (
        _row("Judged positive, policy", policy, "positive", "interval", percent, f"{shares} after training"),
        _row("Judged positive, reference", reference, "positive", "interval", percent, f"{shares} before training"),
        _row("Difference", judged, "difference", "difference_interval", points, f"judge: {judge}"),
        _row("Mean reward, policy", policy, "reward", "interval", plain, f"by the judge, {judge}, after training"),
        _row("Mean reward, reference", reference, "reward", "interval", plain, "the same, before training"),
        _row(
            "Win rate",
            judged,
            "win_rate",
            "win_rate_interval",
            percent,
            f"policy against reference, ties half; judge: {judge}",
        ),
        _row(
            "Win rate at equal lengths", equal, "win_rate", "win_rate_interval", percent, "as AlpacaEval 2 controls it"
        ),
        _row("Sequence KL", kl, "sequence_kl", "interval", nats, f"from the reference, on {kl.get('samples')} samples"),
        _row("Sequence KL, exact", kl, "exact", "exact_interval", nats, "the same, over the vocabulary at each token"),
        _row(
            "Held-out accuracy",
            heldout,
            "accuracy",
            "accuracy_interval",
            percent,
            f"{compared}, {kind} never trained on",
        ),
        _row("Held-out margin", heldout, "margin", "", nats, f"{less} log-ratio, the same"),
        _row("Calibration error", calibration, "expected_error", "", percent, "of preference probabilities, the same"),
        _row("Held-out loss", heldout, "loss", "", plain, "the same"),
    )
    return [row for row in rows if row is not None]


def _row(
    measure: str, values: Mapping[str, Any], key: str, interval_key: str, form: Format, note: str
) -> Result | None:
    if values.get(key) is None:
        return None
    bounds: Sequence[float] | None = values.get(interval_key)
    return Result(measure, form(values[key]), interval(bounds, form) if bounds else "", note)
