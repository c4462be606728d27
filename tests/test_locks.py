"""Locks of folders: who is refused, who waits, and when a lock that was left is taken over."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpo_jax import locks
from dpo_jax.errors import UserError
from dpo_jax.locks import Lock, held, inside
from tests.processes import ROOT

CHILD = """
import sys, time
from pathlib import Path
from dpo_jax.locks import Lock, held, inside
with held(Lock(inside(Path(sys.argv[1])), "dpo-jax train mine.yaml")):
    print("held", flush=True)
    {then}
"""


@contextlib.contextmanager
def holder(folder: Path, then: str = "time.sleep(60)") -> Iterator[subprocess.Popen[str]]:
    """A process that has the lock of a folder, and then does something."""
    script = [sys.executable, "-c", CHILD.format(then=then), str(folder)]
    own = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(script, env=own, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def plant(folder: Path, /, *, age: float = 0.0, **changed: Any) -> Path:
    """A lock that this process might have left, with some facts changed, so many seconds after its last renewal."""
    path = inside(folder)
    own = Lock(path, "dpo-jax train mine.yaml")._own
    path.write_text(json.dumps(own._replace(token="planted", **changed)._asdict()))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


ELSEWHERE: dict[str, Any] = {"host": "far", "machine": "far 1 2"}
OLD = locks.STALE_SECONDS + 5
WATCHED = locks._WATCHED_SECONDS + 1


def passing(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets so many seconds go by, for who watches a lock."""
    passed = 0.0

    def later(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed, sleep=time.sleep)
    monkeypatch.setattr(locks, "time", clock)
    return later


later = pytest.fixture(passing)


def test_a_second_process_is_refused_by_the_name_of_the_first(tmp_path: Path):
    with holder(tmp_path) as process:
        with pytest.raises(UserError) as refused, held(Lock(inside(tmp_path), instead="give another workdir")):
            pass
        said = str(refused.value)
        assert said.startswith(f"{tmp_path} is in use by process {process.pid} on host ")
        assert said.endswith("(dpo-jax train mine.yaml). Wait for it, or stop it, or give another workdir.")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]  # of a process that was killed


def test_the_same_thread_may_nest_and_another_is_refused(tmp_path: Path):
    def ask() -> None:
        with held(Lock(inside(tmp_path))):
            pass

    with held(Lock(inside(tmp_path))):
        with held(Lock(inside(tmp_path))):
            pass
        assert inside(tmp_path).exists()
        with ThreadPoolExecutor(1) as pool, pytest.raises(UserError, match=f"in use by process {os.getpid()} "):
            pool.submit(ask).result()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("then", "code"),
    [("pass", 0), ("1 / 0", 1), ("sys.exit(2)", 2), ("raise KeyboardInterrupt", -signal.SIGINT)],
)
def test_nothing_is_left_where_python_ends_the_process(tmp_path: Path, then: str, code: int):
    with holder(tmp_path, then) as process:
        assert process.wait(10) == code
    assert not list(tmp_path.iterdir())


def test_a_killed_holder_is_taken_over_at_once_and_by_who_waits(tmp_path: Path):
    told, others = [], []

    def wait() -> None:
        with held(Lock(inside(tmp_path), waits=True, tell=told.append)):
            others.append(inside(tmp_path).read_text())

    with holder(tmp_path) as process:
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.5)
        assert not others and [each.split(" since")[0] for each in told] == [
            f"waits for {tmp_path}, in use by process {process.pid} on host {os.uname().nodename}"
        ]
        process.kill()
        process.wait()
        waiting.join(5)
        assert len(others) == 1 and not list(tmp_path.iterdir())
        assert len(told) == 2 and "memory is short" in told[1]


@pytest.mark.parametrize(
    ("changed", "age", "taken"),
    [
        ({}, OLD, False),  # alive here, however long it has not come to renew it
        ({"started": "1"}, 0, True),  # the number is another process's now
        ({"pid": 2**22 + 1}, 0, True),
        ({"folder": "/original"}, 0, False),  # a copy of a folder while it was in use
        ({"folder": "/original"}, OLD, True),
        ({"folder": "/original", "started": "1"}, 0, True),
        (ELSEWHERE, 0, False),
        (ELSEWHERE, locks.STALE_SECONDS - 5, False),
        (ELSEWHERE, OLD, True),
        (ELSEWHERE | {"pid": 2**22 + 1}, 0, False),  # numbers of another machine mean nothing here
    ],
)
def test_which_locks_are_stale(
    tmp_path: Path, changed: dict[str, Any], age: float, taken: bool, later: Callable[[float], None]
):
    path = plant(tmp_path, age=age, **changed)
    lock = Lock(path, waits=True)
    at_once = lock.taken()
    assert at_once == (changed.get("started", changed.get("pid")) is not None and taken)  # it is gone from here
    later(WATCHED)
    assert at_once or lock.taken() == taken
    assert ("planted" in path.read_text()) != taken
    assert os.listdir(tmp_path) == [".lock"]


