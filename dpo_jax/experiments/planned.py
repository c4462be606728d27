"""An experiment on a machine that is not here: the very programs that `reference` and `train` call, as shapes alone.

Dimension key: n rows, P slot in the pair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from dpo_jax.config import Config
from dpo_jax.data.rows import DataRows
from dpo_jax.errors import UserError
from dpo_jax.experiments.texts import TextExperiment
from dpo_jax.experiments.training import preference_training
from dpo_jax.mesh import MESH_AXES, make_mesh, mesh_sizes
from dpo_jax.models.costs import MicroBatch, activation_bytes, matmul_parameters
from dpo_jax.planning.outcomes import Call, Outcome, Rows, bytes_per_chip, held_bytes, measure
from dpo_jax.planning.topologies import Machine
from dpo_jax.reading import Origins, mistake
from dpo_jax.reference.store import Scores
from dpo_jax.training.state import param_shardings
from dpo_jax.training.training import Batches
from dpo_jax.types import PairBatch, Params, TokenRow
from dpo_jax.weights.opening import Outline, open_outline
from dpo_jax.weights.source import WeightsSource

_LOOKED_AT = 32
_ROWS_READ = 4096


class Lengths(NamedTuple):
    """The rows that a plan counts with, and where their lengths come from."""

    data: DataRows
    origin: str


class Planned(TextExperiment):
    """The experiment: nothing of it is read but its config.json, and nothing is allocated."""

    def __init__(self, config: Config, origins: Origins, *, command: str, machine: Machine):
        super().__init__(config, origins, command=command)
        self.machine = machine

    def measure(self, call: Call, *, full: bool) -> Outcome:
        """Compile a program of this experiment for its machine."""
        return measure(call, self.machine, self.mesh, full=full)

    def but(self, changes: Mapping[str, object]) -> Planned:
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
            raise mistake("mesh", self.origins, f"{error}.") from None
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

    def find_lengths(self) -> Lengths:
        """The first rows of the data if they can be read here, else the longest that the settings allow."""
        try:
            data = self.read("data.train", self.config.data.train, limit=_ROWS_READ)
            return Lengths(data, f"the first {len(data.rows):,} rows of data.train")
        except (UserError, OSError) as error:
            longest, why = self.config.data.max_tokens, str(error).splitlines()[0].rstrip(".")
            return Lengths(
                self.largest_rows(),
                f"the longest that data.max_tokens, {longest}, allows: a prompt of 1 token, {longest - 1} in each "
                f"response (the data was not read: {why})",
            )

    def largest_rows(self) -> DataRows:
        """As many rows as a batch holds, all their tokens in the responses: in no layout do others need more memory."""
        longest = self.config.data.max_tokens
        slots = 2 if any(term.entry.mismatched for term in self.terms) or not self.is_labelled else 1
        prompt, response = np.zeros(1, np.int32), np.zeros(longest - 1, np.int32)
        count = max(self.config.train.batch_pairs, self.config.reference.batch_pairs)
        rows = [TokenRow(f"{n}", prompt, (response,) * slots) for n in range(count)]
        labels = np.arange(count) % 2 == 0 if self.is_labelled else None
        return DataRows(rows, [], desirable=labels)

    def reference_call(self, data: DataRows) -> Call:
        """The call of the reference pass, with the longest rows."""
        shardings = param_shardings(self.mesh, self.model.tree)
        arrays = next(iter(self.scoring_batches(data.rows))).arrays
        params = _with_shardings(self._start_shapes(), shardings)
        batch = _with_shardings(arrays, self.batch_shardings(arrays, micro_batches=False))
        return Call(self.score, (params, batch), {"parameters": params, "batch": batch}, None, _rows(batch))

    def train_call(self, data: DataRows) -> Call:
        """The call of a training step, with the largest of the first batches."""
        training = preference_training(self, data, _no_scores(data.rows) if self.reads_store else None)
        arrays = _largest(training.batches)
        program = training.program(self.mesh, self.batch_shardings(arrays, micro_batches=True))
        state = training.state_shapes(program, self._start_shapes() if training.frozen else None)
        batch = _with_shardings(arrays, program.batch_shardings)
        held = {"parameters": state.params, "optimizer": state.optimizer, "frozen": state.frozen, "batch": batch}
        return Call(program.step, (state, batch, training.knobs(0)), held, state.params, _rows(batch))

    def analyse_train(self, data: DataRows) -> Outcome:
        """The training step by arithmetic: sizes of arrays are exact, activations are a formula's."""
        call = self.train_call(data)
        config, mesh = self.config, self.mesh.shape
        micro_batches, rows, length = call.rows["shape"]
        activations = activation_bytes(
            self.model.spec,
            MicroBatch(-(-rows // self.row_multiple), -(-length // mesh["sequence"]), call.rows["scored"]),
            width_bytes=jnp.dtype(config.model.dtype).itemsize,
            remat=config.model.remat,
            tensor=mesh["tensor"],
            dense_attention=self.attention == "dense",
            tile=(config.tiles.tokens, config.tiles.vocabulary),
        )
        at_once = 1 if micro_batches == 1 else 2  # of a micro-batch, beside the sum of those before
        sizes = {
            **held_bytes(call),
            "gradients": at_once * bytes_per_chip(call.trained),
            "gathered": self._gathered(),
            "activations": activations.total,
        }
        needs, has = sum(sizes.values()), self.machine.chip.memory_bytes
        return {
            "rows": call.rows,
            "bytes": sizes,
            "activations": activations._asdict(),
            "fits": needs <= has,
            "needs": needs,
            "has": has,
        }

    def _gathered(self) -> int:
        """Bytes that fsdp gathers at one time: embedding, head and the matrices of one layer, in the compute dtype."""
        mesh, model = self.mesh.shape, self.model
        if mesh["fsdp"] == 1:
            return 0
        tables, layer = 2 * model.spec.vocabulary * model.spec.width, matmul_parameters(model.tree) // model.spec.layers
        return (tables + layer) * jnp.dtype(model.dtype).itemsize // mesh["tensor"]

    def _start_shapes(self) -> Params:
        """The shapes of `start_params`."""
        model = self.model
        if model.lora is None:
            return model.shapes
        return jax.tree.map(lambda x, dtype: jax.ShapeDtypeStruct(x.shape, dtype), model.shapes, model.held_dtypes())


def _with_setting(part: Any, key: Sequence[str], value: object) -> Any:
    name, *below = key
    new = _with_setting(getattr(part, name), below, value) if below else value
    return dataclasses.replace(part, **{name: new})


def _rows(batch: PairBatch) -> Rows:
    return {"shape": list(batch.tokens_RT.shape), "scored": batch.target_RN.shape[-1]}


def _largest(batches: Batches) -> PairBatch:
    first = (batches.batch(step).arrays for step in range(min(_LOOKED_AT, batches.steps(1))))
    return max(first, key=lambda batch: (batch.tokens_RT.size, batch.target_RN.size))


def _no_scores(rows: Sequence[TokenRow]) -> Scores:
    shape_nP = (len(rows), len(rows[0].responses))
    return Scores(np.zeros(shape_nP, np.float32), np.zeros(shape_nP, np.int32), np.zeros(shape_nP, np.float32))


def _with_shardings(arrays: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, jnp.dtype(x.dtype), sharding=to), arrays, shardings)
