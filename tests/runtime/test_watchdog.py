"""The watchdog: it tells of a slow step once, ends a process that hangs, and is still where nothing is watched."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpo_jax.runtime import watchdog
from dpo_jax.runtime.watchdog import EXIT_CODE, Watchdog

HANGS = """
import sys, time
from pathlib import Path
from dpo_jax.locks import Lock, held, inside
from dpo_jax.runtime.progress import console
from dpo_jax.runtime.watchdog import Watchdog

console.quiet = True  # as in every process but the first

def stuck_here():
    time.sleep(60)

with held(Lock(inside(Path(sys.argv[1])))), Watchdog("train", limit_seconds=1.0, limit_name="a.limit") as dog:
    with dog.watched():
        stuck_here()
"""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(Watchdog, "_tell", lambda self, what: found.append(what))
    monkeypatch.setattr(watchdog, "_LEAST_SECONDS", 0.1)
    return found


def steps(dog: Watchdog, *seconds: float) -> None:
    for each in seconds:
        with dog.watched():
            time.sleep(each)


def test_tells_once_of_a_step_that_takes_ten_times_the_usual(told: list[str]):
    with Watchdog("train", limit_seconds=8.0) as dog:  # looks every half second
        steps(dog, 0.01, 0.01, 0.01, 1.8)
    assert len(told) == 1 and "usual are 0.0" in told[0]  # more than 0.01 s where the machine is busy


def test_is_still_while_nothing_is_usual_and_between_steps(told: list[str]):
    with Watchdog("train", limit_seconds=8.0) as dog:
        steps(dog, 1.2, 0.01, 0.01, 0.01)
        time.sleep(1.2)
    assert not told


def test_ends_a_process_that_hangs_and_shows_where(tmp_path: Path):
    command = [sys.executable, "-c", HANGS, str(tmp_path)]
    start = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ended.returncode == EXIT_CODE and time.monotonic() - start < 30
    assert "a.limit is 1: leaving" in ended.stderr and "in stuck_here" in ended.stderr
    assert not list(tmp_path.iterdir())  # its lock is released
