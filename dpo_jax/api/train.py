"""Training from Python: an experiment of a model and rows, run as the command line runs it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optax
from jax.sharding import AxisType, Mesh

from dpo_jax.api.experiment import Own, OwnSteps, PythonSteps
from dpo_jax.api.model import Model, Policy
from dpo_jax.api.result import Result
from dpo_jax.api.rows import Rows, source_of
from dpo_jax.api.settings import Losses, settings_of
from dpo_jax.commands import training
from dpo_jax.config import PictureConfig, made
from dpo_jax.errors import UserError
from dpo_jax.mesh import MESH_AXES
from dpo_jax.runtime import hosts
from dpo_jax.runtime.progress import say

ORIGIN = "dpo_jax.train"
"""The place of a setting, for messages."""


def train(
    model: Policy | Model | str | os.PathLike[str],
    rows: Rows,
    *,
    loss: Losses = "dpo",
    held_out: Rows | None = None,
    workdir: str | os.PathLike[str] | None = None,
    optimizer: optax.GradientTransformation | Mapping[str, Any] | None = None,
    mesh: Mesh | Mapping[str, int] | None = None,
    callback: Callable[[int, Mapping[str, float]], None] | None = None,
    **settings: Any,
) -> Result:
    """Train a model on preferences: the reference pass, the training, its checkpoints and metrics.

    Args:
        model: of `load`, a `Model` of one's own, or what `load` takes.
        rows: pairs (`prompt`, `chosen`, `rejected`) or labelled completions (`prompt`, `completion`, `label`), in any
            of the formats that a file may have: dicts, a datasets.Dataset, an iterator, a path, or a source as in a
            configuration. Of a run of several processes each is given all rows.
        loss: its name (`dpo-jax losses` lists them), or a mapping or list as in a configuration.
        held_out: rows that are not trained on, for `Result.evaluate`.
        workdir: folder of the run. The same call goes on where an earlier one ended; other rows, weights or settings
            are refused. None: a new temporary folder, which is said.
        optimizer: an optax optimizer with its learning rate, or settings of AdamW.
        mesh: a mesh with axes among `slice`, `data`, `fsdp`, `tensor`, `sequence`, or their sizes; default: fsdp.
        callback: called by the first process with each logged step and its metrics; what it raises ends the training.
        **settings: options of the loss (`beta`), settings of the sections train, optimizer and data (`steps`,
            `learning_rate`, `max_tokens`, `template`), or sections and settings of the top (`lora={"rank": 8}`,
            `seed`).

    Raises:
        UserError: something given is wrong; the message says what, where, and what is allowed.
        Preempted: the process was told to end (SIGTERM), and a checkpoint was saved.
    """
    hosts.join_run()
    folder = Path(os.fspath(workdir)) if workdir else _temporary()
    written = settings_of(loss, {**settings, **({"optimizer": optimizer} if isinstance(optimizer, Mapping) else {})})
    data = written.setdefault("data", {})
    data["train"] = [source_of(rows, folder / "rows", "rows")]
    if held_out is not None:
        data["eval"] = [source_of(held_out, folder / "rows", "held_out")]
    if isinstance(mesh, Mapping):
        written["mesh"] = dict(mesh)
    written |= {"workdir": str(folder), "model": {"weights": "own-model"}}
    if isinstance(model, Model):
        data.setdefault("layout", "padded")
    else:
        policy = model if isinstance(model, Policy) else Policy(os.fspath(model))
        written["model"] = dict(vars(policy))
    config, origins = made(written, ORIGIN)
    if isinstance(config, PictureConfig):
        raise UserError("pictures: Python trains on texts; for pictures there is the command line.")
    if isinstance(model, Model):
        own = Own(model.model, model.apply, model.tokenizer, model.max_positions)
        experiment: PythonSteps = OwnSteps(config, origins, command=ORIGIN)
        vars(experiment)["own"] = own
    else:
        experiment = PythonSteps(config, origins, command=ORIGIN)
    if optimizer is not None and not isinstance(optimizer, Mapping):
        experiment.optimizer = optimizer
    if isinstance(mesh, Mesh):
        vars(experiment)["mesh"] = _with_all_axes(mesh)
    if callback:
        experiment.watchers = (callback,)
    with experiment.in_use():
        training.train(experiment)
    return Result(experiment)


def _temporary() -> Path:
    """A new folder, the same one on all processes of a run."""
    folder = Path(hosts.text_from_first(lambda: tempfile.mkdtemp(prefix="dpo-jax-")))
    say("workdir", f"{folder}, a temporary folder; name a `workdir` to keep the run, and to go on with it")
    return folder


def _with_all_axes(mesh: Mesh) -> Mesh:
    """The mesh with the axes that it lacks, of one device each."""
    if unknown := [name for name in mesh.axis_names if name not in MESH_AXES]:
        raise UserError(f"mesh: the axis {unknown[0]!r} is unknown. Allowed: {', '.join(MESH_AXES)}.")
    axes = [name for name in MESH_AXES if name in mesh.axis_names]
    devices = mesh.devices.transpose([mesh.axis_names.index(name) for name in axes])
    sizes = [mesh.shape.get(name, 1) for name in MESH_AXES]
    return Mesh(devices.reshape(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
