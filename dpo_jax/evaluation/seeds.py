"""What several runs say together: a table of their evaluations, runs that differ by their seed as one line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.evaluation.intervals import Interval

MEASURES: dict[str, tuple[tuple[str, ...], str]] = {
    "positive before": (("judged", "reference", "positive"), "interval"),
    "judged positive": (("judged", "policy", "positive"), "interval"),
    "mean score": (("judged", "policy", "score"), "score_interval"),
    "reward before": (("judged", "reference", "reward"), "interval"),
    "mean reward": (("judged", "policy", "reward"), "interval"),
    "win rate": (("judged", "win_rate"), "win_rate_interval"),
    "sequence KL": (("kl", "exact"), "exact_interval"),
    "held-out accuracy": (("heldout", "accuracy"), "accuracy_interval"),
    "held-out margin": (("heldout", "margin"), "margin_interval"),
    "chosen moved": (("heldout", "moved", "chosen", "mean"), "interval"),
    "rejected moved": (("heldout", "moved", "rejected", "mean"), "interval"),
    "chosen perplexity": (("heldout", "perplexity", "policy"), ""),
    "class seen before": (("classes", "reference", "share"), "interval"),
    "class seen": (("classes", "policy", "share"), "interval"),
    "flicker before": (("metrics", "flicker", "reference"), ""),
    "flicker": (("metrics", "flicker", "policy"), ""),
    "denoising error": (("heldout", "errors", "policy"), ""),
    "chosen in training": (("halves", "measured", "chosen"), ""),
    "rejected in training": (("halves", "measured", "rejected"), ""),
    "rejected by the field of log-probs": (("halves", "predicted", "logp", "rejected"), ""),
    "rejected by the field of probabilities": (("halves", "predicted", "probability", "rejected"), ""),
}
"""Name -> where evaluation.json has it, and the name of its interval beside it; `halves` is of analysis.json."""


class Line(NamedTuple):
    """Runs with the same settings but for the seed: of each measure the mean and its 95 % interval, if it has one."""

    settings: Mapping[str, Any]
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


def lines_of(results: Sequence[Mapping[str, Any]]) -> list[Line]:
    """One line for all seeds of a setting, in the order of the first; runs that failed are left out.

    Args:
        results: of each run `settings` (dotted key -> value) and, if it did not fail, `evaluation`.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        if "evaluation" in result:
            groups.setdefault(json.dumps(_without_seed(result)), []).append(result)
    return [
        Line(
            _without_seed(group[0]),
            len(group),
            _measures([result["evaluation"] for result in group]),
            _curve(group[0]),
        )
        for group in groups.values()
    ]


def best_of_lines(table: Sequence[Mapping[str, Any]], beside: Line) -> list[Line]:
    """The same of `best_of_table` and `soft_best_of_table`, whose KL is a bound, with the columns of another line."""
    measure = "mean reward" if "mean reward" in beside.measures else "mean score"
    lines = []
    for row in table:
        kind = "soft best of" if "beta" in row else "best of"
        name = f"{kind} {row['n']} (KL: at most)"
        settings = {key: "" if place else name for place, key in enumerate(beside.settings or ["seed"])}
        if "beta" in row:
            settings |= {key: f"{row['beta']:.3g}" for key, at in settings.items() if key.endswith(".beta") and not at}
        measures = {measure: (row["score"], tuple(row["interval"])), "sequence KL": (row["kl"], None)}
        lines.append(Line(settings, 1, measures, f"{kind} n"))
    return lines


def _curve(result: Mapping[str, Any]) -> str:
    """The losses, where they vary, every other setting that is text, and the names of those that are switched on."""
    named = _without_seed(result)
    losses = [term["name"] for term in result.get("config", {}).get("loss", ())]
    words = [" + ".join(losses)] if losses and any(key.startswith("loss") for key in named) else []
    words += [value for value in named.values() if isinstance(value, str) and value not in losses]
    words += [key.rpartition(".")[2] for key, value in named.items() if value is True]
    return " ".join(dict.fromkeys(words))


def _without_seed(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result["settings"].items() if key != "seed"}


def _measures(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, Interval | None]]:
    """A single run has the interval of its own samples or pairs, several that of their spread."""
    found: dict[str, tuple[float, Interval | None]] = {}
    for name, (path, interval) in MEASURES.items():
        values = [_at(evaluation, path) for evaluation in evaluations]
        if None in values:
            continue
        if len(values) > 1:
            found[name] = across_seeds(values)
        else:
            bounds = (_at(evaluations[0], path[:-1]) or {}).get(interval)
            found[name] = (values[0], (bounds[0], bounds[1]) if bounds else None)
    return found


def _at(evaluation: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = evaluation
    for name in path:
        value = (value or {}).get(name)
    return value
