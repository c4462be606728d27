"""Memory that this process holds on the host, watched while something is done."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

_STATUS = Path("/proc/self/status")
_EVERY_SECONDS = 0.004


class HostMemory:
    """Context manager that measures the most that was held beyond what is meant to stay, every few milliseconds.

    Pages mapped from files are not counted: they are the system's to drop. Only Linux tells the rest apart.
    """

    def __init__(self) -> None:
        self._stays = self._most = 0
        self._before = _anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def most(self) -> int | None:
        """Bytes; None where the system does not tell."""
        return None if self._before is None else self._most

    def stays(self, size: int) -> None:
        """Announce bytes that are about to be allocated and to stay."""
        self._stays += size

    def __enter__(self) -> HostMemory:
        if self._before is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        if self._before is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY_SECONDS):
            now = _anonymous_bytes()
            if now is not None and self._before is not None:
                self._most = max(self._most, now - self._before - self._stays)


def _anonymous_bytes() -> int | None:
    """The memory of this process that is in no file, bytes."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    held = dict(line.split(":", 1) for line in lines)
    return int(held["RssAnon"].split()[0]) * 1024 if "RssAnon" in held else None
