"""Evaluation and report of texts and of pictures, which are still written twice."""

from __future__ import annotations

from typing import Any

from dpo_jax.commands import comparison, evaluate, report
from dpo_jax.commands.pictures import evaluate as picture_evaluate
from dpo_jax.commands.pictures import report as picture_report
from dpo_jax.experiments.steps import Steps


def evaluate_run(experiment: Steps) -> None:
    """Evaluates the newest checkpoint."""
    own: Any = experiment
    (picture_evaluate if experiment.kind == "pictures" else evaluate).run(own)


def report_run(experiment: Steps, *, compare: list[str] | None = None) -> None:
    """Writes the report, or, of several runs, the comparison."""
    own: Any = experiment
    if experiment.kind == "pictures":
        picture_report.run(own, compare=compare)
    elif compare:
        comparison.run(own, compare)
    else:
        report.run(own)
