"""Several runs on one page: what each came to, one table, their curves over one another, and samples side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dpo_jax.reporting.alike import differences
from dpo_jax.reporting.page import page
from dpo_jax.reporting.plots import COMPARED_PLOTS, overlay
from dpo_jax.reporting.report import SHOWN_SAMPLES, RunReport
from dpo_jax.reporting.samples import side_by_side
from dpo_jax.reporting.sweep import Line, draw, make_table
from dpo_jax.reporting.tables import Table
from dpo_jax.reporting.verdict import verdict


class Comparison(NamedTuple):
    """Runs by their names, with a line of measures each, in their order.

    `means` are the lines of runs that differ by their seed alone, as one; empty where there are none. `settings` are
    those in which the runs differ: name, and the value in each.
    """

    command: str
    runs: Mapping[str, RunReport]
    lines: Sequence[Line]
    means: Sequence[Line]
    settings: Sequence[Sequence[str]]


def render_comparison(compared: Comparison) -> str:
    """The page as HTML text. The same runs give the same bytes."""
    runs = compared.runs
    unlike = differences(runs)
    return page(
        "comparison.html.jinja",
        title=", ".join(runs),
        command=compared.command,
        created=max(run.created for run in runs.values()),
        runs=runs,
        verdicts={
            name: verdict(run.evaluation, run.metrics, fitted=run.fitted, data=run.data) for name, run in runs.items()
        },
        unlike=unlike,
        measures_of_runs=make_table(compared.lines, []),
        means=make_table(compared.means, []) if compared.means else None,
        settings=Table("What differs between the runs", ("", *runs), compared.settings),
        frontier=None if unlike and unlike.samples else draw(compared.lines),
        drawn=overlay(COMPARED_PLOTS, {name: run.metrics for name, run in runs.items()}, prefix="compared"),
        samples=side_by_side({name: run.evaluation.samples for name, run in runs.items()}),
        shown_samples=SHOWN_SAMPLES,
    )
