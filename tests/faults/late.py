"""A command on a host that sees of a folder only what is some seconds old, as with a network disk's cached attributes.

python -m tests.faults.late FOLDER SECONDS COMMAND ...; of the processes of a run the first one sees all.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import sys
import time
from collections.abc import Iterator
from stat import S_ISREG
from typing import Any

from dpo_jax import cli


def _delay(folder: str, seconds: float) -> None:
    """Hide in this process what was made in a folder within the last seconds; what Orbax writes itself it sees."""
    stat, scandir, listdir, opened = os.stat, os.scandir, os.listdir, io.open

    def is_late(path: Any) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        whole = os.path.abspath(path)
        if not whole.startswith(folder + os.sep):
            return False
        try:
            found = stat(whole)
            return S_ISREG(found.st_mode) and time.time() - found.st_ctime < seconds
        except OSError:
            return False

    def refuse(path: Any) -> None:
        if is_late(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    def late_stat(path: Any, *more: Any, **named: Any) -> os.stat_result:
        refuse(path)
        return stat(path, *more, **named)

    def late_open(path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        if "r" in mode:
            refuse(path)
        return opened(path, mode, *more, **named)

    @contextlib.contextmanager
    def late_scandir(path: Any = ".") -> Iterator[Iterator[os.DirEntry[str]]]:
        with scandir(path) as entries:
            yield (entry for entry in entries if not is_late(entry.path))

    def late_listdir(path: Any = ".") -> list[str]:
        return [name for name in listdir(path) if not is_late(os.path.join(path, name))]

    os.stat, os.scandir, os.listdir = late_stat, late_scandir, late_listdir  # type: ignore[assignment]
    io.open = builtins.open = late_open  # type: ignore[assignment]


if __name__ == "__main__":
    folder, seconds, *command = sys.argv[1:]
    if os.environ.get("JAX_PROCESS_ID", "0") != "0":
        _delay(os.path.abspath(folder), float(seconds))
    sys.argv[1:] = command
    cli.main()
