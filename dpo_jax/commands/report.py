"""The report of a run, from what is on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_jax.errors import UserError
from dpo_jax.evaluation.seeds import Line, best_of_lines, lines_of
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import read_json, read_json_lines, write_atomic
from dpo_jax.reading import read_yaml
from dpo_jax.reporting.report import RunReport, render
from dpo_jax.runs.history import read_history, session
from dpo_jax.runtime.progress import say


def run(experiment: TextExperiment) -> None:
    """Writes WORKDIR/report.html."""
    write_atomic(experiment.workdir / "report.html", render(gather(experiment)))
    say("report", f"wrote {experiment.workdir / 'report.html'}")


def gather(experiment: TextExperiment) -> RunReport:
    """All that is known of the run of a configuration."""
    return read_run(experiment.workdir, experiment.sft_folder, unknown=session(experiment.command))


def read_run(workdir: Path, sft_folder: Path, *, unknown: Mapping[str, Any]) -> RunReport:
    """All that is known of a run; `unknown` is the session that is told of where the training noted none.

    Raises:
        UserError: nothing was trained there.
    """
    found = whatever_trained(workdir, sft_folder, unknown=unknown)
    return RunReport(
        **found,
        analysis=known(workdir / "analysis.json"),
        fitted=known(workdir / "fitted.json"),
        data=known(workdir / "data.json") or (),
        frontier=_frontier(found["evaluation"] or {}),
    )


def whatever_trained(workdir: Path, sft_folder: Path, *, unknown: Mapping[str, Any]) -> dict[str, Any]:
    """What reports of texts and of pictures say alike; `unknown` as for `read_run`, which says what is raised."""
    metrics, sft_metrics = (metric_rows(folder) for folder in (workdir, sft_folder))
    if not metrics and not sft_metrics:
        raise UserError(f"{workdir}: no metrics yet; run `dpo-jax train` first.")
    sessions = read_history(workdir) or read_history(sft_folder) or [unknown]
    return dict(
        title=workdir.name or str(workdir),
        command=_commands(sessions),
        created=sessions[-1]["date"],
        environment=sessions[-1]["environment"],
        # What made it, not what is asked now.
        config=read_yaml(workdir / "config.yaml")[0],
        metrics=metrics,
        sft_metrics=sft_metrics,
        evaluation=known(workdir / "evaluation.json"),
    )


def _frontier(evaluation: Mapping[str, Any]) -> list[Line]:
    if not evaluation.get("best_of"):
        return []
    (line,) = lines_of([{"settings": {"run": "this run"}, "evaluation": evaluation}])
    return [line, *best_of_lines(evaluation["best_of"], line)]


def _commands(sessions: Sequence[Mapping[str, Any]]) -> str:
    if len(sessions) == 1:
        return sessions[0]["command"]
    return "\n".join(f"{each['command']}    # {each['date']}, from step {each['from_step']}" for each in sessions)


def known(path: Path) -> Any:
    """What a JSON file says; None where it is not there."""
    return read_json(path) if path.exists() else None


def metric_rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of the metrics that a training wrote there; none where there are none."""
    path = folder / "metrics.jsonl"
    rows = read_json_lines(path) if path.exists() else []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("step"), int):
            raise UserError(f"{path}, line {number}: damaged: not a row of metrics. Mend or remove this line.")
    return rows
