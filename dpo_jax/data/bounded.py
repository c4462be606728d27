"""How much time and memory a chat template may take: it is a program that came with the weights."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpo_jax.errors import UserError

SECONDS = 20.0
_MORE_BYTES = 2 * 2**30
_STATM = Path("/proc/self/statm")


def endless(where: str, took: str) -> UserError:
    """What is said of a template that takes too much for a row."""
    return UserError(f"{where}: the chat template takes {took} for this row. Name another in data.chat_template.")


@contextmanager
def bounded(where: str) -> Iterator[None]:
    """Raises UserError where rendering a row takes more than 20 s, or 2 GiB more memory than there is now.

    Only in the main thread, which alone hears of signals; the memory only where the system tells its size (Linux).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: object) -> None:
        raise endless(where, f"more than {SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, late)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, 0.5)  # again: where jinja computes constants, it catches all
    try:
        if _STATM.exists():
            wanted = int(_STATM.read_text().split()[0]) * resource.getpagesize() + _MORE_BYTES
            limits = [limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY]
            resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
        yield
    except MemoryError:
        raise endless(where, f"more than {_MORE_BYTES >> 30} GiB of memory") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)
