"""Kill -9 at random moments of the reference pass: what is scored is kept, and the store is that of an unbroken one."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dpo_jax.files import read_json
from tests.faults import tiny_run
from tests.faults.tiny_run import finish, said, start, wait_until

CHAINS = 5

pytestmark = pytest.mark.slow("starts processes, each of which imports and compiles")


@pytest.mark.fault("kill -9 in the reference pass")
@pytest.mark.parametrize("chain", range(CHAINS))
def test_the_reference_pass_killed_again_and_again(chain: int, tmp_path: Path, trials: Callable, held: Callable):
    kills = trials(1 * (chain == 0), 10)
    rows_in_all = trials(160, 1600)
    folder = tiny_run.make_experiment(tmp_path, rows=rows_in_all)
    assert finish(start(folder, "reference", "e.yaml", "--reference.store", "runs/whole")) == [0], said(folder)
    (whole,) = (folder / "runs/whole").iterdir()
    store = folder / "runs/stores" / whole.name
    dice, killed, known = random.Random(chain), 0, 0

    def rows() -> int:
        return sum(shard["rows"] for shard in read_json(store / "manifest.json")["shards"]) if store.exists() else 0

    while killed < kills:
        processes = start(folder, "reference", "e.yaml")
        more = 8 * dice.randrange(1, 12)
        wait_until(lambda: (store / "manifest.json").exists() and rows() >= known + more, processes)  # noqa: B023
        time.sleep(dice.random() * 0.3)
        processes[0].kill()
        killed += finish(processes) == [-signal.SIGKILL]
        if known:
            assert f"scores {rows_in_all - known} rows" in said(folder) and f"{known} are there" in said(folder)
        known = rows()
    assert finish(start(folder, "reference", "e.yaml")) == [0], said(folder)
    (ours, found), (wanted, expected) = tiny_run.stored(store), tiny_run.stored(whole)
    assert [shard | {"digests": 0} for shard in ours] == [shard | {"digests": 0} for shard in wanted]
    for shard, other in zip(found, expected, strict=True):
        for name, array in other.items():
            np.testing.assert_array_equal(shard[name], array)
    held(killed, "resumed; the same arrays and manifest, only the shard in flight again")
