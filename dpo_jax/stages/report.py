"""The report of a run, from what is on disk."""

from __future__ import annotations

import datetime
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import yaml

from dpo_jax import __version__
from dpo_jax.errors import UserError
from dpo_jax.files import read_json, write_atomic
from dpo_jax.reporting.report import RunReport, render
from dpo_jax.stages.progress import say
from dpo_jax.stages.setup import Setup


def run(setup: Setup) -> None:
    """Writes WORKDIR/report.html."""
    write_atomic(setup.workdir / "report.html", render(gather(setup)))
    say("report", f"wrote {setup.workdir / 'report.html'}")


def gather(setup: Setup) -> RunReport:
    """All that is known of a run."""
    workdir = setup.workdir
    metrics = _rows(workdir / "metrics.jsonl")
    sft_metrics = _rows(setup.sft_folder / "metrics.jsonl")
    if not metrics and not sft_metrics:
        raise UserError(f"{workdir}: no metrics yet; run `dpo-jax train` first.")
    evaluation, analysis = workdir / "evaluation.json", workdir / "analysis.json"
    return RunReport(
        title=workdir.name or str(workdir),
        command=setup.command,
        created=datetime.date.today().isoformat(),
        environment=_environment(),
        config=yaml.safe_load(
            (workdir / "config.yaml").read_text(encoding="utf8")
        ),  # what made it, not what is asked now
        metrics=metrics,
        sft_metrics=sft_metrics,
        evaluation=read_json(evaluation) if evaluation.exists() else None,
        analysis=read_json(analysis) if analysis.exists() else None,
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()] if path.exists() else []


def _environment() -> dict[str, str]:
    devices = jax.devices()
    return {
        "dpo_jax": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "transformers")},
        "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "platform": platform.platform(),
    }
