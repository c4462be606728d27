"""Kill -9 at random moments of a training, and SIGTERM: what is done is kept, and the end is an unbroken run's."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_jax.runtime.preemption import EXIT_CODE
from tests.faults import tiny_run
from tests.faults.tiny_run import finish, said, start, wait_until
from tests.tiny_experiment import metrics

CHAINS = 5
TRAIN = {"save_every": 3, "keep": 3, "micro_batch_pairs": 4}
TERM_SECONDS = 10.0

pytestmark = pytest.mark.slow("starts processes, each of which imports and compiles")


def train(folder: Path, workdir: str) -> tuple[str, ...]:
    return ("train", "e.yaml", "--workdir", workdir)


@pytest.fixture(scope="module")
def steps(trials: Callable) -> dict[str, int]:
    return TRAIN | {"steps": trials(24, 300)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, steps: dict[str, int]) -> Path:
    """An experiment with its unbroken run."""
    folder = tiny_run.make_experiment(tmp_path_factory.mktemp("kills"), train=steps)
    assert finish(start(folder, *train(folder, "runs/whole"))) == [0], said(folder)
    return folder


@pytest.fixture(scope="module")
def folder_of_two(tmp_path_factory: pytest.TempPathFactory, steps: dict[str, int], trials: Callable) -> Path:
    """The same for two processes: a mesh decides in which order numbers are added."""
    trials(0, 1)
    folder = tiny_run.make_experiment(tmp_path_factory.mktemp("kills_of_two"), train=steps)
    assert finish(start(folder, *train(folder, "runs/whole"), count=2)) == [0, 0], said(folder)
    return folder


@pytest.mark.fault("kill -9 while training")
@pytest.mark.parametrize("chain", range(CHAINS))
def test_training_killed_again_and_again(chain: int, folder: Path, trials: Callable, held: Callable):
    kills = trials(1 * (chain == 0), 10)
    dice, workdir = random.Random(chain), folder / f"runs/chain_{chain}"
    killed = 0
    while killed < kills:
        processes = start(folder, *train(folder, f"runs/chain_{chain}"))
        before = tiny_run.lines(workdir / "metrics.jsonl")
        more = dice.randrange(0, 25)
        if wait_until(lambda: tiny_run.lines(workdir / "metrics.jsonl") >= before + more, processes):  # noqa: B023
            time.sleep(dice.random() * (0.1 if more else 6.0))  # without steps: while it starts
        processes[0].kill()
        killed += finish(processes) == [-signal.SIGKILL]
        tiny_run.assert_listed_steps_are_whole(workdir)
    assert finish(start(folder, *train(folder, f"runs/chain_{chain}"))) == [0], said(folder)
    tiny_run.assert_same_end(workdir, folder / "runs/whole")
    held(killed, "resumed; parameters, optimizer and metrics bit-identical to the unbroken run")


@pytest.mark.fault("SIGTERM, {processes}")
@pytest.mark.parametrize(("count", "processes"), [(1, "one process"), (2, "two processes")])
def test_sigterm_saves_and_leaves(
    count: int, processes: str, request: pytest.FixtureRequest, trials: Callable, held: Callable
):
    told = trials(1 * (count == 1), 10)
    here = request.getfixturevalue({1: "folder", 2: "folder_of_two"}[count])
    workdir, dice, slowest = here / f"runs/told_{count}", random.Random(count), 0.0
    for number in range(told):
        processes = start(here, *train(here, f"runs/told_{count}"), count=count)
        before, more = tiny_run.lines(workdir / "metrics.jsonl"), dice.randrange(2, 20)
        assert wait_until(lambda: tiny_run.lines(workdir / "metrics.jsonl") >= before + more, processes)  # noqa: B023
        begun = time.monotonic()
        processes[number % count].send_signal(signal.SIGTERM)
        assert finish(processes) == [EXIT_CODE] * count, said(here)
        slowest = max(slowest, time.monotonic() - begun)
        done = len(metrics(workdir))
        assert (workdir / "checkpoints" / f"{done}.json").exists() and f"saved step {done} of" in said(here)
    assert slowest < TERM_SECONDS
    assert finish(start(here, *train(here, f"runs/told_{count}"), count=count)) == [0] * count, said(here)
    tiny_run.assert_same_end(workdir, here / "runs/whole")
    held(told, f"saved, exit code {EXIT_CODE}, at most {slowest:.1f} s; the end bit-identical")
