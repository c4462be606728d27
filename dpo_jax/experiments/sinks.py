"""Sinks for the metrics of a training: a file and TensorBoard always, W&B where the configuration names it."""

from __future__ import annotations

from pathlib import Path

import jax

from dpo_jax.config import LoggingConfig, as_mapping
from dpo_jax.experiments.experiment import Experiment
from dpo_jax.reading import Origins, mistake
from dpo_jax.runs.run import Run
from dpo_jax.training.metrics import JsonlSink, Sink, TensorBoardSink, WandbSink


def check_sinks(logging: LoggingConfig, origins: Origins) -> None:
    """Miss a package now, as a UserError, rather than after the reference pass."""
    if not logging.wandb or jax.process_index():
        return
    try:
        import wandb  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        says = "the package wandb is not installed; run `pip install wandb`, or leave this out."
        raise mistake("logging.wandb", origins, says) from None


def open_sinks(experiment: Experiment, stage: str, folder: Path, *, resume_step: int | None) -> list[Sink]:
    """One process writes the metrics; every process has the same ones."""
    if jax.process_index():
        return []
    config, remote = experiment.config, list[Sink]()
    if project := config.logging.wandb:  # before a file is opened: it may be refused
        check_sinks(config.logging, experiment.origins)
        named = {"project": project, "group": experiment.run.name, "stage": stage, "config": as_mapping(config)}
        try:
            remote = [WandbSink(folder, **named, resume_step=resume_step)]
        except ConnectionError as error:
            raise mistake("logging.wandb", experiment.origins, str(error)) from None
    return [
        JsonlSink(Run(folder).metrics, resume_step=resume_step),
        TensorBoardSink(Run(folder).tensorboard, resume_step=resume_step),
        *remote,
    ]
