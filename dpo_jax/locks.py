"""Locks: one writer in a folder at a time, where several processes on several hosts see it.

A lock is a file that names who holds it, put there by a hard link: whole or not at all, on network disks too. Its
holder renews the time of the file, for hosts that cannot see the holder itself. A lock is stale, and taken over by
whoever wants it next, when its process is gone from this machine, or has not renewed it for minutes elsewhere: by the
clock of the disk, and while one watched, for any clock may be set ahead or back.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import json
import os
import re
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from dpo_jax.errors import UserError, each_once
from dpo_jax.masking import mask

RENEWED_SECONDS = 15.0
STALE_SECONDS = 180.0  # twelve times that: disks and busy hosts are late
_WATCHED_SECONDS = 2 * RENEWED_SECONDS  # who lives has renewed it by then, whatever the clocks say
_LOOKS_SECONDS = 0.5
_LONGEST_COMMAND = 120
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NAME = re.compile(r"\.(.+\.)?lock(\.takeover)*")


def inside(folder: Path) -> Path:
    """The lock of a folder."""
    return folder / ".lock"


def beside(path: Path) -> Path:
    """The lock of a file, or of a folder that is absent until it is whole."""
    return path.with_name(f".{path.name}.lock")


def is_lock(name: str) -> bool:
    """True for the names of lock files."""
    return _NAME.fullmatch(name) is not None


class Holder(NamedTuple):
    """The process that holds a lock, as the file has it."""

    host: str
    machine: str  # within which numbers of processes mean something: a container has its own
    pid: int
    started: str
    folder: str  # a copy of a folder holds a copy of its lock
    since: str
    command: str
    token: str  # different for every lock that was ever taken

    def __str__(self) -> str:
        today = datetime.date.today().isoformat()
        since = self.since[:16].removeprefix(f"{today}T").replace("T", " ")
        return f"process {self.pid} on host {self.host} since {since} ({self.command})"


_UNREADABLE = Holder("unknown", "", 0, "", "", "some time", "its lock cannot be read", "")


class _Seen(NamedTuple):
    """A lock as it lies there: who holds it, and when that was renewed, by the clock of the disk."""

    holder: Holder
    renewed: float


class Lock:
    """A lock that is asked for with `taken` until that is true, and then held within its context.

    Who `waits` is patient with a holder that lives, and else refused. `tell` hears once for whom it waits.
    """

    def __init__(
        self,
        path: Path,
        command: str = "",
        *,
        waits: bool = False,
        tell: Callable[[str], None] = lambda words: None,
        instead: str = "",
    ):
        self.path = path.absolute()
        whole = path.parent if path.name == ".lock" else path.with_name(path.name[1:].removesuffix(".lock"))
        self.what, self._waits, self._tell, self._instead = str(whole), waits, tell, instead
        self._told, self._first_seen, self._ended = False, None, threading.Event()
        self._last_seen: tuple[_Seen, float] | None = None  # and since when it looks like that
        self.thread = threading.get_ident()
        command = command or mask(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))
        self._own = Holder(
            socket.gethostname(),
            _machine(),
            os.getpid(),
            _started(os.getpid()) or "",
            str(self.path.parent.resolve()),
            datetime.datetime.now().isoformat(timespec="seconds"),
            command if len(command) <= _LONGEST_COMMAND else f"{command[:_LONGEST_COMMAND]} ...",
            uuid.uuid4().hex,
        )

    def taken(self) -> bool:
        """Try to take it; False where to try again soon.

        Raises:
            UserError: a process that lives holds it, and this one does not wait; or the folder cannot be written.
        """
        try:
            seen = _read(self.path)
            if seen is None:
                return self._make()
            if self._is_stale(seen):
                return self._take_over(seen)
        except OSError as error:
            raise UserError(f"{self.what}: cannot be written: {error.strerror}.") from None
        self._first_seen = self._first_seen or seen
        lives = self._is_near(seen.holder) or seen != self._first_seen
        if lives and not self._waits:
            instead = f", or {self._instead}" if self._instead else ""
            raise UserError(f"{self.what} is in use by {seen.holder}. Wait for it, or stop it{instead}.")
        if not self._told:
            self._told = True
            unsure = "" if lives else f", or until that has given no sign of life for {STALE_SECONDS:.0f} s"
            self._tell(f"waits for {self.what}, in use by {seen.holder}{unsure}")
        return False

    def __enter__(self) -> Lock:
        _held[self.path] = self
        self._renewer = threading.Thread(target=self._renew, name=f"lock of {self.what}", daemon=True)
        self._renewer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewer.join()
        _held.pop(self.path, None)
        self.release()

    def release(self) -> None:
        """Take the file away, if it is still of this lock."""
        with contextlib.suppress(OSError):  # the folder may be gone, or its disk
            seen = _read(self.path)
            if seen and seen.holder == self._own:
                self.path.unlink()

    def _make(self) -> bool:
        """Put the file there; False if there is one already."""
        draft, text = self._draft(), json.dumps(self._own._asdict())
        try:
            with draft.open("w", encoding="utf8") as file:
                file.write(text)
            os.link(draft, self.path)
        except FileExistsError:
            return draft.stat().st_nlink == 2  # the answer was lost on the network, and the question repeated
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return self._make_without_links(text)
        finally:
            draft.unlink(missing_ok=True)
        return True

    def _make_without_links(self, text: str) -> bool:
        try:
            with self.path.open("x", encoding="utf8") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def _draft(self) -> Path:
        return self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}.partial")

    def _take_over(self, stale: _Seen) -> bool:
        """Put the own file in the place of a stale one, unless another process is about to."""
        # One after the other, and each looks again: another may have taken it over since, and that lock is not stale.
        if not self._turn.taken():
            return False
        try:
            if _read(self.path) == stale:
                self.path.unlink()
            made = self._make()
        finally:
            self._turn.release()
        if made:
            how = "killed, as the system does where memory is short, or lost with its machine"
            self._tell(f"{self.what} was left by {stale.holder}: {how}")
        return made

    @functools.cached_property
    def _turn(self) -> Lock:
        return Lock(self.path.with_name(f"{self.path.name}.takeover"), waits=True)

    def _is_stale(self, seen: _Seen) -> bool:
        if _is_gone(seen.holder):
            return True
        if self._is_near(seen.holder):
            return False
        watched = self._watched(seen)
        return watched > STALE_SECONDS or (watched > _WATCHED_SECONDS and self._silence(seen) > STALE_SECONDS)

    def _watched(self, seen: _Seen) -> float:
        """Seconds for which this process has seen the lock as it is now."""
        if self._last_seen is None or self._last_seen[0] != seen:
            self._last_seen = seen, time.monotonic()
        return time.monotonic() - self._last_seen[1]

    def _is_near(self, holder: Holder) -> bool:
        """True if this process can see for itself whether the holder lives and means this folder."""
        return (holder.machine, holder.folder) == (self._own.machine, self._own.folder)

    def _silence(self, seen: _Seen) -> float:
        """Seconds since a lock was renewed, by the clock of the disk: hosts have clocks of their own."""
        draft = self._draft()
        try:
            draft.touch()
            return draft.stat().st_mtime - seen.renewed
        finally:
            draft.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_SECONDS):
            with contextlib.suppress(OSError):  # a disk that does not answer for a while
                seen = _read(self.path)
                if seen is None:  # somebody has deleted it
                    self._make()
                elif seen.holder == self._own:
                    os.utime(self.path)
                else:  # this process was stopped for minutes; whatever it writes from now on would spoil the other's
                    said = f"{self.what} was taken from this process, which gave no sign of life, by {seen.holder}"
                    print(f"dpo-jax: {said}: leaving", file=sys.stderr, flush=True)
                    os._exit(2)


_held: dict[Path, Lock] = {}


@contextlib.contextmanager
def held(lock: Lock) -> Iterator[None]:
    """The context in which this thread has the lock; within another of the same thread it has it already.

    Raises:
        UserError: see `Lock.taken`.
    """
    outer = _held.get(lock.path)
    if outer and outer.thread == threading.get_ident():
        yield
        return
    pause = 0.01
    while not lock.taken():
        time.sleep(pause)
        pause = min(2 * pause, _LOOKS_SECONDS)
    with lock:
        yield


def release_all() -> None:
    """Release what this process holds, where it ends without leaving its contexts."""
    for lock in list(_held.values()):
        lock.release()


def describe(path: Path) -> tuple[bool, str]:
    """Tell of a lock file that others may hold: whether its process may be alive, and who that is."""
    seen = _read(path)
    if seen is None:
        return False, "released meanwhile"
    return not _is_gone(seen.holder), str(seen.holder)


def _read(path: Path) -> _Seen | None:
    """The lock there; None if there is none."""
    try:
        with path.open(encoding="utf8") as file:
            renewed = os.fstat(file.fileno()).st_mtime
            return _Seen(Holder(**json.load(file, object_pairs_hook=each_once)), renewed)
    except (ValueError, TypeError, RecursionError):  # made without links, and not yet written, or never
        return _Seen(_UNREADABLE, renewed)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return None
        raise


@functools.cache
def _machine() -> str:
    """The name of this machine, since it was started, and of this container in it."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # of Linux
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _is_gone(holder: Holder) -> bool:
    """True if the holder was a process of this machine, and is no more."""
    now = _started(holder.pid) if holder.machine == _machine() else ""
    return now is None or (now != holder.started and "" not in (now, holder.started))


def _started(pid: int) -> str | None:
    """The start of a process, a text where it cannot be known; None if there is no such process."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except OSError:
        return None
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return None if state in "ZX" else rest[18]  # a dead one may wait for its parent to notice
