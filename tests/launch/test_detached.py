"""detached.sh, really run on this machine: a command outlives its terminal, and is looked at and stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT


class Machine:
    """The folder of a detached command, and calls of detached.sh on it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def call(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DPO_JAX_DETACHED": str(self.folder), **extra}
        command = ["bash", "launch/detached.sh", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30)

    def process(self) -> int:
        return int((self.folder / "process").read_text())


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "detached")
    yield machine
    machine.call("stop")


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_command_outlives_the_session_that_started_it(machine: Machine, tmp_path: Path):
    go, script = tmp_path / "go", 'echo "got $SECRET"; while [[ ! -e "$1" ]]; do sleep 0.05; done; echo over; exit 7'
    environment = {**os.environ, "DPO_JAX_DETACHED": str(machine.folder), "SECRET": "it's one"}
    start = ["bash", "launch/detached.sh", "start", "bash", "-c", script, "x", str(go)]
    # A session, as sshd makes one, whose processes are told when it ends.
    session = subprocess.Popen(start, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.PIPE)
    assert b"started; its log is" in session.communicate(timeout=20)[0]  # which also closes its streams
    with contextlib.suppress(ProcessLookupError):  # nothing of that session is left
        os.killpg(session.pid, signal.SIGHUP)
    until(lambda: "got it's one" in (machine.folder / "log").read_text())
    looked = machine.call("status")
    assert looked.returncode == 0 and f": running (process {machine.process()})" in looked.stdout
    assert looked.stdout.splitlines()[1:] == ["    got it's one"]
    refused = machine.call("start", "true")
    assert refused.returncode == 2 and "another command runs here" in refused.stderr
    go.touch()
    until(lambda: (machine.folder / "code").exists())
    looked = machine.call("status")
    assert looked.returncode == 7 and "ended with exit code 7" in looked.stdout and "    over" in looked.stdout
    assert machine.call("logs").stdout.splitlines() == ["got it's one", "over"]
    assert machine.call("start", "sleep", "2").returncode == 0  # once it has ended there may be another
    assert ": running (process" in machine.call("status").stdout
    until(lambda: (machine.folder / "code").exists())
    assert machine.call("status").returncode == 0 and machine.call("logs").stdout == ""


def test_stop_reaches_what_has_just_been_started(machine: Machine):
    for _ in range(3):
        machine.call("start", "sleep", "60")
        assert "ended with exit code 143" in machine.call("stop", STOP_SECONDS="5").stdout


def test_stop_lets_a_training_save_itself(machine: Machine):
    saves = "trap 'sleep 0.3; echo saved; exit 143' TERM; echo trains; while :; do sleep 0.05; done"
    machine.call("start", "bash", "-c", saves)
    until(lambda: "trains" in (machine.folder / "log").read_text())
    stopped = machine.call("stop")
    assert stopped.returncode == 0 and "ended with exit code 143" in stopped.stdout and "    saved" in stopped.stdout
    assert machine.call("status").returncode == 143


def test_a_command_that_was_killed_may_have_been_so_for_want_of_memory(machine: Machine):
    machine.call("start", "bash", "-c", "kill -KILL $$")
    until(lambda: (machine.folder / "code").exists())
    looked = machine.call("status")
    assert looked.returncode == 137 and "ended with exit code 137 (killed: where nobody did, memory" in looked.stdout


def test_what_does_not_stop_is_said(machine: Machine):
    machine.call("start", "bash", "-c", "trap '' TERM; echo deaf; for _ in {1..100}; do sleep 0.05; done")
    until(lambda: "deaf" in (machine.folder / "log").read_text())
    stopped = machine.call("stop", STOP_SECONDS="1")
    assert stopped.returncode == 1 and ": running (process" in stopped.stdout


def test_logs_follow_until_the_end(machine: Machine):
    machine.call("start", "bash", "-c", "echo first; sleep 1; echo last")
    assert machine.call("logs").stdout.splitlines() == ["first", "last"]


def test_a_machine_that_was_started_anew_knows_that_the_run_is_gone(machine: Machine):
    machine.call("start", "sleep", "60")
    os.killpg(machine.process(), signal.SIGKILL)
    until(lambda: "gone without an exit code" in machine.call("status").stdout)
    assert machine.call("status").returncode == 3
    (machine.folder / "process").write_text(f"{os.getpid()}\n")  # the number has gone to another program
    assert "gone without an exit code" in machine.call("status").stdout


def test_nonsense(machine: Machine):
    for arguments in ([], ["start"], ["begin"]):
        assert machine.call(*arguments).stderr.startswith("Usage: bash launch/detached.sh"), arguments
    looked = machine.call("status")
    assert looked.returncode == 3 and "nothing was started here" in looked.stdout
    assert machine.call("logs").returncode == 2
