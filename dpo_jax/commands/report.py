"""The pages of a run, of several runs beside one another, and of the data, from what is on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpo_jax.config import load
from dpo_jax.config.resume import deciding
from dpo_jax.errors import UserError, printable
from dpo_jax.evaluation.analysis import Analysis
from dpo_jax.evaluation.records import Evaluation, Fitted, Trial
from dpo_jax.evaluation.seeds import Line, best_of_lines, lines_of
from dpo_jax.experiments.data_reports import keep
from dpo_jax.experiments.steps import Steps
from dpo_jax.files import read_json, read_json_lines, write_atomic
from dpo_jax.reading import read_yaml
from dpo_jax.reporting.comparison import Comparison, render_comparison
from dpo_jax.reporting.data import SplitReport, as_html, as_text
from dpo_jax.reporting.report import TEXTS, RunReport, render
from dpo_jax.runs.run import Run, read_history, session
from dpo_jax.runtime.progress import say


def run(experiment: Steps, *, compare: Sequence[str] | None = None) -> None:
    """Write WORKDIR/report.html, or, with other runs to compare, WORKDIR/comparison.html."""
    if compare:
        _compare(experiment, compare)
        return
    path = experiment.run.report
    write_atomic(path, render(gather(experiment)))
    say("report", f"wrote {path}")


def check_data(experiment: Steps) -> None:
    """Say what is in the rows of each split and what is odd about it, and write WORKDIR/data.html and data.json."""
    experiment.check_inputs()
    reports = experiment.data_reports()
    keep(experiment.workdir, reports)
    print("\n".join(map(printable, as_text(reports))))
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
    evaluation, analysis, of_reward = _evaluation(run), _analysis(run.analysis), _evaluation(run.reward)
    measured = ((run, run.evaluation, evaluation), (run, run.analysis, analysis))
    measured = (*measured, (run.reward, run.reward.evaluation, of_reward))
    return RunReport(
        title=run.name,
        command=_commands(sessions),
        created=sessions[-1]["date"],
        environment=sessions[-1]["environment"],
        # What made it, not what is asked now.
        config=read_yaml(run.config),
        metrics=metrics,
        sft_metrics=sft_metrics,
        reward_metrics=_metric_rows(run.reward.folder),
        evaluation=evaluation,
        reward=of_reward.heldout,
        analysis=analysis,
        fitted=Fitted.from_json(_known(run.fitted) or {}, where=str(run.fitted)),
        data=read_splits(run),
        frontier=_frontier(evaluation),
        outdated=[words for each in measured if (words := _outdated(*each))],
        pictures=_pictures(run.samples_arrays, evaluation),
    )


def read_splits(run: Run) -> list[SplitReport]:
    """The data as they were checked before the training; none where nobody did."""
    return [SplitReport(**split) for split in _known(run.data) or ()]


def _evaluation(run: Run) -> Evaluation:
    """The evaluation of a run; an empty one where there is none."""
    return Evaluation.from_json(_known(run.evaluation) or {}, where=str(run.evaluation))


def _analysis(path: Path) -> Analysis | None:
    """The analysis of a run; None where there is none."""
    return Analysis.from_json(read_json(path), where=str(path)) if path.exists() else None


def _outdated(run: Run, path: Path, measured: Evaluation | Analysis | None) -> str:
    """A sentence about what was measured of other weights than the newest of a training; empty where it was not.

    A training whose checkpoints were deleted is known by its last logged step.
    """
    if not measured or measured.step is None:
        return ""
    newest = run.newest_checkpoint()
    last = newest.step if newest else max((row["step"] for row in _metric_rows(run.folder)), default=measured.step)
    if measured.step == last and (newest is None or measured.checkpoint in (None, newest.digest)):
        return ""
    now = f"step {last}" if measured.step != last else f"another step {last}, trained since"
    command = "analyse" if isinstance(measured, Analysis) else "evaluate"
    return (
        f"{path.name} is of step {measured.step}, but the training has come to {now}: it says nothing of those "
        f"weights; run `dpo-jax {command}` again."
    )


def _pictures(path: Path, evaluation: Evaluation) -> dict[str, np.ndarray] | None:
    """The samples that the evaluation looked at."""
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        pictures = dict(arrays)
    other = "checkpoint" in pictures and str(pictures["checkpoint"]) != evaluation.checkpoint
    return None if other else pictures


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


_MOST_RUNS = 12
"""Lines of a plot that can be told apart."""


def _compare(experiment: Steps, others: Sequence[str]) -> None:
    """Write WORKDIR/comparison.html: the run of the configuration beside others, working directories or experiments.

    Raises:
        UserError: one is no run, or has not been evaluated; they are too many, or of pictures.
    """
    if experiment.report_kind is not TEXTS:
        raise UserError("command line: --compare is of experiments on texts.")
    # What has been fine-tuned for this run may lie elsewhere; the others have their own.
    folders = [experiment.workdir, *(_workdir(text) for text in others)]
    sft_folders = [experiment.sft_folder, *(Run(folder).sft.folder for folder in folders[1:])]
    unknown = {**session(experiment.command), "command": "not noted", "environment": {}}
    runs = {
        label: read_run(_evaluated(folder, like=folders[0]), sft_folder, unknown=unknown)
        for label, folder, sft_folder in zip(_labels(folders), folders, sft_folders, strict=True)
    }
    for folder, report in zip(folders, runs.values(), strict=True):
        if words := _outdated(Run(folder), Run(folder).evaluation, report.evaluation):
            raise UserError(f"{folder}: {words}")
    if len(runs) > _MOST_RUNS:
        raise UserError(f"command line: --compare: {len(runs)} runs; a plot tells {_MOST_RUNS} apart at most.")
    table = _settings(runs)
    # A seed belongs to what differs, whether or not it does: `lines_of` leaves it out.
    trials = [
        Trial(label=name, settings={key: values[place] for key, values in table.items()}, evaluation=report.evaluation)
        for place, (name, report) in enumerate(runs.items())
    ]
    lines = lines_of([dataclasses.replace(trial, settings={"run": trial.label}) for trial in trials])
    means = [line for line in lines_of(trials) if line.runs > 1]
    rows = [(key, *values) for key, values in table.items()]
    path = experiment.run.comparison
    write_atomic(path, render_comparison(Comparison(experiment.command, runs, lines, means, rows)))
    say("report", f"wrote {path}")


def _workdir(text: str) -> Path:
    """The working directory that is named, or that of an experiment file."""
    path = Path(text)
    if path.is_dir():
        return path
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"command line: --compare {text}: there is no such working directory, and it is no .yaml file.")
    return Path(load(text)[0].workdir)


def _labels(folders: Sequence[Path]) -> list[str]:
    """The names of the folders, or their paths where the names say too little."""
    for number, folder in enumerate(folders):
        if any(folder.resolve() == before.resolve() for before in folders[:number]):
            raise UserError(f"command line: --compare: {folder} is named twice.")
    names = [folder.name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _evaluated(folder: Path, *, like: Path) -> Path:
    """The folder of a run that has been evaluated; `like` is one, for messages."""
    if not Run(folder).is_trained:
        raise UserError(
            f"{folder}: is no run: there is no config.yaml with a metrics.jsonl. Name the workdir of a run, such as "
            f"{like}, or train it first."
        )
    if not Run(folder).evaluation.exists():
        raise UserError(
            f"{folder}: the run has no evaluation yet; run `dpo-jax evaluate` with its configuration first."
        )
    return folder


def _settings(runs: Mapping[str, RunReport]) -> dict[str, list[str]]:
    """The settings that decide a training and are not the same in all runs: dotted key -> the value in each."""
    of_runs = [deciding("train", run.config) for run in runs.values()]
    keys = dict.fromkeys(key for settings in of_runs for key in settings)
    table = {key: [str(settings.get(key, "default")) for settings in of_runs] for key in keys}
    return {key.replace("loss.0.", "loss."): values for key, values in table.items() if len(set(values)) > 1}
