"""The watchdog: a step that hangs shows where, and at last ends the process, so that its scheduler starts it again."""

from __future__ import annotations

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from dpo_jax import locks

EXIT_CODE = 124
_SLOW = 10  # times the usual
_LEAST_SECONDS = 60.0  # what is shorter is no cause for alarm: a batch of another shape compiles
_GRACE_SECONDS = 5.0  # the first process that leaves takes the others down: all are to say where they are before
_KNOWN_STEPS = 3  # before that, nothing is usual


class Watchdog:
    """Watchdog over what happens within `watched()`; used as a context manager around all of it.

    After ten times the usual time all stacks go to the error stream; after `limit_seconds` the process ends with code
    124 and says which setting (`limit_name`) that was. Of several processes that wait for each other, each has its own.
    """

    def __init__(self, stage: str, *, limit_seconds: float, limit_name: str = "the limit"):
        self._stage, self._limit, self._limit_name = stage, limit_seconds, limit_name
        self._since: float | None = None
        self._usual = deque[float](maxlen=100)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """One step; the first, which compiles, is not called slow."""
        self._since = start = time.monotonic()
        try:
            yield
        finally:
            self._since = None
        self._usual.append(time.monotonic() - start)

    def _watch(self) -> None:
        warned: float | None = None
        while not self._ended.wait(min(0.5, self._limit / 4)):
            since = self._since
            if since is None:
                continue
            waited = time.monotonic() - since
            if waited > self._limit:
                self._tell(f"a step has taken {waited:.0f} s, {self._limit_name} is {self._limit:g}: leaving")
                time.sleep(min(_GRACE_SECONDS, self._limit / 4))
                locks.release_all()
                os._exit(EXIT_CODE)
            if since != warned and waited > self._slow_after():
                warned = since
                self._tell(f"a step has taken {waited:.0f} s, usual are {statistics.median(self._usual):.2g} s")

    def _slow_after(self) -> float:
        if len(self._usual) < _KNOWN_STEPS:
            return float("inf")
        return max(_LEAST_SECONDS, _SLOW * statistics.median(self._usual))

    def _tell(self, what: str) -> None:
        error_stream = sys.__stderr__ or sys.stderr  # of every process: `say` is for the first alone
        print(f"{self._stage:>9}  {what}. What each thread is at:", file=error_stream, flush=True)
        faulthandler.dump_traceback(error_stream)
