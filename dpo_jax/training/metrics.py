"""Metrics: weighted sums until they are written, then one line of metrics.jsonl, and one set of scalars elsewhere."""

from __future__ import annotations

import json
import logging
import operator
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp

from dpo_jax import files
from dpo_jax.errors import UserError, each_once
from dpo_jax.types import Metrics


def add(left: Metrics, right: Metrics) -> Metrics:
    """Sums of two parts of a batch (micro-batches or hosts); both must hold the same names."""
    return jax.tree.map(jnp.add, left, right)


def divide(metrics: Metrics) -> dict[str, jax.Array]:
    """Name -> total / weight. A weight of 0 gives NaN: a mean of nothing is never shown as 0."""
    return {
        name: jnp.where(mean.weight == 0, jnp.nan, mean.total / jnp.where(mean.weight == 0, 1, mean.weight))
        for name, mean in metrics.items()
    }


class Sink(Protocol):
    """A place to which the values of a step are written."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the values of one step; steps only grow."""
        ...

    def close(self, *, done: bool = True) -> None:
        """Write out what is held back and let the file go; `done` is false of what ends before its last step."""
        ...


class JsonlSink:
    """One JSON object a line, flushed at once; NaN and Infinity stand as such.

    `resume_step` None begins a new file; otherwise rows after that step are dropped, and with them a last line that
    was cut off, so that the file ends as that of an unbroken run. Raises UserError where an earlier line is damaged.
    """

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        kept = b"" if resume_step is None else _lines_until(path, resume_step)
        files.write_atomic(path, kept)
        self._file = path.open("a", encoding="utf8")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one line."""
        row = {"step": int(step)} | {name: float(value) for name, value in values.items()}
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self, *, done: bool = True) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardSink:
    """Event files for TensorBoard; with `resume_step`, TensorBoard hides what an earlier run wrote after it."""

    def __init__(self, folder: Path, *, resume_step: int | None = None) -> None:
        from tensorboardX import SummaryWriter

        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)  # that a value is NaN is said by others
        purge_step = None if resume_step is None else resume_step + 1
        # tensorboardX names a file by the second alone and would write over that of a run begun in the same one.
        suffix = f".{time.time_ns()}"
        earlier = [path.name for path in folder.glob("*.tfevents.*")]
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=10, filename_suffix=suffix)
        _order_last(folder, suffix, earlier)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add one scalar for each value."""
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)

    def close(self, *, done: bool = True) -> None:
        """Write out what is held back, at most ten seconds' worth, and close the file."""
        self._writer.close()


class FunctionSink:
    """A function that is told each step and its values."""

    def __init__(self, function: Callable[[int, Mapping[str, float]], None]) -> None:
        self._function = function

    def write(self, step: int, values: dict[str, float]) -> None:
        """Call it."""
        self._function(step, {name: float(value) for name, value in values.items()})

    def close(self, *, done: bool = True) -> None:
        """Nothing is held back."""


class WandbSink:
    """A run at Weights & Biases. A training that goes on goes on there too: FOLDER/wandb_id.txt holds the run's id.

    W&B keeps the first values of a step that is taken again, which a resumed training computes the same. Offline it
    resumes nothing, and of several local copies of a run the one that is sent last takes the place of the others: the
    newest gets all that was logged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        project: str,
        group: str,
        stage: str,
        config: Mapping[str, object],
        metrics: Path,
        resume_step: int | None = None,
    ) -> None:
        """`group` is what its trainings have in common; `metrics` is the file of a `JsonlSink`, not yet opened.

        Raises:
            ConnectionError: W&B opens no run, for want of a key or of a connection.
        """
        import wandb  # pyright: ignore[reportMissingImports]

        folder.mkdir(parents=True, exist_ok=True)  # W&B writes elsewhere where it is not there
        path = folder / "wandb_id.txt"
        known = path.read_text(encoding="utf8") if resume_step is not None and path.exists() else None
        try:
            self._run = wandb.init(
                project=project,
                group=group,
                job_type=stage,
                name=group if stage == "train" else f"{group} {stage}",
                config=dict(config),
                dir=str(folder),
                id=known,
                resume="allow" if known else None,
                settings={"x_disable_meta": True},  # it would keep the command line as it is, with what is secret in it
            )
        except wandb.Error as error:
            says = f"{error} Run `wandb login`, or set WANDB_MODE=offline and `wandb sync` later."
            raise ConnectionError(says) from None
        files.write_atomic(path, self._run.id)
        if known and resume_step is not None and not self._run.resumed:
            for line in _lines_until(metrics, resume_step).splitlines():
                values = json.loads(line)
                self.write(values.pop("step"), values)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Hand the values over; they are sent in the background."""
        self._run.log(values, step=step)

    def close(self, *, done: bool = True) -> None:
        """Wait until all is sent; what is not done stands there as failed, until it goes on."""
        self._run.finish(exit_code=0 if done else 1)


def _order_last(folder: Path, suffix: str, earlier: Sequence[str]) -> None:
    """Give an event file a later second in its name where the clock was set back: TensorBoard reads in that order."""
    seconds = [int(found[1]) for name in earlier if (found := re.search(r"\.tfevents\.(\d{10})\.", name))]
    (path,) = folder.glob(f"*{suffix}")
    if earlier and path.name < max(earlier):
        path.rename(folder / re.sub(r"(?<=\.tfevents\.)\d{10}", f"{max(seconds, default=0) + 1:010}", path.name))


def _lines_until(path: Path, last_step: int) -> bytes:
    """The lines of a metrics file whose step is at most `last_step`, each ended."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            step = operator.index(json.loads(line, object_pairs_hook=each_once)["step"])
        except (ValueError, TypeError, KeyError, RecursionError):
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number}: not a row of metrics. Mend or remove this line.") from None
        if step <= last_step:
            kept.append(line + b"\n")
    return b"".join(kept)
