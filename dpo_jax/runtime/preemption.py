"""SIGTERM, with which a scheduler takes a machine back: a training saves and leaves.

A single process that is not training yet has nothing to save, and dies of the signal. Of several, JAX takes the signal
and lets them agree on the step after which all of them stop.
"""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 128 + signal.SIGTERM
_asked = itertools.count()  # JAX wants every question of a process to have a number of its own


class Preempted(Exception):
    """The run was told to stop, and has saved what it had."""


def leave_if_told(stage: str) -> None:
    """Raise Preempted where the processes of a run agree that they were told to stop; for work that begins again."""
    if jax.distributed.is_initialized() and multihost_utils.reached_preemption_sync_point(next(_asked)):
        raise Preempted(f"{stage}: told to stop; the same command goes on from what is stored")


class Notice:
    """Listener for SIGTERM between its first question and the end of its context."""

    def __init__(self) -> None:
        self._reached = False
        self._before: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> Notice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def reached(self) -> bool:
        """Return True where to stop here; asked after each step, by all processes of a run alike."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(next(_asked))
        # Only now: while the first step compiles, Python could not act on the signal.
        if self._before is None and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self._reached

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._reached = True
