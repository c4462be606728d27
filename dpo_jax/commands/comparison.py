"""Several runs beside one another, from what is on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from dpo_jax.commands.report import read_run
from dpo_jax.config import load
from dpo_jax.config.resume import deciding
from dpo_jax.errors import UserError
from dpo_jax.evaluation.records import Trial
from dpo_jax.evaluation.seeds import lines_of
from dpo_jax.experiments.steps import Steps
from dpo_jax.files import write_atomic
from dpo_jax.reporting.comparison import Comparison, render_comparison
from dpo_jax.reporting.report import TEXTS, RunReport
from dpo_jax.runs.run import Run, session
from dpo_jax.runtime.progress import say

_MOST_RUNS = 12
"""Lines of a plot that can be told apart."""


def run(experiment: Steps, others: Sequence[str]) -> None:
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
