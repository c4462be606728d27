"""The evaluations of several runs as the lines of a table; runs that differ by their seed are one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax.evaluation.intervals import Interval
from dpo_jax.evaluation.records import BestOf, Evaluation, Place, Quality, Settings, Trial

Figure = tuple[float | None, Interval | None]


class Measure(NamedTuple):
    """One figure of an evaluation, None where it was not measured, with its interval."""

    unit: str  # share, nats, or none
    read: Callable[[Evaluation], Figure]


MEASURES: dict[str, Measure] = {
    "positive before": Measure("share", lambda of: (of.judged.reference.positive, of.judged.reference.interval)),
    "judged positive": Measure("share", lambda of: (of.judged.policy.positive, of.judged.policy.interval)),
    "mean score": Measure("", lambda of: (of.judged.policy.score, of.judged.policy.score_interval)),
    "reward before": Measure("", lambda of: (of.judged.reference.reward, of.judged.reference.interval)),
    "mean reward": Measure("", lambda of: (of.judged.policy.reward, of.judged.policy.interval)),
    "win rate": Measure("share", lambda of: (of.judged.win_rate, of.judged.win_rate_interval)),
    "sequence KL": Measure("nats", lambda of: (of.kl.exact, of.kl.exact_interval)),
    "held-out accuracy": Measure("share", lambda of: (of.heldout.accuracy, of.heldout.accuracy_interval)),
    "held-out margin": Measure("nats", lambda of: (of.heldout.margin, of.heldout.margin_interval)),
    "chosen moved": Measure("nats", lambda of: (of.heldout.moved.chosen.mean, of.heldout.moved.chosen.interval)),
    "rejected moved": Measure("nats", lambda of: (of.heldout.moved.rejected.mean, of.heldout.moved.rejected.interval)),
    "chosen perplexity": Measure("", lambda of: (of.heldout.perplexity.policy, None)),
    "class seen before": Measure("share", lambda of: (of.classes.reference.share, of.classes.reference.interval)),
    "class seen": Measure("share", lambda of: (of.classes.policy.share, of.classes.policy.interval)),
    "flicker before": Measure("", lambda of: (of.metrics.get("flicker", Quality()).reference, None)),
    "flicker": Measure("", lambda of: (of.metrics.get("flicker", Quality()).policy, None)),
    "denoising error": Measure("", lambda of: (of.heldout.errors.policy, None)),
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


def across_seeds(values: Sequence[float]) -> tuple[float, Interval]:
    """The mean of one figure of several runs, and its 95 % interval by Student's t; of one run that is all numbers.

    Raises:
        ValueError: there is no run.
    """
    if not values:
        raise ValueError("no runs, and so no mean")
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, (-math.inf, math.inf)
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, (mean - half, mean + half)


def lines_of(trials: Sequence[Trial]) -> list[Line]:
    """One line for all seeds of a setting, in the order of the first; runs that failed are left out."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.failed is None:
            groups.setdefault(json.dumps(_without_seed(trial)), []).append(trial)
    return [
        Line(_without_seed(group[0]), len(group), _measures([trial.evaluation for trial in group]), _curve(group[0]))
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


def _by_field(evaluation: Evaluation, coordinates: str) -> Place:
    return evaluation.halves.predicted.get(coordinates) or Place()
