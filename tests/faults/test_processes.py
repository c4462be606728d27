"""One of two processes comes to harm: all end soon, with its message, and the run goes on from its checkpoint."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dpo_jax.runtime import watchdog
from tests.faults import tiny_run
from tests.faults.tiny_run import finish, said, start, wait_until
from tests.tiny_experiment import metrics

ALL_DOWN_SECONDS = 30.0
ARGUMENTS = ("train", "e.yaml", "--train.steps", "200", "--train.save_every", "5")
TIMEOUT_SECONDS = {"hangs": "20"}  # the first step compiles within it too
TELLS = {
    "dies": "another task died|heartbeat timeout|unreachable|Connection reset|Gloo",
    "raises": "harmed on purpose",
    "hangs": "train.step_timeout_seconds is 20: leaving",
}

pytestmark = pytest.mark.slow("starts processes, each of which imports and compiles")


@pytest.mark.fault("one of two processes {harm}")
@pytest.mark.parametrize("harm", TELLS)
def test_all_are_down_when_one_is_harmed(harm: str, tmp_path: Path, trials: Callable, held: Callable):
    slowest, count = 0.0, trials(1 * (harm == "dies"), 5)
    folder = tiny_run.make_experiment(tmp_path, loss={"name": "simpo"})  # which needs no reference
    for number in range(count):
        harmed, workdir = number % 2, folder / f"runs/{number}"
        processes = start(
            folder,
            *ARGUMENTS,
            "--train.step_timeout_seconds",
            TIMEOUT_SECONDS.get(harm, "300"),
            "--workdir",
            f"runs/{number}",
            module="tests.faults.harmed",
            count=2,
            HARM=harm,
            HARM_PROCESS=str(harmed),
            HARM_STEP=str(12 + number),
        )
        # the batch before the harmful one is the last to be trained on
        assert wait_until(lambda: tiny_run.lines(workdir / "metrics.jsonl") >= 10, processes)  # noqa: B023
        begun = time.monotonic()
        codes = finish(processes, seconds=2 * ALL_DOWN_SECONDS)
        slowest = max(slowest, time.monotonic() - begun)
        logs = [said(folder, process) for process in range(2)]
        assert all(codes), codes
        teller = logs[1 - harmed if harm == "dies" else harmed]
        assert any(words in teller for words in TELLS[harm].split("|")), teller[-3000:]
        first = {"dies": -signal.SIGKILL, "raises": 1, "hangs": watchdog.EXIT_CODE}[harm]
        assert codes[harmed] == first or (harm == "hangs" and first in codes), codes  # either may be the first to leave
        tiny_run.assert_listed_steps_are_whole(workdir)
    assert slowest < ALL_DOWN_SECONDS
    assert finish(start(folder, "train", "e.yaml", "--workdir", "runs/0", "--train.steps", "20", count=2)) == [0, 0]
    sealed = "10" if harm == "hangs" else "5|10"  # where there was time to write the last
    assert len(metrics(folder / "runs/0")) == 20 and re.search(rf"resumes at step ({sealed}) ", said(folder))
    held(count, f"both down in at most {slowest:.0f} s, with a message; goes on")


@pytest.mark.fault("NaN in the batch of one of two processes")
def test_not_finite_in_one_process_is_skipped_by_both(tmp_path: Path, trials: Callable, held: Callable):
    trials(0, 1)
    folder, found = tiny_run.make_experiment(tmp_path), {}
    assert finish(start(folder, "reference", "e.yaml")) == [0], said(folder)
    for count in (1, 2):  # the last process has it: of two, the other has finite numbers alone
        harm = {"HARM": "nan", "HARM_PROCESS": str(count - 1), "HARM_STEP": "3"}
        arguments = ("train", "e.yaml", "--workdir", f"runs/{count}")
        assert finish(start(folder, *arguments, module="tests.faults.harmed", count=count, **harm)) == [0] * count
        assert [row["skipped_steps"] for row in metrics(folder / f"runs/{count}")] == [0, 0, 0, 1, 1, 1]
        found[count] = tiny_run.arrays(folder / f"runs/{count}/checkpoints/6/params")
    for name, array in found[1].items():
        assert np.isfinite(array).all()
        np.testing.assert_allclose(found[2][name], array, atol=1e-5)
    held(1, "both skip the step; the end is that of one process")
