"""A disk between two hosts that is late: the second host sees for seconds nothing of what the first has written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from dpo_jax import meeting
from dpo_jax.errors import UserError
from tests.faults import tiny_run
from tests.faults.tiny_run import finish, said, start
from tests.tiny_experiment import metrics

SECONDS = 3


@pytest.mark.slow("six trainings in two processes, minutes: one of --full-trials")
@pytest.mark.fault("the second of two processes sees files seconds late")
def test_a_training_and_its_resume(tmp_path: Path, trials: Callable, held: Callable):
    folder, count = tiny_run.make_experiment(tmp_path, rows=16, train={"save_every": 1}), trials(0, 6)
    (folder / "runs").mkdir()
    for steps in range(1, count + 1):
        command = ("runs", str(SECONDS), "train", "e.yaml", "--train.steps", str(steps))
        ended = finish(start(folder, *command, module="tests.faults.late", count=2), seconds=900)
        assert ended == [0, 0], said(folder) + said(folder, 1)
        assert steps == 1 or f"resumes at step {steps - 1} of {steps}" in said(folder)
    assert [row["step"] for row in metrics(folder / "runs/demo")] == list(range(1, count + 1))
    held(count, "store, checkpoints and resumes wait until both see the same")


@pytest.mark.fault("a disk that shows a folder of the other host late, or never")
@pytest.mark.parametrize("late", ["absent", "of an earlier time", "for ever"])
def test_who_meets_waits_until_both_see_the_same(
    late: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: Callable
):
    ours, other = tmp_path / "ours" / "runs", tmp_path / "other" / "runs"
    for folder in (ours, other):
        (folder / "checkpoints" / "2").mkdir(parents=True)
        (folder / ".lock").write_text(folder.parent.name)  # what is hidden is nobody's business
    (ours / "checkpoints" / "2.json").write_text("new")
    if late != "absent":
        (other / "checkpoints" / "2.json").write_text("old")  # as long
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if late != "for ever" and sum(pauses) > 5:
            (other / "checkpoints" / "2.json").write_text("new")

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(meeting.multihost_utils, "sync_global_devices", lambda what: None)
    monkeypatch.setattr(
        meeting.multihost_utils, "process_allgather", lambda view: np.array([view, meeting._view(other)])
    )
    monkeypatch.setattr(meeting.time, "sleep", pause)
    if late == "for ever":
        with pytest.raises(UserError, match=f"{ours} is not one folder on all hosts: process 1 does not see"):
            meeting.meet("a step is sealed", sees=ours)
        assert sum(pauses) == pytest.approx(meeting.LATE_SECONDS)
    else:
        meeting.meet("a step is sealed", sees=ours)
        assert 5 < sum(pauses) < 6
    held(1, "waited for, a minute at most; then said by the folder and the process")
