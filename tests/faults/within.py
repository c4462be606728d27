"""Limits of what a malformed thing takes before it is refused: seconds, and bytes of this process."""

from __future__ import annotations

import gc
import signal
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def within(seconds: int, megabytes: int) -> Iterator[None]:
    """Fails where the block takes more of the processor's time, or allocates more; for the main thread only."""

    def late(number: int, frame: object) -> None:
        raise Late(f"not done within {seconds} s")

    before = signal.signal(signal.SIGPROF, late)
    callbacks, gc.callbacks[:] = gc.callbacks[:], []  # hypothesis has one: where recursion ends, and time, it fails
    signal.setitimer(signal.ITIMER_PROF, seconds)
    tracemalloc.start()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        gc.callbacks[:] = callbacks
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < megabytes * 1e6, f"held {peak / 1e6:.0f} MB, beside {threading.enumerate()}"


class Late(BaseException):
    """The time is up; no `except Exception` of the code under test swallows it."""
