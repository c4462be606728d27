"""A clock that is set ahead or back: locks, the order of what TensorBoard reads, and what is waited for."""

from __future__ import annotations

import email.utils
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_jax import cli, locks
from dpo_jax.evaluation.judges import chat
from dpo_jax.locks import Lock
from dpo_jax.training.metrics import TensorBoardSink
from tests.faults import tiny_run
from tests.faults.tiny_run import make_experiment
from tests.test_locks import ELSEWHERE, passing, plant
from tests.training.test_metrics import scalars

HOUR = 3600.0


@pytest.mark.fault("the clock of a disk with a lock of another host is set ahead or back")
@pytest.mark.parametrize("ahead", [HOUR, -HOUR])
def test_who_renews_its_lock_has_it_and_who_does_not_loses_it(
    ahead: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: Callable
):
    later = passing(monkeypatch)
    path = plant(tmp_path, age=ahead, **ELSEWHERE)  # renewed a moment before
    lock = Lock(path, waits=True)
    for _ in range(20):
        assert not lock.taken()
        later(locks.RENEWED_SECONDS)
        os.utime(path)
    assert not lock.taken()
    at = time.time() - ahead  # and set once more
    os.utime(path, (at, at))
    assert not lock.taken()
    later(locks.STALE_SECONDS + 1)
    assert lock.taken()
    held(1, "not taken while it is renewed, taken after at most 180 s without")


@pytest.mark.fault("the clock is set back between two sessions of a training")
def test_tensorboard_reads_the_later_session_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: Callable):
    now, sessions = time.time(), ((None, range(1, 7)), (4, range(5, 9)), (6, range(7, 10)), (8, range(9, 11)))
    for number, (done, steps) in enumerate(sessions):
        monkeypatch.setattr(time, "time", lambda back=number * HOUR: now - back)
        monkeypatch.setattr(time, "time_ns", lambda back=number * HOUR: int((now - back) * 1e9))
        sink = TensorBoardSink(tmp_path, resume_step=done)
        for step in steps:
            sink.write(step, {"loss": step + number / 10})
        sink.close()
    files = sorted(tmp_path.iterdir())  # the order of TensorBoard
    assert [len(scalars(path)) for path in files] == [len(steps) for _, steps in sessions]
    assert [scalars(path)[0][0] for path in files] == [1, 5, 7, 9]
    held(1, "its events are read after those of the session before")


@pytest.mark.fault("a judge's clock is hours off")
@pytest.mark.parametrize("off", [-2 * HOUR, 2 * HOUR])
def test_a_date_to_wait_for_is_by_the_clock_of_who_says_it(off: float, held: Callable):
    now, until = (email.utils.formatdate(time.time() + off + more, usegmt=True) for more in (0, 9))
    assert chat._retry_after({"Date": now, "Retry-After": until}) == 9
    assert chat._retry_after({"Date": "late", "Retry-After": until}) == pytest.approx(max(0.0, off + 9), abs=3)
    held(1, "the wait that it asks for is counted from its own Date")


@pytest.mark.slow("four trainings")
@pytest.mark.fault("the clock is a year ahead or back, or set back, while it trains")
def test_a_training_goes_on_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: Callable):
    monkeypatch.chdir(make_experiment(tmp_path, train={"save_every": 1, "keep": 2}))
    cli.main(["train", "e.yaml", "--workdir", "runs/whole"])
    clock, clock_ns, calls = time.time, time.time_ns, 0

    def set_to(off: Callable[[], float]) -> None:
        monkeypatch.setattr(time, "time", lambda: clock() + off())
        monkeypatch.setattr(time, "time_ns", lambda: clock_ns() + int(off() * 1e9))

    def back_in_the_middle() -> float:
        nonlocal calls
        calls += 1
        return -HOUR if calls > 30 else 0.0

    for steps, off in (("2", lambda: 365 * 24 * HOUR), ("4", lambda: -365 * 24 * HOUR), ("6", back_in_the_middle)):
        set_to(off)
        cli.main(["train", "e.yaml", "--workdir", "runs/ours", "--train.steps", steps])
    assert calls > 60
    tiny_run.assert_same_end(Path("runs/ours"), Path("runs/whole"))
    held(3, "resumed; metrics and parameters bit-identical to those of a steady clock")
