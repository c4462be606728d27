"""Kill -9 while responses are sampled and judged: what is there is not done again, and the end is that of no kill."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import tiny_run
from tests.faults.tiny_run import finish, lines, said, start, wait_until
from tests.tiny_experiment import EVALUATED, end_soon

pytestmark = pytest.mark.slow("starts processes, each of which imports and compiles")

JUDGE = """\
import time


def score(prompts, responses):
    with open("asked.txt", "a") as file:
        for both in zip(prompts, responses):
            time.sleep(0.02)
            print(both, file=file, flush=True)
    return [len(text) for text in responses]
"""
SAMPLES, ROWS = 24, 8
JUDGED = {"name": "python", "function": "slow.py:score"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, evaluated without a kill, and a copy of it that was not evaluated."""
    sampling = {"samples": 3, "max_new_tokens": 6, "temperature": 1.5, "batch_rows": ROWS}
    evaluation = {"samples": SAMPLES, "max_new_tokens": 6, "batch_rows": ROWS, "best_of": 3, "judge": JUDGED}
    folder = tiny_run.make_experiment(
        tmp_path_factory.mktemp("kept"), data=EVALUATED, evaluation=evaluation, sampling=sampling
    )
    (folder / "slow.py").write_text(JUDGE)
    end_soon(folder / "model")
    assert finish(start(folder, "train", "e.yaml")) == [0], said(folder)
    return folder


@pytest.mark.fault("kill -9 while responses are sampled and judged")
@pytest.mark.parametrize(("command", "result"), [("evaluate", "evaluation.json"), ("pairs", "pairs.jsonl")])
def test_a_command_killed_again_and_again(
    command: str, result: str, folder: Path, trials: Callable, held: Callable
) -> None:
    dice, log, kept = random.Random(command), folder / "asked.txt", folder / "runs/demo/kept"
    log.write_text("")
    assert finish(start(folder, command, "e.yaml")) == [0], said(folder)
    wanted, asked = (folder / "runs/demo" / result).read_bytes(), log.read_text().splitlines()
    (folder / "runs/demo" / result).unlink()
    for path in kept.iterdir():
        path.unlink()
    log.write_text("")
    killed, kills, sampled = 0, trials(2, 12), dict[str, bytes]()
    while killed < kills:
        processes = start(folder, command, "e.yaml")
        done, more = sum(map(lines, (log, *kept.iterdir()))), dice.randrange(1, 12)
        wait_until(lambda: sum(map(lines, (log, *kept.iterdir()))) >= done + more, processes)  # noqa: B023
        time.sleep(dice.random() * 0.05)
        processes[0].kill()
        killed += finish(processes) == [-signal.SIGKILL]
        for name, before in sampled.items():
            assert (kept / name).read_bytes().startswith(before), name
        sampled = {path.name: _whole_lines(path) for path in kept.iterdir()}
    assert finish(start(folder, command, "e.yaml")) == [0], said(folder)
    assert (folder / "runs/demo" / result).read_bytes() == wanted
    for name, before in sampled.items():
        assert (kept / name).read_bytes().startswith(before), name
    again = log.read_text().splitlines()
    assert set(again) == set(asked)
    assert len(again) - len(asked) <= killed * ROWS * 2  # the answers in flight, of calls that begin with 8 texts
    held(killed, "not sampled or judged again but what was in flight; the result is that of no kill, to every byte")


def _whole_lines(path: Path) -> bytes:
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1]
