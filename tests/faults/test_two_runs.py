"""Two runs at once: in one working directory the second is refused, on one missing store it waits and then reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dpo_jax.files import read_json
from dpo_jax.runs.verify import examine
from tests.faults import tiny_run
from tests.faults.tiny_run import CLI, wait_until
from tests.processes import environments

pytestmark = pytest.mark.slow("starts processes, each of which imports and compiles")

Process = subprocess.Popen[str]


@contextmanager
def running(folder: Path, log: str, *arguments: str) -> Iterator[Process]:
    with (folder / log).open("w") as stderr:
        command = [sys.executable, "-m", CLI, *arguments]
        process = subprocess.Popen(command, cwd=folder, env=environments(1, 2)[0], stderr=stderr, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def stop_once(true: Callable[[], bool], process: Process) -> None:
    """Stops a process in the midst of its work, as soon as something is true."""
    assert wait_until(true, [process])
    os.kill(process.pid, signal.SIGSTOP)


@pytest.mark.fault("two commands in one working directory")
def test_the_second_in_a_working_directory_is_refused(tmp_path: Path, trials: Callable, held: Callable):
    folder = tiny_run.make_experiment(tmp_path)
    with running(folder, "alone.log", "train", "e.yaml", "--workdir", "runs/alone") as alone:
        assert alone.wait(120) == 0
    count = trials(1, 3)
    for number in range(count):
        workdir = folder / f"runs/{number}"
        train = ("train", "e.yaml", "--workdir", f"runs/{number}")
        with running(folder, "first.log", *train) as first:
            stop_once((workdir / ".lock").exists, first)
            with running(folder, "second.log", *train, "--seed", "7") as second:
                assert second.wait(120) == 2
            said = (folder / "second.log").read_text()
            assert f"runs/{number} is in use by process {first.pid} on host" in said
            assert f"(dpo-jax train e.yaml --workdir runs/{number}). Wait for it, or stop it, or" in said
            looked = [each for each in examine(workdir) if each.state != "good"]
            assert [each.state for each in looked] == ["warn"] and f"in use by process {first.pid}" in looked[0].says
            first.send_signal(signal.SIGCONT)
            assert first.wait(120) == 0, (folder / "first.log").read_text()
        tiny_run.assert_same_end(workdir, folder / "runs/alone")
        ours, alone_config = ((folder / "runs" / name / "config.yaml").read_text() for name in (f"{number}", "alone"))
        assert ours == alone_config.replace("runs/alone", f"runs/{number}")
        assert not (workdir / ".lock").exists()
    held(count, "the second is refused by the name of the first, whose end is that of a run alone")


@pytest.mark.fault("two runs on one missing store, the first {fate}")
@pytest.mark.parametrize("fate", ["goes on", "is killed"])
def test_who_misses_a_store_waits_for_who_writes_it(fate: str, tmp_path: Path, trials: Callable, held: Callable):
    folder, count = tiny_run.make_experiment(tmp_path), trials(1, 3)

    def score(name: str, root: str) -> tuple[str, ...]:
        return ("reference", "e.yaml", "--workdir", name, "--reference.store", root, "--jsonl", f"{name}.jsonl")

    with running(folder, "alone.log", *score("alone", "stores/alone")) as alone:
        assert alone.wait(120) == 0
    for number in range(count):
        root = f"stores/{number}"
        with running(folder, "first.log", *score("first", root)) as first:
            stop_once(lambda: bool([*(folder / root).glob("*/manifest.json")]), first)  # noqa: B023
            with running(folder, "second.log", *score("second", root)) as second:
                assert wait_until(lambda: "waits for" in (folder / "second.log").read_text(), [second])
                first.send_signal(signal.SIGCONT if fate == "goes on" else signal.SIGKILL)
                assert first.wait(120) == (0 if fate == "goes on" else -signal.SIGKILL)
                assert second.wait(120) == 0, (folder / "second.log").read_text()
        (store,) = (folder / root).iterdir()
        shards, _ = tiny_run.stored(store)
        assert [shard["rows"] for shard in shards] == [8] * 5
        said = (folder / "second.log").read_text()
        assert f"{store.relative_to(folder)}, in use by process {first.pid} on host" in said
        assert ("40 rows in" in said and "nothing is left to score" in said) == (fate == "goes on")
        assert ("are there" in said) == (fate == "is killed")
        for name in ("first", "second") if fate == "goes on" else ("second",):
            assert (folder / f"{name}.jsonl").read_text() == (folder / "alone.jsonl").read_text()
        assert read_json(store / "used_by.json") == [str(folder / name) for name in ("first", "second")]
        assert {path.name for path in store.iterdir()} == {
            *(each["name"] for each in shards),
            "manifest.json",
            "used_by.json",
        }
    what = {
        "goes on": "the second waits, and reads what the first has written",
        "is killed": "the second goes on at once",
    }
    held(count, what[fate])
