"""Decoding in child processes: what a library does with foreign bytes, crashes and hangs included, ends one row only.

A child has this file and `decoding`, no JAX, and bounded memory; it is started anew, not forked, when a thread finds
none idle, and lives as long as its parent. What it answers is read as JSON and pixels, never as a pickle.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import queue
import select
import signal
import subprocess
import sys
from typing import IO, Any

import numpy as np

from dpo_jax.data import decoding
from dpo_jax.data.decoding import Shape, Undecodable
from dpo_jax.errors import UserError, ending

MOST_SECONDS = 60
"""For one picture or clip."""
MOST_MEMORY = 4 << 30
"""Addresses that a child may have, bytes: a picture of the most pixels takes a third of them."""

_LONGEST_ANSWER = 1 << 16


def decoded(data: bytes, shape: Shape) -> np.ndarray:
    """The pixels of a picture's or a clip's bytes, brought to the shape: uint8 [H, W, C] or [F, H, W, C].

    Raises:
        Undecodable: they cannot be used, or the library that decodes them crashed or did not end.
        UserError: a library is not installed.
    """
    decoder = _idle()
    try:
        pixels = decoder.decoded(data, shape)
    except (Undecodable, UserError):
        if decoder.alive:
            _IDLE.put(decoder)
        raise
    except BaseException:
        decoder.end(now=True)  # what it still answers would be taken for the next one's
        raise
    _IDLE.put(decoder)
    return pixels


class _Decoder:
    """A child, and the pipes to it."""

    def __init__(self) -> None:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.parent = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dpo_jax.data.decoders"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **one_thread, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C is the parent's to answer
        )
        self.alive = True

    def decoded(self, data: bytes, shape: Shape) -> np.ndarray:
        wanted = shape[1:] if shape.frames is None else (shape.frames, *shape[1:])
        to, back = self._process.stdin, self._process.stdout
        assert to is not None and back is not None
        try:
            to.write(json.dumps({"shape": shape, "bytes": len(data)}).encode() + b"\n")
            to.write(data)
            to.flush()
            if not select.select([back], [], [], MOST_SECONDS)[0]:
                self.end(now=True)
                raise Undecodable("too slow", f"it was not decoded within {MOST_SECONDS} seconds.")
            answer = json.loads(back.readline(_LONGEST_ANSWER) or "null")
        except (BrokenPipeError, ConnectionResetError):
            answer = None
        if answer is None:
            raise self._crash()
        if "missing" in answer:
            raise UserError(answer["missing"])
        if "reason" in answer:
            raise Undecodable(answer["reason"], answer["says"])
        pixels = np.empty(wanted, np.uint8)
        if back.readinto(pixels.data.cast("B")) != pixels.size:  # type: ignore[attr-defined]
            raise self._crash()
        return pixels

    def _crash(self) -> Exception:
        """The error of a child that has ended: of its row, unless somebody has killed it, who does not know of rows."""
        code = self.end()
        if code == -signal.SIGKILL:
            return UserError(
                f"a process that decodes pictures and clips {ending(code)}: no row is to blame. Free some memory, or "
                "allow this run more."
            )
        return Undecodable("decoder crashed", f"the library that decodes it {ending(code)}.")

    def end(self, *, now: bool = False) -> int:
        """End the child, after a moment if not now, and return its exit code."""
        self.alive = False
        try:
            code = self._process.wait(0 if now else 1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # what was still to be written
                pipe.close()
        return code


_IDLE: queue.LifoQueue[_Decoder] = queue.LifoQueue()


def _idle() -> _Decoder:
    """A decoder of this process that nobody uses, or a new one."""
    while True:
        try:
            decoder = _IDLE.get_nowait()
        except queue.Empty:
            return _Decoder()
        if decoder.parent == os.getpid():  # in a fork the others are the parent's
            return decoder


@atexit.register
def leave() -> None:
    """End the idle children."""
    while not _IDLE.empty():
        decoder = _IDLE.get()
        if decoder.parent == os.getpid():
            decoder.end(now=True)


def _answer(data: bytes, shape: Shape) -> tuple[dict[str, Any], bytes]:
    try:
        pixels = decoding.picture(data) if shape.frames is None else decoding.clip(data, frames=shape.frames)
        brought = decoding.brought(pixels, shape)
    except Undecodable as bad:
        return {"reason": bad.reason, "says": str(bad)[: _LONGEST_ANSWER // 16]}, b""
    except UserError as missing:
        return {"missing": str(missing)}, b""
    except MemoryError:
        return {"reason": "too much memory", "says": "to decode it takes more memory than a decoder may have."}, b""
    return {"shape": brought.shape}, np.ascontiguousarray(brought).tobytes()


def _serve(asked: IO[bytes], answers: IO[bytes]) -> None:
    while line := asked.readline():
        request = json.loads(line)
        shape, data = Shape(*request["shape"]), asked.read(request["bytes"])
        head, pixels = _answer(data, shape)
        assert not pixels or len(pixels) == math.prod(head["shape"])
        answers.write(json.dumps(head).encode() + b"\n" + pixels)
        answers.flush()


def _main() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    _main()
