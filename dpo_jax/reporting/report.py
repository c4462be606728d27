"""The report of a run: one HTML file that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.reporting import numbers
from dpo_jax.reporting.analysis import analysis_section
from dpo_jax.reporting.page import page
from dpo_jax.reporting.plots import PREFERENCE_PLOTS, SFT_PLOTS, SMOOTH_FROM_ROWS, draw
from dpo_jax.reporting.results import Evaluation, part, result_rows
from dpo_jax.reporting.samples import before_and_after
from dpo_jax.reporting.series import Rows, broken_steps, series
from dpo_jax.reporting.sweep import Line
from dpo_jax.reporting.sweep import draw as draw_frontier
from dpo_jax.reporting.tables import benchmark_table, data_table, heldout_table, judged_table, samples_table
from dpo_jax.reporting.verdict import verdict

SHOWN_SAMPLES = 6


class RunReport(NamedTuple):
    """All that a report says of a run, as plain data; lists may be empty and any part of `evaluation` missing.

    `metrics` and `sft_metrics` are rows of metrics.jsonl, `created` an ISO date. `evaluation` holds

        heldout: pairs, accuracy, accuracy_interval, margin (nats), loss, calibration, by_length, by_source
        kl: sequence_kl (nats), interval, samples, and exact, k1, k2, k3 (each with _interval)
        judged: judge, samples, win_rate (with _interval), wins, ties, losses, length_controlled (win_rate with
            _interval); by scores with a neutral value reference and policy (each positive, interval), difference (with
            _interval); by other scores reference and policy (each reward, interval), reward_difference (with
            _interval); of a judge that compares order (flipped, first_preferred, and policy_first and policy_second,
            each with _interval) and usage
        entropy: token; tokens with tokens_interval; texts: policy and reference, each as `describe_texts` has it
        rewardbench: policy and judge, each accuracy and sections
        samples: a list of prompt, reference, policy and, where judged, reference_score and policy_score, or verdict

    `analysis` is what `dpo-jax analyse` wrote. `fitted` says how the training began: responses, perplexity and, after
    fine-tuning, before_fine_tuning and fitted. `data` holds of each split name, facts (what, count as text, whether it
    is odd), percentiles and lengths (name, token counts there). `frontier` are this run and the best of n responses of
    its reference, where those were measured.
    """

    title: str
    command: str
    created: str
    environment: Mapping[str, str]
    config: Mapping[str, Any]
    metrics: Rows
    sft_metrics: Rows = ()
    evaluation: Evaluation | None = None
    analysis: Mapping[str, Any] | None = None
    fitted: Mapping[str, Any] | None = None
    data: Sequence[Mapping[str, Any]] = ()
    frontier: Sequence[Line] = ()


def render(run: RunReport) -> str:
    """The report as HTML text. The same run gives the same bytes."""
    import yaml

    tables = (judged_table, samples_table, heldout_table, benchmark_table)
    return page(
        "report.html.jinja",
        run=run,
        verdict=verdict(run.evaluation, run.metrics, fitted=run.fitted, data=run.data),
        results=result_rows(run.evaluation),
        tables=[found for make in tables if (found := make(run.evaluation))],
        frontier=draw_frontier(run.frontier),
        summary=f"{training_summary(run.metrics)} {fitted_summary(run.fitted)}",
        hints=_reading_hints(run.metrics),
        sections=[
            ("Preference training", draw(PREFERENCE_PLOTS, run.metrics, prefix="preference")),
            ("Supervised fine-tuning", draw(SFT_PLOTS, run.sft_metrics, prefix="sft")),
        ],
        analysis=analysis_section(run.analysis),
        samples=before_and_after(part(run.evaluation, "samples") or []),
        shown_samples=SHOWN_SAMPLES,
        data=data_table(run.data),
        config=yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True, width=100),
    )


def training_summary(rows: Rows) -> str:
    """One line: steps, loss from first to last, median throughput."""
    if not rows:
        return "No steps were logged."
    facts = [f"Up to step {int(rows[-1]['step']):,}"]
    _, losses = series(rows, "loss")
    if len(losses):
        facts.append(f"loss {numbers.plain(losses[0])} at first, {numbers.plain(losses[-1])} at last")
    for name, unit in (("tokens_per_second", "tokens/s"), ("pairs_per_second", "pairs/s")):
        _, rates = series(rows, name)
        if len(rates):
            facts.append(f"{numbers.plain(float(np.median(rates)))}{numbers.GAP}{unit}")
    return " · ".join(facts) + "."


def fitted_summary(fitted: Mapping[str, Any] | None) -> str:
    """One sentence: how likely chosen responses were where the training began; empty where nobody measured that."""
    if fitted is None:
        return ""
    before = fitted.get("before_fine_tuning")
    tuned = f", {numbers.plain(before)} before fine-tuning" if before is not None else " (there was no fine-tuning)"
    return (
        f"It began with a perplexity of {numbers.plain(fitted['perplexity'])} a token on {fitted['responses']} chosen "
        f"responses{tuned}."
    )


def _reading_hints(rows: Rows) -> str:
    hints = ["Thin lines are logged steps, strong ones running means."] if len(rows) >= SMOOTH_FROM_ROWS else []
    hints += ["Upright lines mark NaN or infinite values."] if broken_steps(rows) else []
    return " ".join(hints)
