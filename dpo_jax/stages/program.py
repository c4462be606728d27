"""A training step before any array exists: `fit` runs it, `plan` compiles it for a machine that is not here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import optax

from dpo_jax.config import OptimizerConfig
from dpo_jax.models.decoder import Tree
from dpo_jax.stages.experiment import Experiment
from dpo_jax.training.optimizer import OPTIMIZERS, make_schedule
from dpo_jax.training.state import TrainState, param_shardings, state_shapes, state_shardings
from dpo_jax.training.step import Objective, make_step
from dpo_jax.types import Params


class Trainable(Protocol):
    """What a training must know of a model, of texts or of pictures."""

    @property
    def tree(self) -> Tree:
        """All of its parameters, an adapter left out."""
        ...

    @property
    def trained(self) -> Tree:
        """What training changes: the adapter if there is one, else everything."""
        ...


class Program(NamedTuple):
    """The jitted step, its optimizer, and where its state and its batch lie."""

    step: Callable[..., tuple]
    optimizer: optax.GradientTransformation
    shardings: TrainState
    batch_shardings: Any

    def state_shapes(self, model: Trainable, memory: Any, frozen: Params | None = None) -> TrainState:
        """The state as shapes with shardings; `frozen` are the shapes of frozen parameters, else as the model's."""
        beside = None if self.shardings.frozen is None else frozen or model.tree.shapes
        return state_shapes(model.trained.shapes, self.optimizer, self.shardings, memory=memory, frozen=beside)


def make_program(
    setup: Experiment,
    *,
    model: Trainable,
    objective: Objective,
    optimizer: OptimizerConfig,
    batch: Any,
    steps: int,
    memory: Any,
    has_frozen: bool,
) -> Program:
    """The step that trains `model` on batches like this one. `memory` and `steps` as in `fit`."""
    transform = make_optimizer(optimizer, model.trained.axes)
    beside = param_shardings(setup.mesh, *model.tree) if has_frozen else None
    shardings = state_shardings(setup.mesh, *model.trained, transform, memory=memory, frozen=beside)
    batch_shardings = setup.batch_shardings(batch, micro_batches=True)
    step = make_step(
        objective,
        transform,
        make_schedule(optimizer.schedule, warmup_steps=optimizer.warmup_steps, steps=steps),
        shardings=shardings,
        batch_shardings=batch_shardings,
    )
    return Program(step, transform, shardings, batch_shardings)


def make_optimizer(config: OptimizerConfig, axes: Params) -> optax.GradientTransformation:
    """The optimizer of a configuration, for parameters with these logical axis names."""
    return OPTIMIZERS[config.name](
        axes,
        beta1=config.beta1,
        beta2=config.beta2,
        epsilon=config.epsilon,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        moment_dtype=config.moment_dtype,
    )
