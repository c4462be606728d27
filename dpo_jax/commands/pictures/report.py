"""The report of a run on pictures or clips, from what is on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpo_jax.commands.report import known, metric_rows, whatever_trained
from dpo_jax.errors import UserError
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.files import write_atomic
from dpo_jax.reporting.pictures import PictureReport, render
from dpo_jax.runs.history import session
from dpo_jax.runtime.progress import say


def run(experiment: PictureExperiment, *, compare: list[str] | None = None) -> None:
    """Writes WORKDIR/report.html."""
    if compare:
        raise UserError("command line: --compare is of experiments on texts.")
    workdir = experiment.workdir
    found = PictureReport(
        **whatever_trained(workdir, experiment.sft_folder, unknown=session(experiment.command)),
        scorer_metrics=metric_rows(workdir / "reward"),
        scorer=(known(workdir / "reward" / "evaluation.json") or {}).get("heldout"),
        samples=_samples(workdir / "samples.npz"),
        shown=experiment.config.evaluation.shown,
    )
    write_atomic(workdir / "report.html", render(found))
    say("report", f"wrote {workdir / 'report.html'}")


def _samples(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
