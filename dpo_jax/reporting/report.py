"""The report of a run, of texts or of pictures: one HTML file that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.evaluation.analysis import Analysis
from dpo_jax.evaluation.records import Evaluation, Fitted, Heldout
from dpo_jax.reporting import numbers, plots
from dpo_jax.reporting.analysis import analysis_section
from dpo_jax.reporting.data import SplitReport, shared_rows
from dpo_jax.reporting.page import page
from dpo_jax.reporting.pictures import Arrays, histograms, shown_samples
from dpo_jax.reporting.plots import SMOOTH_FROM_ROWS, Plot, Rows, broken_steps, series
from dpo_jax.reporting.samples import before_and_after
from dpo_jax.reporting.sweep import Line
from dpo_jax.reporting.sweep import draw as draw_frontier
from dpo_jax.reporting.tables import (
    benchmark_table,
    data_table,
    heldout_table,
    judged_table,
    result_rows,
    samples_table,
)
from dpo_jax.reporting.verdict import Verdict, verdict

SHOWN_SAMPLES = 6


class Kind(NamedTuple):
    """The names and the curves of the trainings of a kind of run."""

    preference_plots: tuple[Plot, ...]
    start: str
    start_plots: tuple[Plot, ...]
    reward: str


TEXTS = Kind(plots.PREFERENCE_PLOTS, "Supervised fine-tuning", plots.SFT_PLOTS, "Reward model")
PICTURES = Kind(plots.PICTURE_PLOTS, "Pre-training", plots.PRETRAINING_PLOTS, "Scorer")


class RunReport(NamedTuple):
    """All that a report says of a run, as plain data; lists may be empty and any part of `evaluation` missing.

    `metrics`, `sft_metrics` and `reward_metrics` are rows of metrics.jsonl, `created` an ISO date. `reward` is the
    held-out accuracy of the run's reward model. `analysis` is what `dpo-jax analyse` wrote. `frontier` are this run and
    the best of n responses of its reference, where those were measured. `outdated` says, a sentence each, which of them
    are of other weights than those of the newest checkpoint. Of sampled pictures the page shows the first
    `shown`.
    """

    title: str
    command: str
    created: str
    environment: Mapping[str, str]
    config: Mapping[str, Any]
    metrics: Rows
    sft_metrics: Rows = ()
    reward_metrics: Rows = ()
    evaluation: Evaluation = Evaluation()
    reward: Heldout = Heldout()
    analysis: Analysis | None = None
    fitted: Fitted = Fitted()
    data: Sequence[SplitReport] = ()
    frontier: Sequence[Line] = ()
    outdated: Sequence[str] = ()
    pictures: Arrays | None = None
    shown: int = 0
    kind: Kind = TEXTS


def render(run: RunReport) -> str:
    """The report as HTML text. The same run gives the same bytes."""
    from dpo_jax.reading import as_yaml

    kind = run.kind
    tables = (make(run.evaluation) for make in (judged_table, samples_table, heldout_table, benchmark_table))
    return page(
        "report.html.jinja",
        run=run,
        verdict=verdict_of(run),
        results=result_rows(run.evaluation, run.reward, reward_name=kind.reward, shared=shared_rows(run.data)),
        tables=[table for table in tables if table],
        histograms=histograms(run.pictures or {}),
        frontier=draw_frontier(run.frontier),
        pictures=shown_samples(run.pictures or {}, run.shown),
        summary=f"{training_summary(run.metrics)} {fitted_summary(run.fitted)}",
        hints=_reading_hints(run.metrics),
        sections=[
            ("Preference training", plots.draw(kind.preference_plots, run.metrics, prefix="preference")),
            (kind.start, plots.draw(kind.start_plots, run.sft_metrics, prefix="sft")),
            (kind.reward, plots.draw(plots.REWARD_PLOTS, run.reward_metrics, prefix="reward")),
        ],
        analysis=analysis_section(run.analysis),
        samples=before_and_after(run.evaluation.samples),
        shown_samples=SHOWN_SAMPLES,
        data=data_table(run.data),
        config=as_yaml(dict(run.config), width=100),
    )


def verdict_of(run: RunReport) -> Verdict:
    """The verdict of a run."""
    return verdict(run.evaluation, run.metrics, fitted=run.fitted, data=run.data, outdated=run.outdated)


def training_summary(rows: Rows) -> str:
    """One line: steps, the loss at both ends where enough steps were logged to tell, median throughput."""
    if not rows:
        return "No steps were logged."
    facts = [f"Up to step {int(rows[-1]['step']):,}"]
    if both := plots.windows(series(rows, "loss")[1]):
        first, last = (window.words(numbers.plain) for window in both)
        facts.append(f"loss {first} over the first {both[0].steps} logged steps, {last} over the last {both[1].steps}")
    for name, unit in (("tokens_per_second", "tokens/s"), ("pairs_per_second", "pairs/s")):
        _, rates = series(rows, name)
        if len(rates):
            facts.append(f"{numbers.plain(float(np.median(rates)))}{numbers.GAP}{unit}")
    return " · ".join(facts) + "."


def fitted_summary(fitted: Fitted) -> str:
    """One sentence: how likely chosen responses were where the training began; empty where nobody measured that."""
    if fitted.perplexity is None:
        return ""
    before = fitted.before_fine_tuning
    tuned = " (there was no fine-tuning)" if before is None else f", {numbers.plain(before)} before fine-tuning"
    bounds = fitted.perplexity_interval
    spread = f" (95{numbers.GAP}% interval {numbers.interval(bounds, numbers.plain)})" if bounds else ""
    return (
        f"It began with a perplexity of {numbers.plain(fitted.perplexity)} a token on {fitted.responses} chosen "
        f"responses{spread}{tuned}."
    )


def _reading_hints(rows: Rows) -> str:
    hints = ["Thin lines are logged steps, strong ones running means."] if len(rows) >= SMOOTH_FROM_ROWS else []
    hints += ["Upright lines mark NaN or infinite values."] if broken_steps(rows) else []
    return " ".join(hints)
