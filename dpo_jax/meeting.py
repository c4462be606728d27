"""Processes of a run, each on its host: where they wait for each other, and until they see the same files."""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from dpo_jax.errors import UserError

LATE_SECONDS = 60.0  # NFS may keep what it knows of a folder for so long
_LOOKS = 120
_SHORT = 1 << 16  # bytes
_HALF = ".orbax-checkpoint-tmp"  # in the names of what Orbax is writing


def meet(what: str, *, sees: Path | None = None) -> None:
    """Wait for all processes of the run to come here, and to see the same at a place where one of them has written.

    Raises:
        UserError: they still do not after a minute.
    """
    if jax.process_count() == 1:
        return
    multihost_utils.sync_global_devices(what)
    if sees is None:
        return
    for _ in range(_LOOKS):
        views = multihost_utils.process_allgather(np.uint32(_view(sees)))
        if len(set(views.tolist())) == 1:
            return
        time.sleep(LATE_SECONDS / _LOOKS)
    blind = ", ".join(str(number) for number in np.flatnonzero(views != views[0]))
    raise UserError(
        f"{sees if sees.is_dir() else sees.parent} is not one folder on all hosts: process {blind} does not see what "
        f"process 0 sees there, even after {LATE_SECONDS:.0f} s. Name a folder on a disk that all of them mount."
    )


def least(number: int) -> int:
    """The least of the numbers with which all processes of the run come here."""
    if jax.process_count() == 1:
        return number
    return int(np.min(multihost_utils.process_allgather(np.int32(number))))


def _view(place: Path) -> int:
    """A digest of the files at a place or below, without hidden ones: names, sizes, the content of short ones."""
    total = 0
    for file in sorted(_files(place)):
        with contextlib.suppress(FileNotFoundError):  # between two looks
            size = file.stat().st_size
            total = zlib.crc32(f"{file.relative_to(place)} {size}".encode(), total)
            total = zlib.crc32(file.read_bytes() if size <= _SHORT else b"", total)
    return total


def _files(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        yield place
        return
    for each in place.iterdir():  # which also makes a network disk look again
        if not each.name.startswith(".") and _HALF not in each.name:
            yield from _files(each)
