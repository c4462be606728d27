"""A program of somebody else's, which may print without end, read nothing, ignore signals or leave children behind."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

_CHUNK = 1 << 16
_KEPT_OF_STDERR = 1 << 16
_LOOK_SECONDS = 0.05
"""The program may have ended while a child of it keeps the pipes open: so often that is looked at."""


class Ended(NamedTuple):
    """How a program ended: its exit code, all that it wrote, and the end of what it said on its standard error."""

    code: int
    wrote: str
    said: str


class TooMuch(Exception):
    """It wrote more than it may."""


def run_program(words: Sequence[str], given: bytes, *, seconds: float, most_bytes: int) -> Ended:
    """Runs a program on `given`, without a shell; it and its children are killed when this returns or raises.

    Raises:
        TimeoutError: it had not ended after so many seconds.
        TooMuch: it wrote more than `most_bytes` bytes.
        OSError: it cannot be started.
    """
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryFile() as stdin:  # a pipe that nobody reads would have to be waited for
        stdin.write(given)
        stdin.seek(0)
        process = subprocess.Popen(
            words, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        try:
            wrote, said = _read(process, deadline, most_bytes)
            code = process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise TimeoutError from None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
    return Ended(code, wrote.decode("utf8", "replace"), said.decode("utf8", "replace"))


def _read(process: subprocess.Popen[bytes], deadline: float, most_bytes: int) -> tuple[bytes, bytes]:
    """What it writes to both pipes until it ends, or closes them."""
    wrote, said = bytearray(), bytearray()
    assert process.stdout is not None and process.stderr is not None
    with selectors.DefaultSelector() as selector:
        for pipe, kept in ((process.stdout, wrote), (process.stderr, said)):
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, kept)
        while selector.get_map():
            has_ended = process.poll() is not None  # before the last look at what is in the pipes
            for key, _ in selector.select(0 if has_ended else _LOOK_SECONDS):
                while piece := _piece(key.fd):
                    key.data.extend(piece)
                    del said[:-_KEPT_OF_STDERR]
                    if len(wrote) > most_bytes:
                        raise TooMuch
                    if time.monotonic() > deadline:
                        raise TimeoutError
                if piece is not None:
                    selector.unregister(key.fileobj)
            if has_ended:
                break
            if time.monotonic() > deadline:
                raise TimeoutError
    return bytes(wrote), bytes(said)


def _piece(pipe: int) -> bytes | None:
    """The next bytes of a pipe: none at its end, None where it has none yet."""
    try:
        return os.read(pipe, _CHUNK)
    except BlockingIOError:
        return None
