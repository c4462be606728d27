"""The report of a run on pictures or clips, from what is on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from dpo_jax.errors import UserError
from dpo_jax.files import write_atomic
from dpo_jax.reporting.pictures import PictureReport, render
from dpo_jax.stages.history import read_history, session
from dpo_jax.stages.pictures.setup import PictureSetup
from dpo_jax.stages.progress import say
from dpo_jax.stages.report import commands, known, metric_rows


def run(setup: PictureSetup, *, compare: list[str] | None = None) -> None:
    """Writes WORKDIR/report.html."""
    if compare:
        raise UserError("command line: --compare is of experiments on texts.")
    workdir, sft = setup.workdir, setup.sft_folder
    metrics, sft_metrics, scorer_metrics = (metric_rows(folder) for folder in (workdir, sft, workdir / "reward"))
    if not metrics and not sft_metrics:
        raise UserError(f"{workdir}: no metrics yet; run `dpo-jax train` first.")
    sessions = read_history(workdir) or read_history(sft) or [session(setup)]
    found = PictureReport(
        title=workdir.name or str(workdir),
        command=commands(sessions),
        created=sessions[-1]["date"],
        environment=sessions[-1]["environment"],
        config=yaml.safe_load((workdir / "config.yaml").read_text(encoding="utf8")),
        metrics=metrics,
        sft_metrics=sft_metrics,
        scorer_metrics=scorer_metrics,
        evaluation=known(workdir / "evaluation.json"),
        scorer=(known(workdir / "reward" / "evaluation.json") or {}).get("heldout"),
        samples=_samples(workdir / "samples.npz"),
        shown=setup.config.evaluation.shown,
    )
    write_atomic(workdir / "report.html", render(found))
    say("report", f"wrote {workdir / 'report.html'}")


def _samples(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
