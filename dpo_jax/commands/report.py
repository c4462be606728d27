"""The page of a run, from what is on disk, and that of its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpo_jax.errors import UserError
from dpo_jax.evaluation.records import Evaluation, Fitted, Trial
from dpo_jax.evaluation.seeds import Line, best_of_lines, lines_of
from dpo_jax.experiments.data_reports import keep
from dpo_jax.experiments.steps import Steps
from dpo_jax.files import read_json, read_json_lines, write_atomic
from dpo_jax.reading import read_yaml
from dpo_jax.reporting.data import SplitReport, as_html, as_text
from dpo_jax.reporting.report import RunReport, render
from dpo_jax.runs.run import Run, read_history, session
from dpo_jax.runtime.progress import say


def run(experiment: Steps) -> None:
    """Write WORKDIR/report.html."""
    path = experiment.run.report
    write_atomic(path, render(gather(experiment)))
    say("report", f"wrote {path}")


def check_data(experiment: Steps) -> None:
    """Say what is in the rows of each split and what is odd about it, and write WORKDIR/data.html and data.json."""
    reports = experiment.data_reports()
    keep(experiment.workdir, reports)
    print("\n".join(as_text(reports)))
    path = experiment.run.data_page
    write_atomic(path, as_html(f"Data of {experiment.workdir.name}", reports))
    say("data", f"wrote {path}")


def gather(experiment: Steps) -> RunReport:
    """All that is known of the run of a configuration."""
    report = read_run(experiment.workdir, experiment.sft_folder, unknown=session(experiment.command))
    return report._replace(kind=experiment.report_kind, shown=experiment.shown_samples)


def read_run(workdir: Path, sft_folder: Path, *, unknown: Mapping[str, Any]) -> RunReport:
    """All that is known of a run; `unknown` is the session that is told of where the training noted none.

    Raises:
        UserError: nothing was trained there, or a file is damaged.
    """
    run, metrics, sft_metrics = Run(workdir), _metric_rows(workdir), _metric_rows(sft_folder)
    if not metrics and not sft_metrics:
        raise UserError(f"{workdir}: no metrics yet; run `dpo-jax train` first.")
    sessions = read_history(workdir) or read_history(sft_folder) or [unknown]
    evaluation = _evaluation(run)
    return RunReport(
        title=run.name,
        command=_commands(sessions),
        created=sessions[-1]["date"],
        environment=sessions[-1]["environment"],
        # What made it, not what is asked now.
        config=read_yaml(run.config)[0],
        metrics=metrics,
        sft_metrics=sft_metrics,
        reward_metrics=_metric_rows(run.reward.folder),
        evaluation=evaluation,
        reward=_evaluation(run.reward).heldout,
        analysis=_known(run.analysis),
        fitted=Fitted.from_json(_known(run.fitted) or {}, where=str(run.fitted)),
        data=[SplitReport(**split) for split in _known(run.data) or ()],
        frontier=_frontier(evaluation),
        pictures=_pictures(run.samples_arrays),
    )


def _evaluation(run: Run) -> Evaluation:
    """The evaluation of a run; an empty one where there is none."""
    return Evaluation.from_json(_known(run.evaluation) or {}, where=str(run.evaluation))


def _pictures(path: Path) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _frontier(evaluation: Evaluation) -> list[Line]:
    if not evaluation.best_of:
        return []
    (line,) = lines_of([Trial(label="this run", settings={"run": "this run"}, evaluation=evaluation)])
    return [line, *best_of_lines(evaluation.best_of, line)]


def _commands(sessions: Sequence[Mapping[str, Any]]) -> str:
    if len(sessions) == 1:
        return sessions[0]["command"]
    return "\n".join(f"{each['command']}    # {each['date']}, from step {each['from_step']}" for each in sessions)


def _known(path: Path) -> Any:
    """The content of a JSON file; None where it is not there."""
    return read_json(path) if path.exists() else None


def _metric_rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of the metrics that a training wrote there; none where there are none."""
    path = Run(folder).metrics
    rows = read_json_lines(path) if path.exists() else []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("step"), int):
            raise UserError(f"{path}, line {number}: damaged: not a row of metrics. Mend or remove this line.")
    return rows
