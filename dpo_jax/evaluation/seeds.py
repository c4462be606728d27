"""The evaluations of several runs as the lines of a table; runs that differ by their seed are one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.evaluation.intervals import Interval, student_interval
from dpo_jax.evaluation.records import BestOf, Evaluation, Place, Quality, Settings, Trial

Figure = tuple[float | None, Interval | None]


class Measure(NamedTuple):
    """One figure of an evaluation, None where it was not measured, with its interval, and of how many it is."""

    unit: str  # share, nats, or none
    read: Callable[[Evaluation], Figure]
    count: Callable[[Evaluation], int | None] = lambda _: None  # of a training: its steps are no sample


def _judged(of: Evaluation) -> int | None:
    return of.judged.samples


def _held_out(of: Evaluation) -> int | None:
    return of.heldout.pairs


def _classified(of: Evaluation) -> int | None:
    return of.classes.samples


def _flicker(of: Evaluation) -> Quality:
    return of.metrics.get("flicker", Quality())


MEASURES: dict[str, Measure] = {
    "positive before": Measure(
        "share", lambda of: (of.judged.reference.positive, of.judged.reference.interval), _judged
    ),
    "judged positive": Measure("share", lambda of: (of.judged.policy.positive, of.judged.policy.interval), _judged),
    "mean score": Measure("", lambda of: (of.judged.policy.score, of.judged.policy.score_interval), _judged),
    "reward before": Measure("", lambda of: (of.judged.reference.reward, of.judged.reference.interval), _judged),
    "mean reward": Measure("", lambda of: (of.judged.policy.reward, of.judged.policy.interval), _judged),
    "win rate": Measure("share", lambda of: (of.judged.win_rate, of.judged.win_rate_interval), _judged),
    "sequence KL": Measure("nats", lambda of: (of.kl.exact, of.kl.exact_interval), lambda of: of.kl.samples),
    "held-out accuracy": Measure("share", lambda of: (of.heldout.accuracy, of.heldout.accuracy_interval), _held_out),
    "held-out margin": Measure("nats", lambda of: (of.heldout.margin, of.heldout.margin_interval), _held_out),
    "chosen moved": Measure(
        "nats", lambda of: (of.heldout.moved.chosen.mean, of.heldout.moved.chosen.interval), _held_out
    ),
    "rejected moved": Measure(
        "nats", lambda of: (of.heldout.moved.rejected.mean, of.heldout.moved.rejected.interval), _held_out
    ),
    "chosen perplexity": Measure(
        "", lambda of: (of.heldout.perplexity.policy, of.heldout.perplexity.policy_interval), _held_out
    ),
    "class seen before": Measure(
        "share", lambda of: (of.classes.reference.share, of.classes.reference.interval), _classified
    ),
    "class seen": Measure("share", lambda of: (of.classes.policy.share, of.classes.policy.interval), _classified),
    "flicker before": Measure("", lambda of: (_flicker(of).reference, None), lambda of: _flicker(of).samples),
    "flicker": Measure("", lambda of: (_flicker(of).policy, None), lambda of: _flicker(of).samples),
    "denoising error": Measure("", lambda of: (of.heldout.errors.policy, of.heldout.errors.policy_interval), _held_out),
    "chosen in training": Measure("nats", lambda of: (of.halves.measured.chosen, None)),
    "rejected in training": Measure("nats", lambda of: (of.halves.measured.rejected, None)),
    "rejected by the field of log-probs": Measure("nats", lambda of: (_by_field(of, "logp").rejected, None)),
    "rejected by the field of probabilities": Measure("nats", lambda of: (_by_field(of, "probability").rejected, None)),
}
"""Name -> measure; in this order they are columns."""


class Line(NamedTuple):
    """Runs with the same settings but for the seed: of each measure the mean and its 95 % interval, if it has one."""

    settings: Settings
    runs: int
    measures: Mapping[str, tuple[float, Interval | None]]
    curve: str  # what it has in common with its neighbours in a plot
    counts: Mapping[str, int] = {}  # of a single run: of how many pairs or samples a measure is


def across_seeds(values: Sequence[float]) -> tuple[float, Interval]:
    """The mean of one figure of several runs, and its interval, `student_interval`: all numbers where runs are alike.

    Raises:
        ValueError: there is no run.
    """
    if not values:
        raise ValueError("no runs, and so no mean")
    return float(np.mean(values)), student_interval(values)


def lines_of(trials: Sequence[Trial]) -> list[Line]:
    """One line for all seeds of a setting, in the order of the first; runs that failed are left out."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.failed is None:
            groups.setdefault(json.dumps(_without_seed(trial)), []).append(trial)
    return [
        Line(
            _without_seed(group[0]),
            len(group),
            _measures([trial.evaluation for trial in group]),
            _curve(group[0]),
            _counts(group[0].evaluation) if len(group) == 1 else {},
        )
        for group in groups.values()
    ]


def best_of_lines(table: Sequence[BestOf], beside: Line) -> list[Line]:
    """The same of `best_of_table` and `soft_best_of_table`, whose KL is a bound, with the columns of another line."""
    measure = "mean reward" if "mean reward" in beside.measures else "mean score"
    lines = []
    for row in table:
        assert row.score is not None and row.kl is not None
        kind = "best of" if row.beta is None else "soft best of"
        name = f"{kind} {row.n} (KL: at most)"
        settings = {key: "" if place else name for place, key in enumerate(beside.settings or ["seed"])}
        if row.beta is not None:
            settings |= {key: f"{row.beta:.3g}" for key, at in settings.items() if key.endswith(".beta") and not at}
        measures = {measure: (row.score, row.interval), "sequence KL": (row.kl, None)}
        lines.append(Line(settings, 1, measures, f"{kind} n"))
    return lines


def _curve(trial: Trial) -> str:
    """The losses, where they vary, every other setting that is text, and the names of those that are switched on."""
    named, losses = _without_seed(trial), losses_of(trial)
    words = [" + ".join(losses)] if losses and any(key.startswith("loss") for key in named) else []
    words += [value for value in named.values() if isinstance(value, str) and value not in losses]
    words += [key.rpartition(".")[2] for key, value in named.items() if value is True]
    return " ".join(dict.fromkeys(words))


def losses_of(trial: Trial) -> list[str]:
    """The names of the losses of its configuration."""
    losses = trial.config.get("loss")
    return [str(each["name"]) for each in losses if isinstance(each, Mapping)] if isinstance(losses, Sequence) else []


def _without_seed(trial: Trial) -> dict[str, object]:
    return {key: value for key, value in trial.settings.items() if key != "seed"}


def _measures(evaluations: Sequence[Evaluation]) -> dict[str, tuple[float, Interval | None]]:
    """A single run has the interval of its own samples or pairs, several that of their spread."""
    measures: dict[str, tuple[float, Interval | None]] = {}
    for name, measure in MEASURES.items():
        figures = [measure.read(evaluation) for evaluation in evaluations]
        values = [value for value, _ in figures if value is not None]
        if len(values) == len(figures):
            measures[name] = (values[0], figures[0][1]) if len(values) == 1 else across_seeds(values)
    return measures


def _counts(evaluation: Evaluation) -> dict[str, int]:
    counts = {name: measure.count(evaluation) for name, measure in MEASURES.items()}
    return {name: count for name, count in counts.items() if count is not None}


def _by_field(evaluation: Evaluation, coordinates: str) -> Place:
    return evaluation.halves.predicted.get(coordinates) or Place()
