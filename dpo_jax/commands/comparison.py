"""Several runs beside one another, from what is on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dpo_jax.commands.report import read_run
from dpo_jax.config import load
from dpo_jax.errors import UserError
from dpo_jax.evaluation.seeds import lines_of
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.files import write_atomic
from dpo_jax.reporting.comparison import Comparison, render_comparison
from dpo_jax.reporting.report import RunReport
from dpo_jax.runs.history import session
from dpo_jax.runs.resume import deciding
from dpo_jax.runtime.progress import say

_MOST_RUNS = 12
"""Lines of a plot that can be told apart."""


def run(experiment: TextExperiment, others: Sequence[str]) -> None:
    """Writes WORKDIR/comparison.html: the run of the configuration beside others, working directories or experiments.

    Raises:
        UserError: one is no run, or has not been evaluated; or they are too many.
    """
    runs = _named([experiment.workdir, *(_workdir(text) for text in others)], experiment)
    if len(runs) > _MOST_RUNS:
        raise UserError(f"command line: --compare: {len(runs)} runs; a plot tells {_MOST_RUNS} apart at most.")
    table = _settings(runs)
    # A seed belongs to what differs, whether or not it does: `lines_of` leaves it out.
    results = [
        {"settings": {key: values[place] for key, values in table.items()}, "evaluation": report.evaluation}
        for place, report in enumerate(runs.values())
    ]
    lines = lines_of([{**each, "settings": {"run": name}} for name, each in zip(runs, results, strict=True)])
    means = [line for line in lines_of(results) if line.runs > 1]
    rows = [(key, *values) for key, values in table.items()]
    path = experiment.workdir / "comparison.html"
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


def _named(folders: Sequence[Path], experiment: TextExperiment) -> dict[str, RunReport]:
    """The runs, each by the name of its folder, or by its path where the name says too little."""
    for number, folder in enumerate(folders):
        if any(folder.resolve() == before.resolve() for before in folders[:number]):
            raise UserError(f"command line: --compare: {folder} is named twice.")
    names = [folder.name for folder in folders]
    labels = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    return {label: _evaluated(folder, experiment) for label, folder in zip(labels, folders, strict=True)}


def _evaluated(folder: Path, experiment: TextExperiment) -> RunReport:
    if not (folder / "config.yaml").exists() or not (folder / "metrics.jsonl").exists():
        raise UserError(
            f"{folder}: is no run: there is no config.yaml with a metrics.jsonl. Name the workdir of a run, such as "
            f"{experiment.workdir}, or train it first."
        )
    if not (folder / "evaluation.json").exists():
        raise UserError(
            f"{folder}: the run has no evaluation yet; run `dpo-jax evaluate` with its configuration first."
        )
    sft_folder = experiment.sft_folder if folder == experiment.workdir else folder / "sft"
    return read_run(
        folder, sft_folder, unknown={**session(experiment.command), "command": "not noted", "environment": {}}
    )


def _settings(runs: Mapping[str, RunReport]) -> dict[str, list[str]]:
    """What decides a training and is not the same in all runs: dotted key -> its value in each."""
    found = [deciding("train", run.config) for run in runs.values()]
    keys = dict.fromkeys(key for each in found for key in each)
    table = {key: [str(each.get(key, "default")) for each in found] for key in keys}
    return {key.replace("loss.0.", "loss."): values for key, values in table.items() if len(set(values)) > 1}
