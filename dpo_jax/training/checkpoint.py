"""Checkpoints with Orbax: written in the background, whole or absent, checked by our own digests.

A step counts only when it is sealed: after Orbax has committed it, the digests of all its files are written beside it.
Orbax itself restores a flipped byte without a word.
"""

from __future__ import annotations

import errno
import os
import shutil
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax

from dpo_jax.errors import UserError
from dpo_jax.files import Json, changed, digest_folder, go_back, read_step, sealed_steps, write_sealed
from dpo_jax.meeting import meet
from dpo_jax.training.finite import NotFinite, first_not_finite
from dpo_jax.training.state import TrainState
from dpo_jax.types import Params

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one folder: `STEP/` as Orbax writes it and `STEP.json`, its seal."""

    def __init__(self, folder: Path, *, keep: int = 2):
        import orbax.checkpoint as ocp

        self._folder = folder.absolute()
        self._keep = keep
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="seal")
        self._pending: Future[None] | None = None
        # Trees apart, so that a later stage reads the parameters without the optimizer's moments.
        self._writers = {name: ocp.StandardCheckpointer() for name in ("params", "memory", "frozen", "rest")}

    def steps(self) -> list[int]:
        """The sealed steps, oldest first."""
        return sealed_steps(self._folder)

    def latest(self) -> int | None:
        """The newest sealed step."""
        return max(self.steps(), default=None)

    def record(self, step: int) -> Json:
        """The record that was saved beside the arrays of a sealed step."""
        return read_step(self._folder, step)["record"]

    def save(self, step: int, state: TrainState, record: Json) -> None:
        """Start to write a step and return; it is sealed in the background, its failure shows here at the next.

        Raises:
            NotFinite: a number of it is NaN or infinite; nothing is written, and the steps before stay.
        """
        self.wait()
        if (name := first_not_finite(_trees(state))) is not None:
            kept = f"Step {self.latest()} is the last one that is." if self.steps() else "No step before it is saved."
            raise NotFinite(f"step {step}: {name} is NaN or infinite; this state is not saved. {kept}")
        target = self._folder / str(step)
        try:
            if jax.process_index() == 0:
                if target.exists():  # not sealed: left by a killed run
                    shutil.rmtree(target)
                target.mkdir(parents=True)  # here, where it fails at once: Orbax would wait ten minutes
        except OSError as error:
            raise UserError(f"{target}: the checkpoint cannot be written: {error.strerror}.") from error
        meet(f"folder of step {step}")
        try:
            for name, tree in _trees(state).items():
                self._writers[name].save(target / name, tree)
        except (OSError, ValueError) as error:
            raise _not_written(target, error) from error
        self._pending = self._sealer.submit(self._seal, step, record)

    def check(self) -> None:
        """Raise at once if the step being written could not be; else do nothing, and wait for nothing."""
        if self._pending is not None and self._pending.done() and self._pending.exception():
            self.wait()

    def wait(self) -> None:
        """Wait until the step being written is sealed, and those beyond the kept ones are gone."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
            meet("a step is sealed", sees=self._folder)

    def settle(self) -> None:
        """Let what is being written become whole where the training ends by an error, which others may have caused."""
        if self._pending is not None and jax.process_count() == 1:  # of several, one that is gone would be waited for
            futures.wait([self._pending])

    def _seal(self, step: int, record: Json) -> None:
        target = self._folder / str(step)
        try:
            for writer in self._writers.values():
                writer.wait_until_finished()
            if jax.process_index() == 0:
                write_sealed(self._folder / f"{step}.json", {"record": record, "digests": digest_folder(target)})
                for old in self.steps()[: -self._keep]:
                    (self._folder / f"{old}.json").unlink()  # first: without its seal it no longer counts
                for path in self._folder.iterdir():
                    if path.name.isdigit() and not path.with_name(f"{path.name}.json").exists():
                        shutil.rmtree(path)  # of a step that is not kept, or that a killed run left half
        except (OSError, ValueError) as error:
            raise _not_written(target, error) from error

    def close(self) -> None:
        """Seal what is being written and stop the writer."""
        self.wait()
        self._sealer.shutdown()
        for writer in self._writers.values():
            writer.close()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a sealed step, laid out like `like` (arrays or shapes with shardings)."""
        self._verify(step)
        trees = {name: self._read(step, name, tree) for name, tree in _trees(like).items()}
        loss_state = _with_leaves(like.loss_state, trees.get("memory", {}))
        return TrainState(params=trees["params"], loss_state=loss_state, frozen=trees.get("frozen"), **trees["rest"])

    def restore_params(self, step: int, like: Params) -> Params:
        """The parameters alone."""
        self._verify(step)
        return self._read(step, "params", like)

    def restore_frozen(self, step: int, like: Params) -> Params:
        """The parameters without gradient, alone, of a training that moves them."""
        self._verify(step)
        return self._read(step, "frozen", like)

    def restore_loss_state(self, step: int, like: T) -> T:
        """The loss state alone."""
        self._verify(step)
        leaves = _numbered(like)
        return _with_leaves(like, self._read(step, "memory", leaves) if leaves else {})

    def _read(self, step: int, name: str, like: T) -> T:
        target = self._folder / str(step) / name
        reader = self._writers[name]
        metadata: Any = reader.metadata(target).item_metadata
        _check_same(target, metadata.tree, like)
        tree = reader.restore(target, like)
        if (array := first_not_finite(tree)) is not None:  # an earlier version saved such steps
            raise UserError(
                f"{target}: {array} is NaN or infinite, and so worth nothing. {go_back(self._folder, step)}"
            )
        return tree

    def _verify(self, step: int) -> None:
        """Refuse a step with a file that changed, is missing or is new since it was sealed."""
        target = self._folder / str(step)
        if damaged := changed(target, read_step(self._folder, step)["digests"]):
            says = f"{target}: the checkpoint is damaged: {damaged[0]} is not as it was written."
            raise UserError(f"{says} {go_back(self._folder, step)}")


def _not_written(target: Path, error: Exception) -> UserError:
    """Say why in a line: Orbax's own errors are pages."""
    known = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
    words = next((os.strerror(code) for code in known if os.strerror(code) in str(error)), str(error).splitlines()[0])
    return UserError(
        f"{target}: the checkpoint could not be written: {words}. The steps before it are whole; make room there, and "
        "the same command goes on from the last of them."
    )


