"""A run of 10,000 steps: memory, open files and threads stay flat, and nothing compiles after the warm-up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.faults import tiny_run
from tests.faults.tiny_run import finish, said, start

BYTES_PER_STEP = 200.0  # a leaked array of one number, with its Python object, is more
BYTES_PER_CHECKPOINT = 2**19  # Orbax keeps some 200 KiB of each

pytestmark = pytest.mark.slow("starts processes, each of which imports and compiles")


@pytest.mark.fault("a run of 10,000 steps")
@pytest.mark.parametrize("save_every", [200, 100_000])
def test_nothing_grows(save_every: int, tmp_path: Path, trials: Callable, held: Callable):
    steps = trials(0, 10_000)
    train = {"steps": steps, "save_every": save_every, "log_every": 1}
    folder = tiny_run.make_experiment(tmp_path, train=train, mesh={"fsdp": 1})
    processes = start(folder, "train", "e.yaml", module="tests.faults.measured", devices=1)
    assert finish(processes, seconds=1500) == [0], said(folder)
    found = [json.loads(line) for line in (folder / "measured.jsonl").read_text().splitlines()]
    warm = found[len(found) // 3 :]
    assert len(warm) >= 9 and len({row["compiled"] for row in warm}) == 1, [row["compiled"] for row in found]
    # A checkpoint that is being written holds some of both: the least of a few samples is what stays.
    for name in ("files", "threads"):
        assert min(row[name] for row in warm[-4:]) <= min(row[name] for row in warm[:4]), name
    slope = np.polyfit([row["step"] for row in warm], [row["kib"] * 1024.0 for row in warm], 1)[0]
    if len(found) > 50:  # the allocator settles in the first thousands
        assert slope < BYTES_PER_STEP + BYTES_PER_CHECKPOINT / save_every
    saves = f"a checkpoint every {save_every} steps" if save_every < steps else "no checkpoints"
    size = f"memory {slope:+.0f} bytes a step (of {found[-1]['kib'] / 1024:.0f} MiB)"
    what = f"{saves}: {size}, files and threads flat, no compile"
    held(1, what)
