"""Disks that are full or cannot be written: said at once, and the steps before are whole."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpo_jax.training.checkpoint import Checkpoints
from tests.faults import tiny_run
from tests.faults.tiny_run import finish, said, start
from tests.tiny_experiment import metrics

TRAIN = {"steps": 4000, "save_every": 4, "keep": 2, "log_every": 50}

pytestmark = pytest.mark.slow("starts processes, each of which imports and compiles")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_run.make_experiment(tmp_path_factory.mktemp("disk"), train=TRAIN)
    assert finish(start(folder, "reference", "e.yaml")) == [0], said(folder)
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        return disk

    yield mount
    subprocess.run(["umount", "-l", str(disk)], capture_output=True)


def fill(disk: Path, *, spare: int) -> None:
    """Leaves so many KiB on a disk."""
    free = os.statvfs(disk)
    (disk / "ballast").write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - spare * 1024))


@pytest.mark.fault("the disk fills up while it trains")
def test_a_disk_that_fills_up_while_it_trains(folder: Path, small_disk: Callable, trials: Callable, held: Callable):
    disk = small_disk(20_000)
    count = trials(1, 10)
    for number in range(count):
        workdir = disk / str(number)
        assert finish(start(folder, "train", "e.yaml", "--workdir", str(workdir), "--train.steps", "8")) == [0]
        fill(disk, spare=30 + 40 * number)  # a checkpoint takes some 500 KiB
        (code,) = finish(start(folder, "train", "e.yaml", "--workdir", str(workdir)))
        assert code in (1, 2) and "Traceback" not in said(folder), said(folder)[-3000:]
        assert "No space left on device" in said(folder)
        assert "Event loop is closed" not in said(folder) and said(folder).count("ERROR") <= 1  # of all that failed
        done = metrics(workdir)[-1]["step"]
        assert done < 100, "it trained on as if nothing had happened"
        tiny_run.assert_listed_steps_are_whole(workdir)
        steps = Checkpoints(workdir / "checkpoints").steps()
        (disk / "ballast").unlink()
        assert finish(start(folder, "train", "e.yaml", "--workdir", str(workdir), "--train.steps", "40")) == [0]
        assert f"resumes at step {steps[-1]}" in said(folder)
    held(count, "said at once; the steps before are whole, and it goes on from them")


@pytest.mark.fault("a read-only disk")
def test_a_disk_that_cannot_be_written(folder: Path, small_disk: Callable, held: Callable):
    disk = small_disk(20_000)
    workdir = disk / "run"
    assert finish(start(folder, "train", "e.yaml", "--workdir", str(workdir), "--train.steps", "8")) == [0]
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for command in ("train", "evaluate", "export", "report"):
        held_out = ("--data.eval", "[{path: held.jsonl}]") if command == "evaluate" else ()
        (code,) = finish(start(folder, command, "e.yaml", "--workdir", str(workdir), *held_out))
        assert code in (1, 2) and "Read-only file system" in said(folder), (command, said(folder)[-3000:])
        assert "Traceback" not in said(folder)
    held(4, "train, evaluate, export and report say so")
