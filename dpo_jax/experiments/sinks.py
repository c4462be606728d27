"""Sinks for the metrics of a training: a file and TensorBoard always, W&B where the configuration names it."""

from __future__ import annotations

from pathlib import Path

import jax

from dpo_jax.config import as_mapping
from dpo_jax.experiments.experiment import Experiment
from dpo_jax.reading import mistake
from dpo_jax.runs.run import Run
from dpo_jax.training.metrics import JsonlSink, Sink, TensorBoardSink, WandbSink


def check_sinks(experiment: Experiment) -> None:
    """Miss a package now, as a UserError, rather than after the reference pass."""
    if not experiment.config.logging.wandb or jax.process_index():
        return
    try:
        import wandb  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        says = "the package wandb is not installed; run `pip install wandb`, or leave this out."
        raise mistake("logging.wandb", experiment.origins, says) from None


def open_sinks(experiment: Experiment, stage: str, folder: Path, *, resume_step: int | None) -> list[Sink]:
    """One process writes the metrics; every process has the same ones."""
    if jax.process_index():
        return []
    remote = _wandb(experiment, stage, folder, resume_step)  # before a file is opened: it may be refused
    return [
        JsonlSink(Run(folder).metrics, resume_step=resume_step),
        TensorBoardSink(Run(folder).tensorboard, resume_step=resume_step),
        *remote,
    ]


def _wandb(experiment: Experiment, stage: str, folder: Path, resume_step: int | None) -> list[Sink]:
    project = experiment.config.logging.wandb
    if not project:
        return []
    check_sinks(experiment)
    group, config = experiment.workdir.name or str(experiment.workdir), as_mapping(experiment.config)
    try:
        return [WandbSink(folder, project=project, group=group, stage=stage, config=config, resume_step=resume_step)]
    except ConnectionError as error:
        raise mistake("logging.wandb", experiment.origins, str(error)) from None