def _trees(state: TrainState) -> dict[str, Any]:
    rest = {"step": state.step, "optimizer": state.optimizer, "key": state.key, "skipped": state.skipped}
    apart = {"memory": _numbered(state.loss_state), "frozen": state.frozen}
    return {"params": state.params, "rest": rest} | {name: tree for name, tree in apart.items() if tree}


def _numbered(tree: object) -> dict[str, jax.Array]:
    """The leaves of a tree by number: Orbax has no place for its empty parts."""
    return {str(index): leaf for index, leaf in enumerate(jax.tree.leaves(tree))}


def _with_leaves(tree: T, numbered: dict[str, jax.Array]) -> T:
    return jax.tree.unflatten(jax.tree.structure(tree), [numbered[str(index)] for index in range(len(numbered))])


def _check_same(target: Path, stored: object, wanted: object) -> None:
    """Refuse another tree, shape or dtype: Orbax would cast without a word."""
    others = jax.tree_util.tree_leaves_with_path(stored)
    leaves = jax.tree_util.tree_leaves_with_path(wanted)
    if len(others) != len(leaves):
        raise UserError(f"{target} holds {len(others)} arrays, this run has {len(leaves)}: another model or optimizer.")
    for (path, leaf), (_, other) in zip(leaves, others, strict=True):
        if tuple(other.shape) != tuple(leaf.shape) or other.dtype != leaf.dtype:
            raise UserError(
                f"{target}: {jax.tree_util.keystr(path)} is {other.dtype}{list(other.shape)}, "
                f"this run wants {leaf.dtype}{list(leaf.shape)}."
            )
