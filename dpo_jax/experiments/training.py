"""From a section of the configuration to a `Training`, and the training of a policy on preferences."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

from dpo_jax.config import OptimizerConfig, TrainConfig
from dpo_jax.experiments.experiment import Experiment
from dpo_jax.reference.store import Errors, Scores
from dpo_jax.training.loop import Pace
from dpo_jax.training.optimizer import OPTIMIZERS, make_schedule
from dpo_jax.training.training import Batches, Trainable, Training
from dpo_jax.types import Objective


class Section(Protocol):
    """A section of the configuration that describes a training: the whole of it, `sft` or `reward`."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """The optimizer."""
        ...

    @property
    def train(self) -> TrainConfig:
        """Length and batches."""
        ...


def make_training(
    section: Section,
    *,
    stage: str,
    folder: Path,
    model: Trainable,
    objective: Objective,
    batches: Batches,
    **more: Any,
) -> Training:
    """The training that a section describes; `more` are further fields of `Training`."""
    train, optimizer = section.train, section.optimizer
    steps = train.steps or batches.steps(train.epochs or 1.0)
    transform = OPTIMIZERS[optimizer.name](
        model.trained.axes,
        beta1=optimizer.beta1,
        beta2=optimizer.beta2,
        epsilon=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
        clip_norm=optimizer.clip_norm,
        moment_dtype=optimizer.moment_dtype,
    )
    return Training(
        stage=stage,
        folder=folder,
        model=model,
        objective=objective,
        batches=batches,
        steps=steps,
        optimizer=transform,
        schedule=make_schedule(optimizer.schedule, warmup_steps=optimizer.warmup_steps, steps=steps),
        learning_rate=optimizer.learning_rate,
        pace=Pace(**{field.name: getattr(train, field.name) for field in dataclasses.fields(Pace)}),
        **more,
    )


def preference_training(
    experiment: Experiment, data: Any, scores: Scores | Errors | None, *, train: TrainConfig | None = None, **more: Any
) -> Training:
    """The training of the policy on preference rows; `scores` are those of the rows in the store, if there is one.

    `train` says how large its batches are, by default as the configuration does. `more` are further fields of
    `Training`: without them it starts as a run does, and the reference is loaded anew.
    """
    config, model = experiment.config, experiment.model
    start = (lambda: experiment.fresh_adapter(model, seed=config.seed)) if model.lora else experiment.start_params
    # With an adapter the base stands beside it whether it is also the reference or not.
    frozen = experiment.start_params if model.lora or experiment.live_reference else None
    return make_training(
        config,
        stage="train",
        folder=experiment.workdir,
        model=model,
        objective=experiment.objective(data),
        batches=experiment.batches(train or config.train, data, seed=config.seed, scores=scores),
        hyperparams=experiment.hyperparams,
        loss_state=experiment.loss_state,
        **{"seed": config.seed, "start": start, "frozen": frozen, **more},
    )
