"""Errors from below, planted where a stage runs: what a user reads, where the details are, how the command ends."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError

from dpo_jax import cli
from dpo_jax.commands import table
from dpo_jax.commands.crash import explain
from dpo_jax.errors import UserError, sized_by

SECRET = "s3cr3t-Value-0123456789"
XLA = jax.errors.JaxRuntimeError
DUMP = """\

  INTERNAL: Error opening "zarr3" driver: Error reading "/runs/a/checkpoints/4/params/zarr.json"
  [tensorstore_spec='{"driver":"zarr3"}']
[source locations='tensorstore/driver/kvs_backed_chunk_driver.cc:1280']"""


def os_error(code: int, path: str | None = "/runs/a/metrics.jsonl") -> OSError:
    return OSError(code, os.strerror(code), path)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


PLANTED = {
    "device memory": (
        XLA("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes."),
        "out of memory on the device: 8 GiB more were wanted. Lower the size of the batches.*model.*\n.*dpo-jax plan",
    ),
    "host memory": (MemoryError("Unable to allocate 3 GiB"), "out of memory on this host: Unable to allocate 3 GiB"),
    "full disk": (os_error(errno.ENOSPC), "/runs/a/metrics.jsonl: No space left on device: make room"),
    "quota": (os_error(errno.EDQUOT), "metrics.jsonl: Disk quota exceeded"),
    "read-only disk": (os_error(errno.EROFS), "metrics.jsonl: Read-only file system: name a folder"),
    "permission": (os_error(errno.EACCES), "metrics.jsonl: Permission denied: allow this user"),
    "open files": (os_error(errno.EMFILE), "Too many open files: .*ulimit -n"),
    "full disk in a dump": (
        XLA(f'RESOURCE_EXHAUSTED: writing "/runs/a/checkpoints/4/params/x": No space left on device {DUMP}'),
        "/runs/a/checkpoints/4/params/x: No space left on device",
    ),
    "full disk as a cause": (caused(ValueError("saving failed"), os_error(errno.ENOSPC)), "No space left on device"),
    "one of a group": (ExceptionGroup("saves", [os_error(errno.ENOSPC)]), "No space left on device"),
    "not finite": (FloatingPointError("the reference's log-prob of row ab is not finite"), "the reference's log-prob"),
    "hub": (
        LocalEntryNotFoundError("no such file in the cache"),
        "the hub cannot be reached: no such file.*\n  Try again",
    ),
    "network": (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "network .* cannot be reached: "),
    "dump": (ValueError(DUMP), 'checkpoints/4 cannot be read or written: INTERNAL: Error opening "zarr3".*\n.*verify'),
    "extra": (ModuleNotFoundError("No module named 'wandb'", name="wandb"), r"pip install 'dpo-jax\[wandb\]'"),
    "package": (ModuleNotFoundError("No module named 'rich'", name="rich.x"), "the package rich is missing or broken"),
    "process gone": (
        XLA("UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n/job:jax_worker/task:3"),
        "process 3 of this run is gone or hangs",
    ),
    "peer gone": (XLA("INTERNAL: Gloo all-reduce failed: Connection closed by peer"), "another process of this run"),
    "anything": (TypeError("unsupported operand"), "crashed in TRAIN: TypeError: unsupported operand\n"),
}


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    config = {
        "workdir": "runs/a",
        "model": {"weights": "model"},
        "data": {"train": [{"path": "pairs.jsonl"}]},
        "loss": {"name": "dpo"},
    }
    Path("e.yaml").write_text(yaml.safe_dump(config))
    return Path("e.yaml")


def crash(monkeypatch: pytest.MonkeyPatch, error: BaseException, *arguments: str) -> int:
    """Plants the error in the training; the exit code."""

    def run(setup: object) -> None:
        raise error

    monkeypatch.setitem(table.COMMANDS, "train", table.Command("", lambda: run))
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments or ("train", "e.yaml"))
    return stopped.value.code


@pytest.mark.parametrize("name", PLANTED)
def test_first_lines_say_what_happened(experiment, monkeypatch, capsys, name: str):
    error, says = PLANTED[name]
    assert crash(monkeypatch, error) == 1
    said = capsys.readouterr().err
    first = said.split("dpo-jax: ", 1)[1]
    assert re.match(f".*{says}", first), said
    assert "Traceback" not in said and len(first.splitlines()) <= 4
    assert "Details: runs/a/crash.txt" in said
    kept = Path("runs/a/crash.txt").read_text()
    assert "Traceback" in kept and type(error).__name__ in kept and kept.startswith("dpo-jax train e.yaml")


def test_a_mistake_of_ours_names_its_place():
    with pytest.raises(AttributeError) as crashed:
        table._run()(None)
    said = explain(crashed.value, "run")
    assert (
        re.search(r"crashed in RUN: AttributeError: .*\nat dpo_jax/commands/\w+.py:\d+, in \w+. ", said)
        and "mistake of dpo_jax; please report it" in said
    )


def test_what_merely_happened_before_is_not_what_is_told():
    try:
        try:
            raise os_error(errno.EACCES)
        except OSError:
            raise TypeError("unsupported operand")  # noqa: B904
    except TypeError as error:
        assert explain(error, "train").startswith("crashed in TRAIN: TypeError")


@pytest.mark.parametrize("where", [0, 1, 2, 4])
def test_verbose_shows_the_traceback_wherever_it_stands(experiment, monkeypatch, capsys, where: int):
    arguments = ["train", "e.yaml", "--seed", "1"]
    arguments.insert(where, "--verbose")
    assert crash(monkeypatch, TypeError("unsupported operand"), *arguments) == 1
    said = capsys.readouterr().err
    assert said.index("crashed in TRAIN") < said.index("Traceback (most recent call last)")


def test_verbose_shows_the_cause_of_a_users_mistake(experiment, monkeypatch, capsys):
    planted = caused(UserError("the file cannot be read"), os_error(errno.EIO))
    assert crash(monkeypatch, planted, "train", "e.yaml", "--verbose") == 2
    said = capsys.readouterr().err
    assert "dpo-jax: the file cannot be read\n" in said and "Input/output error" in said
    assert not Path("runs/a/crash.txt").exists()


def test_secrets_are_hidden_in_all_that_is_said_and_kept(experiment, monkeypatch, capsys):
    planted = caused(RuntimeError(f"asked with {SECRET}"), ValueError(f"https://me:{SECRET}@host"))
    assert crash(monkeypatch, planted, "train", "e.yaml", "--verbose", "--seed", "3") == 1
    said = capsys.readouterr()
    assert SECRET not in said.err + said.out + Path("runs/a/crash.txt").read_text() and "***" in said.err


def test_interrupted_and_without_a_working_directory(experiment, monkeypatch, capsys):
    assert crash(monkeypatch, KeyboardInterrupt()) == 130
    monkeypatch.setattr(cli, "_check_local", lambda _: 1 / 0)
    assert crash(monkeypatch, TypeError()) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said and "`--verbose` shows the details." in said


def test_a_details_file_that_cannot_be_written_hides_nothing(experiment, monkeypatch, capsys):
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(os_error(errno.ENOSPC)))
    assert crash(monkeypatch, os_error(errno.ENOSPC)) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said and "crash.txt" not in said


def test_one_of_several_processes_ends_at_once_and_keeps_a_file_of_its_own(experiment, monkeypatch, capsys):
    monkeypatch.setattr("dpo_jax.runtime.hosts.join_run", lambda: None)
    monkeypatch.setattr("dpo_jax.runtime.hosts.check_shared", lambda _: None)
    monkeypatch.setattr("dpo_jax.runtime.hosts._taken_by_the_first", lambda _: True)
    monkeypatch.setattr("dpo_jax.runtime.hosts.meet", lambda *_, **__: None)
    monkeypatch.setattr(jax, "distributed", SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(os, "_exit", lambda code: sys.exit(100 + code))
    assert crash(monkeypatch, TypeError("unsupported operand")) == 101
    assert "crashed in TRAIN" in (said := capsys.readouterr().err) and "(process 1)" in said
    assert "unsupported operand" in Path("runs/a/crash.1.txt").read_text()


def test_the_innermost_setting_that_sizes_a_batch_is_to_be_lowered():
    @sized_by("sampling.batch_rows")
    def sample() -> None:
        raise XLA("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")

    with pytest.raises(XLA) as held, sized_by("train.micro_batch_pairs"):
        sample()
    assert "Lower sampling.batch_rows, set" in explain(held.value, "train")


@pytest.mark.parametrize("asked", ["17.45GiB", "18736797286 bytes", "17868.80M", "17.45G"])
def test_memory_is_told_in_gib(asked: str):
    words = explain(XLA(f"RESOURCE_EXHAUSTED: Out of memory while trying to allocate {asked}."), "train")
    assert "17.4 GiB more were wanted" in words or "17.5 GiB more were wanted" in words
