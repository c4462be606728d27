"""A grid of experiments on pictures over one pre-training and one set of pairs, each point in its own folder."""

from __future__ import annotations

from collections.abc import Sequence

from dpo_jax.commands import sweep
from dpo_jax.commands.pictures import evaluate, report, reward, train
from dpo_jax.config import as_mapping
from dpo_jax.errors import UserError
from dpo_jax.experiments.pictures import PictureExperiment
from dpo_jax.runs.resume import deciding


def run(experiment: PictureExperiment, *, grid: Sequence[str] | None, lean: bool) -> None:
    """Writes WORKDIR/sweep.json, sweep.md and sweep.html, as for texts; each point has its report."""
    if not evaluate.has_work(experiment):
        raise UserError("sweep: there is nothing to compare the points by: set evaluation.samples, or name data.eval.")
    decides = deciding("pairs", as_mapping(experiment.config))

    def run_point(point: PictureExperiment) -> None:
        if decides == deciding("pairs", as_mapping(point.config)):
            point.pairs_folder = experiment.workdir
        _run_point(point)

    sweep.run(experiment, grid=grid, lean=lean, run_point=run_point)


def _run_point(point: PictureExperiment) -> None:
    train.run(point)
    if point.config.reward:
        reward.run(point)
    evaluate.run(point)
    report.run(point)