def test_a_lock_of_another_host_is_refused_once_it_is_renewed(tmp_path: Path):
    told: list[str] = []
    path = plant(tmp_path, age=60, **ELSEWHERE)
    lock = Lock(path, tell=told.append)
    assert not lock.taken() and not lock.taken()
    assert len(told) == 1 and told[0].endswith("until that has given no sign of life for 180 s")
    os.utime(path)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on host far since"):
        lock.taken()


def test_silence_is_by_the_clock_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = plant(tmp_path, **ELSEWHERE)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # the clock of this host is decades ahead
    assert not Lock(path, waits=True).taken()


def test_a_file_that_says_nothing_is_a_lock_until_it_is_old(tmp_path: Path, later: Callable[[float], None]):
    path = inside(tmp_path)
    path.write_text("")
    assert not Lock(path).taken()
    os.utime(path, (1, 1))
    lock = Lock(path)
    assert not lock.taken()
    later(WATCHED)
    assert lock.taken()


def test_one_of_many_takes_a_stale_lock_over(tmp_path: Path):
    takers, rounds = 8, 60
    start, end = threading.Barrier(takers), threading.Barrier(takers)

    def take(number: int) -> list[bool]:
        won = []
        for each in range(rounds):
            if number == 0:
                (tmp_path / str(each)).mkdir()
                plant(tmp_path / str(each), started="1")
            start.wait()
            won.append(Lock(inside(tmp_path / str(each)), waits=True).taken())
            end.wait()
        return won

    with ThreadPoolExecutor(takers) as pool:
        winners = [sum(won) for won in zip(*pool.map(take, range(takers)), strict=True)]
    assert winners == [1] * rounds
    assert all(os.listdir(tmp_path / str(each)) == [".lock"] for each in range(rounds))


def test_a_taker_that_was_killed_is_taken_over_too(tmp_path: Path, later: Callable[[float], None]):
    path = plant(tmp_path, started="1")
    (tmp_path / ".lock.takeover").write_text(path.read_text())
    assert Lock(path).taken() and os.listdir(tmp_path) == [".lock"]
    far = plant(tmp_path, age=OLD, **ELSEWHERE).rename(tmp_path / ".lock.takeover")
    lock = Lock(plant(tmp_path, started="1"))
    assert far.exists() and not lock.taken()
    later(WATCHED)
    assert lock.taken() and os.listdir(tmp_path) == [".lock"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], bool]], None]:
    """Locks that are renewed all the time; waits for something to be true."""
    monkeypatch.setattr(locks, "RENEWED_SECONDS", 0.01)

    def until(true: Callable[[], bool]) -> None:
        end = time.monotonic() + 5
        while not true():
            assert time.monotonic() < end
            time.sleep(0.01)

    return until


def test_the_holder_renews_its_lock_and_makes_it_again(tmp_path: Path, quick: Callable):
    path = inside(tmp_path)
    with held(Lock(path)):
        os.utime(path, (1, 1))
        quick(lambda: path.stat().st_mtime > 1)
        path.unlink()
        quick(path.exists)
    assert not list(tmp_path.iterdir())


def test_who_was_thought_dead_leaves(tmp_path: Path, quick: Callable, monkeypatch: pytest.MonkeyPatch, capsys):
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with held(Lock(inside(tmp_path))):
        plant(tmp_path, **ELSEWHERE)
        quick(lambda: bool(codes))
    assert codes[0] == 2 and "was taken from this process" in capsys.readouterr().err
    assert "planted" in inside(tmp_path).read_text()  # the other's lock stays


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_disk_without_hard_links(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    with held(Lock(inside(tmp_path))):
        assert not Lock(inside(tmp_path), waits=True).taken()
    assert not list(tmp_path.iterdir())


def test_release_all_is_for_who_leaves_no_context(tmp_path: Path):
    with held(Lock(inside(tmp_path))):
        locks.release_all()
        assert not list(tmp_path.iterdir())


def test_names():
    assert locks.beside(Path("a/export")) == Path("a/.export.lock")
    assert Lock(locks.beside(Path("/a/export"))).what == "/a/export" and Lock(Path("/a/.lock")).what == "/a"
    names = [".lock", ".lock.takeover", ".export.lock", ".used_by.json.lock"]
    assert all(map(locks.is_lock, names)) and not any(map(locks.is_lock, ["lock", "a.lock", ".lock.1", ".locked"]))
