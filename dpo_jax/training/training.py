"""A training before any array exists: what is trained, from what, on what, and for how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import optax
from jax.sharding import Mesh

from dpo_jax.training.loop import After, Pace
from dpo_jax.training.optimizer import Schedule
from dpo_jax.training.state import TrainState, param_shardings, state_shapes, state_shardings
from dpo_jax.training.step import make_step
from dpo_jax.types import Knobs, Objective, Params, Tree


class Trainable(Protocol):
    """A model, as far as a training must know it."""

    @property
    def tree(self) -> Tree:
        """All of its parameters, an adapter left out."""
        ...

    @property
    def trained(self) -> Tree:
        """The parameters that training changes: the adapter if there is one, else all."""
        ...


class HostBatch(Protocol):
    """A batch of numpy arrays, how much work it is, and the ids of its rows."""

    @property
    def arrays(self) -> Any:
        """A named tuple of arrays with a leading axis of micro-batches."""
        ...

    @property
    def work(self) -> dict[str, int]:
        """Counts by kind, such as pairs and tokens."""
        ...

    @property
    def row_ids(self) -> Sequence[str]:
        """In the order of its pairs."""
        ...


class Batches(Protocol):
    """Batches by their step."""

    count: int  # of the rows
    batch_pairs: int  # rows of a step

    def steps(self, epochs: float) -> int:
        """The number of steps that pass over the data `epochs` times."""
        ...

    def batch(self, step: int) -> HostBatch:
        """The batch of one step, counted from 0."""
        ...


class Program(NamedTuple):
    """The jitted step, its optimizer, and where its state and its batch lie."""

    step: Callable[..., tuple]
    optimizer: optax.GradientTransformation
    shardings: TrainState
    batch_shardings: object


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """One training. It is run, compiled for a machine that is not here, or taken apart, without being changed."""

    stage: str  # the command, for messages
    folder: Path  # of its checkpoints and metrics
    model: Trainable
    objective: Objective
    batches: Batches
    steps: int
    optimizer: optax.GradientTransformation  # for a learning rate of 1
    schedule: Schedule
    learning_rate: float  # its peak
    start: Callable[[], Params]  # the parameters before the first step
    frozen: Callable[[], Params] | None = None  # those beside them that get no gradient
    hyperparams: Callable[[int], Knobs] = lambda step: {}  # of the objective, for each step counted from 0
    loss_state: Any = ()  # before the first step
    seed: int = 0
    pace: Pace = dataclasses.field(default_factory=Pace)
    facts: Callable[[], Mapping[str, str]] = dict  # digests of what decides it beside its configuration, by name
    check: Callable[[TrainState], None] = lambda state: None  # sees the state before the first step
    callback: After | None = None  # after each step

    def knobs(self, step: int) -> Knobs:
        """The traced numbers of a step, counted from 0."""
        return {"learning_rate": self.learning_rate, **self.hyperparams(step)}

    def program(self, mesh: Mesh, batch_shardings: object) -> Program:
        """The step for batches that lie like this."""
        beside = param_shardings(mesh, self.model.tree) if self.frozen else None
        shardings = state_shardings(mesh, self.model.trained, self.optimizer, loss_state=self.loss_state, frozen=beside)
        step = make_step(
            self.objective, self.optimizer, self.schedule, shardings=shardings, batch_shardings=batch_shardings
        )
        return Program(step, self.optimizer, shardings, batch_shardings)

    def state_shapes(self, program: Program, frozen: Params | None = None) -> TrainState:
        """The state as shapes with shardings; `frozen` are the shapes of frozen parameters, else as the model's."""
        beside = None if program.shardings.frozen is None else frozen or self.model.tree.shapes
        return state_shapes(
            self.model.trained.shapes, self.optimizer, program.shardings, loss_state=self.loss_state, frozen=beside
        )
