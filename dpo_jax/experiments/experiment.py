"""What every experiment has, of texts or of pictures: folder, mesh, and the parameters of its trainings on disk."""

from __future__ import annotations

import abc
import dataclasses
import os
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dpo_jax.config import AnyConfig
from dpo_jax.config.rendering import render
from dpo_jax.errors import UserError
from dpo_jax.files import write_atomic
from dpo_jax.mesh import make_mesh, named_sharding, place, splits
from dpo_jax.models.lora import merge
from dpo_jax.reading import Origins, locate
from dpo_jax.runtime.machine import compile_cache
from dpo_jax.training.checkpoint import Checkpoints
from dpo_jax.training.state import param_shardings
from dpo_jax.types import Params, join


class Experiment(abc.ABC):
    """One experiment, opened. What it needs beside this is made when it is asked for."""

    batch_axes: ClassVar[dict[str, tuple[str | None, ...]]]
    """How a batch lies on the mesh, by the names of its arrays."""

    def __init__(self, config: AnyConfig, origins: Origins, *, command: str):
        self.config: Any = config
        self.origins, self.command = origins, command
        self.workdir = Path(config.workdir)
        self.sft_folder = self.workdir / "sft"

    @property
    @abc.abstractmethod
    def model(self) -> Any:
        """The policy as pure functions; with the adapter of `lora`, if there is one."""

    @property
    @abc.abstractmethod
    def sft_model(self) -> Any:
        """The same model with the adapter of the fine-tuning."""

    @abc.abstractmethod
    def pretrained(self, *, held: bool = False) -> Params:
        """The parameters before any training, on the mesh: float32, or as they are held where they are not trained."""

    def begin(self) -> None:
        """Makes the working directory and turns the compile cache on."""
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"workdir: {self.workdir} cannot be written: {error.strerror}.") from None
        if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            jax.config.update("jax_compilation_cache_dir", str(compile_cache()))

    def keep_config(self, folder: Path) -> None:
        """Writes the merged configuration beside what it makes; called once nothing on disk contradicts it."""
        write_atomic(folder / "config.yaml", render(self.config, self.origins, comments=False))

    @cached_property
    def mesh(self) -> Mesh:
        """The device mesh."""
        try:
            return make_mesh(**dataclasses.asdict(self.config.mesh))
        except ValueError as error:
            raise UserError(f"{locate('mesh', self.origins)}: mesh: {error}.") from None

    @property
    def device(self) -> Any:
        """One device of the mesh; all are of a kind."""
        return self.mesh.devices.flat[0]

    @property
    def row_multiple(self) -> int:
        """Into how many parts the mesh splits the rows of a batch."""
        return splits(self.mesh, "rows")

    def batch_shardings(self, batch: Any, *, micro_batches: bool) -> Any:
        """Where the arrays of a batch lie; `micro_batches` says whether they have that leading axis."""
        shardings: dict[str, Any] = {}
        for name, array in batch._asdict().items():
            if name not in self.batch_axes:  # a batch within the batch
                shardings[name] = array and self.batch_shardings(array, micro_batches=micro_batches)
                continue
            names = (None, *self.batch_axes[name]) if micro_batches else self.batch_axes[name]
            shardings[name] = jax.tree.map(lambda leaf, of=names: self._sharding(of, leaf), array)
        return type(batch)(**shardings)

    def _sharding(self, names: tuple[str | None, ...], leaf: Any) -> Any:
        return named_sharding(self.mesh, (*names, *[None] * (len(leaf.shape) - len(names))), leaf.shape)

    def place(self, batch: Any, *, micro_batches: bool = False) -> Any:
        """Puts a batch on the mesh."""
        shardings = self.batch_shardings(batch, micro_batches=micro_batches)
        return jax.tree.map(lambda array, to: place(to, array), batch, shardings)

    def start_params(self, *, held: bool | None = None) -> Params:
        """Where the policy starts, and what the reference is: the result of fine-tuning, or the pretrained weights.

        Under an adapter they are held as they are used, unless `held` says otherwise.
        """
        held = self.config.lora is not None if held is None else held
        if not self.config.sft:
            return self.pretrained(held=held)
        found = self.fine_tuned()
        if self.sft_model.lora:
            merged = merge(self.pretrained(), found, self.sft_model.lora)
            found = jax.device_put(merged, param_shardings(self.mesh, *self.model.tree))
        return jax.tree.map(jnp.asarray, found, self.model.held_dtypes()) if held else found

    def fine_tuned(self) -> Params:
        """What the fine-tuning has trained."""
        return self.restored(self.sft_folder, "sft", self.sft_model)

    def fresh_adapter(self, model: Any, *, seed: int) -> Params:
        """The adapter of a model before the first step, on the mesh."""
        shardings = param_shardings(self.mesh, *model.trained)
        return jax.jit(model.init_adapter, out_shardings=shardings)(jax.random.key(seed))

    def trained_params(self, base: Params | None = None) -> Params:
        """The policy of the newest checkpoint; an adapter is joined to its base, which is loaded if it is not given."""
        found = self.trained_adapter()
        return join(base or self.start_params(), found) if self.model.lora else found

    def merged_params(self) -> Params:
        """The same as parameters of a plain model, in float32."""
        found, lora = self.trained_adapter(), self.model.lora
        return merge(self.start_params(held=False), found, lora) if lora else found

    def trained_adapter(self) -> Params:
        """What the newest checkpoint holds: the adapter, or, without one, everything."""
        return self.restored(self.workdir, "train", self.model)

    def restored(self, folder: Path, command: str, model: Any) -> Params:
        """What `command` trained of `model`, from the newest checkpoint in `folder`."""
        checkpoints, step = newest(folder, command)
        return checkpoints.restore_params(step, self.placed_shapes(model))

    def placed_shapes(self, model: Any) -> Params:
        """Shapes and shardings of what is trained of a model."""
        shapes, shardings = model.trained.shapes, param_shardings(self.mesh, *model.trained)
        return jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, shardings)


def newest(folder: Path, command: str) -> tuple[Checkpoints, int]:
    """The checkpoints of a folder and the newest step; without one a UserError that says what makes it."""
    checkpoints = Checkpoints(folder / "checkpoints")
    step = checkpoints.latest()
    if step is None:
        raise UserError(f"{folder / 'checkpoints'}: no checkpoint yet; run `dpo-jax {command}` first.")
    return checkpoints, step
