"""What a malformed thing may take before it is refused: seconds, and bytes of this process."""

from __future__ import annotations

import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def within(seconds: int, megabytes: int) -> Iterator[None]:
    """Fails where the block takes longer, or allocates more at any time; only the main thread can watch the clock."""

    def late(number: int, frame: object) -> None:
        raise Late(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)  # again and again: a callback of the collector swallows it
    tracemalloc.start()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < megabytes * 1e6, f"held {peak / 1e6:.0f} MB"


class Late(BaseException):
    """The time is up; no `except Exception` of the code under test swallows it."""
