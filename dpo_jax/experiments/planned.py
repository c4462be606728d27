"""An experiment on a machine that is not here: the very programs that `reference` and `train` call, as shapes alone.

Dimension key: n rows, P slot in the pair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from dpo_jax.config import Config
from dpo_jax.errors import UserError
from dpo_jax.experiments.losses import is_unpaired, needs_mismatched
from dpo_jax.experiments.rows import DataRows, read_rows
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.experiments.training import preference_training
from dpo_jax.mesh import MESH_AXES, make_mesh, mesh_sizes
from dpo_jax.planning.topologies import Machine
from dpo_jax.reading import Origins, locate
from dpo_jax.reference.store import Scores
from dpo_jax.training.state import param_shardings
from dpo_jax.training.training import Batches
from dpo_jax.types import PairBatch, Params, TokenRow
from dpo_jax.weights.opening import Outline, open_outline
from dpo_jax.weights.source import WeightsSource

_LOOKED_AT = 32
_ROWS_READ = 4096


class Planned(TextExperiment):
    """The experiment: nothing of it is read but its config.json, and nothing is allocated."""

    def __init__(self, config: Config, origins: Origins, *, command: str, machine: Machine):
        super().__init__(config, origins, command=command)
        self.machine = machine

    def but(self, changes: Mapping[str, Any]) -> Planned:
        """The same experiment with other settings, by their dotted names."""
        config = self.config
        for key, value in changes.items():
            config = _with_setting(config, key.split("."), value)
        other = Planned(config, self.origins, command=self.command, machine=self.machine)
        other.outline = self.outline
        return other

    @cached_property
    def mesh(self) -> Any:
        """The mesh of the machine; without its devices where there is nothing to compile with."""
        axes = dataclasses.asdict(self.config.mesh)
        try:
            if self.machine.devices is not None:
                return make_mesh(devices=self.machine.devices, **axes)
            sizes = mesh_sizes(self.machine.count, **axes)
        except ValueError as error:
            raise UserError(f"{locate('mesh', self.origins)}: mesh: {error}.") from None
        return AbstractMesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(sizes))

    @property
    def device(self) -> Any:
        """One of the machine, or what is known of it."""
        return self.machine.devices[0] if self.machine.devices is not None else self.machine.chip

    @cached_property
    def outline(self) -> Outline:
        """The architecture, and where it comes from."""
        return open_outline(self.config.model.weights)

    @cached_property
    def source(self) -> WeightsSource:
        """The config.json."""
        return self.outline.source


def _with_setting(part: Any, key: Sequence[str], value: Any) -> Any:
    name, *below = key
    new = _with_setting(getattr(part, name), below, value) if below else value
    return dataclasses.replace(part, **{name: new})


class Call(NamedTuple):
    """A jitted function and what it is called with, as shapes with shardings."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Lengths(NamedTuple):
    """The rows that a plan counts with, and where their lengths come from."""

    data: DataRows
    origin: str


def find_lengths(experiment: TextExperiment) -> Lengths:
    """The first rows of the data if they can be read here, else the longest that the settings allow."""
    try:
        sources = experiment.config.data.train
        data = read_rows(experiment.config, experiment.tokenizer, "data.train", sources, limit=_ROWS_READ)
        return Lengths(data, f"the first {len(data.rows):,} rows of data.train")
    except (UserError, OSError) as error:
        longest, why = experiment.config.data.max_tokens, str(error).splitlines()[0].rstrip(".")
        return Lengths(
            largest_rows(experiment),
            f"the longest that data.max_tokens, {longest}, allows: a prompt of 1 token, {longest - 1} in each response "
            f"(the data was not read: {why})",
        )


def largest_rows(experiment: TextExperiment) -> DataRows:
    """As many rows as a batch holds, all their tokens in the responses: in no layout do others need more memory."""
    losses, longest = experiment.config.loss, experiment.config.data.max_tokens
    slots = 2 if needs_mismatched(losses) or not is_unpaired(losses) else 1
    prompt, response = np.zeros(1, np.int32), np.zeros(longest - 1, np.int32)
    count = max(experiment.config.train.batch_pairs, experiment.config.reference.batch_pairs)
    rows = [TokenRow(f"{n}", prompt, (response,) * slots) for n in range(count)]
    labels = np.arange(count) % 2 == 0 if is_unpaired(losses) else None
    return DataRows(rows, [], desirable=labels)


def reference_call(experiment: TextExperiment, data: DataRows) -> Call:
    """What the reference pass calls, with the longest rows."""
    shardings = param_shardings(experiment.mesh, experiment.model.tree)
    batch = next(iter(experiment.scoring_batches(data.rows))).arrays
    params = _with_shardings(_start_shapes(experiment), shardings)
    return Call(
        experiment.score, (params, _with_shardings(batch, experiment.batch_shardings(batch, micro_batches=False)))
    )


def train_call(experiment: TextExperiment, data: DataRows) -> Call:
    """What training calls, with the largest of the first batches."""
    training = preference_training(experiment, data, _no_scores(data.rows) if experiment.reads_store else None)
    batch = _largest(training.batches)
    program = training.program(experiment.mesh, experiment.batch_shardings(batch, micro_batches=True))
    state = training.state_shapes(program, _start_shapes(experiment) if training.frozen else None)
    return Call(program.step, (state, _with_shardings(batch, program.batch_shardings), training.knobs(0)))


def _largest(batches: Batches) -> PairBatch:
    first = (batches.batch(step).arrays for step in range(min(_LOOKED_AT, batches.steps(1))))
    return max(first, key=lambda batch: (batch.tokens_RT.size, batch.target_RN.size))


def _start_shapes(experiment: TextExperiment) -> Params:
    """What `start_params` gives."""
    model = experiment.model
    if model.lora is None:
        return model.shapes
    return jax.tree.map(lambda x, dtype: jax.ShapeDtypeStruct(x.shape, dtype), model.shapes, model.held_dtypes())


def _no_scores(rows: Sequence[TokenRow]) -> Scores:
    shape_nP = (len(rows), len(rows[0].responses))
    return Scores(np.zeros(shape_nP, np.float32), np.zeros(shape_nP, np.int32), np.zeros(shape_nP, np.float32))


def _with_shardings(arrays: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, jnp.dtype(x.dtype), sharding=to), arrays, shardings)
