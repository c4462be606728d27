"""`dpo-jax doctor` on this machine, and on machines on which something is wrong."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from packaging.specifiers import SpecifierSet

from dpo_jax import cli
from dpo_jax.runtime import doctor, machine
from tests.commands.test_hosts import together

SECRET = "s3cr3t-Value-0123456789"


def states(each, state: str) -> str:
    return "\n".join(f"{one.what}: {one.says}" for one in each if one.state == state)


def test_a_machine_on_which_all_is_well(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    cli.main(["doctor", "--workdir", str(tmp_path / "runs/new")])
    said = capsys.readouterr().out
    assert f"jax {jax.__version__}" in said and "8 x cpu (cpu)" in said
    assert "matmul       right to the bit on all" in said and "runs/new can be written" in said
    assert "HF_TOKEN is set" in said and SECRET not in said and "XLA_PYTHON_CLIENT_MEM_FRACTION=0.5" in said
    assert not list(tmp_path.iterdir())  # nothing is left, not even the folder that was asked for
    assert " bad  " not in said


def test_a_folder_that_cannot_be_written_ends_with_two(tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["doctor", "--workdir", str(tmp_path / "file")])
    said = capsys.readouterr()
    assert stopped.value.code == 2 and "doctor: 1 of" in said.err
    assert " bad  folder       " in said.out and "cannot be written: Not a directory. Name another folder." in said.out


@pytest.mark.parametrize("off", [-90.0, 90.0])
def test_a_disk_with_another_clock(tmp_path: Path, off: float):
    assert not states(machine.written("folder", tmp_path), "warn").count("clock")
    said = states(machine.written("folder", tmp_path, now=lambda: time.time() - off), "warn")
    assert f"is {off:+.0f} s off this host" in said


def test_a_disk_that_gives_back_something_else(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"other")
    assert "is not what is read again" in states(machine.written("folder", tmp_path), "bad")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing(tmp_path: Path, monkeypatch, code: int):
    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    assert os.strerror(code) in states(machine.written("folder", tmp_path), "bad")
    assert not list(tmp_path.iterdir())


GIB = 2**30


def machine_with(root: Path, groups: str, **files: object) -> Path:
    """A machine of 64 GiB, 2 of them free and 50 available; `files` by their names below the mounted control groups."""
    meminfo = f"MemTotal: {64 << 20} kB\nMemFree: {2 << 20} kB\nMemAvailable: {50 << 20} kB\nCached: 1 kB\nHugePages: 0"
    held = {"proc/meminfo": meminfo, "proc/self/cgroup": groups}
    held |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in held.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def test_files_that_the_system_keeps_in_memory_count_as_available(tmp_path: Path):
    assert machine.memory(machine_with(tmp_path, "0::/")) == (64 * GIB, 50 * GIB)


def test_memory_within_a_container_of_version_2(tmp_path: Path):
    stat = f"anon {3 * GIB}\nfile {4 * GIB}\ninactive_file {3 * GIB}\nactive_file {1 * GIB}"
    of = {"memory.max": 8 * GIB, "memory.current": 7 * GIB, "memory.stat": stat}
    assert machine.memory(machine_with(tmp_path, "0::/", **of)) == (8 * GIB, 5 * GIB)  # 8 - (7 - 3 - 1)


def test_the_narrowest_control_group_counts(tmp_path: Path):
    inner = {"memory.max": "max", "memory.current": 5 * GIB, "memory.stat": "inactive_file 0"}
    outer = {"memory.max": 6 * GIB, "memory.current": 6 * GIB, "memory.stat": f"inactive_file {GIB}"}
    files = {f"a/b/{name}": text for name, text in inner.items()} | {f"a/{name}": text for name, text in outer.items()}
    root = machine_with(tmp_path, "1:name=systemd:/\n0::/a/b", **files)
    assert machine.memory(root) == (6 * GIB, 1 * GIB)


def test_memory_within_a_container_of_version_1(tmp_path: Path):
    stat = f"total_inactive_file {GIB}\ntotal_active_file {GIB}\ninactive_file 0"
    of = {"memory.limit_in_bytes": 8 * GIB, "memory.usage_in_bytes": 4 * GIB, "memory.stat": stat}
    files = {f"memory/{name}": text for name, text in of.items()}
    groups = "5:cpu,cpuacct:/elsewhere\n4:memory:/docker/0123"  # of the host, and not to be seen in the container
    assert machine.memory(machine_with(tmp_path, groups, **files)) == (8 * GIB, 6 * GIB)


def test_memory_where_there_is_no_linux(tmp_path: Path):
    total, available = machine.memory(tmp_path)
    assert total == available > 0


def test_little_room_is_a_warning(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(machine, "_LEAST_FREE_BYTES", 1 << 60)
    assert "want more" in states(machine.written("folder", tmp_path), "warn")


def test_versions_that_are_not_tested_and_packages_that_are_not_there(monkeypatch):
    bounds = machine.requirements()
    assert {"jax", "flax", "orbax-checkpoint", "transformers"} <= bounds.keys() and "wandb" not in bounds
    assert not states(machine._installed(), "bad")
    other = {"jax": SpecifierSet(">=99"), "no-such-package": SpecifierSet(">=1")}
    monkeypatch.setattr(machine, "requirements", lambda: bounds | other)
    assert "not what dpo_jax is tested with; run `pip install 'jax>=99'`" in states(machine._installed(), "warn")
    assert "no-such-package is not installed" in states(machine._installed(), "bad")


def test_variables_that_do_harm():
    said = states(machine._variables({"JAX_ENABLE_X64": "True", "JAX_DISABLE_JIT": "0"}), "warn")
    assert "JAX_ENABLE_X64=True" in said and "JAX_DISABLE_JIT" not in said


def test_a_gpu_that_jax_does_not_use(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: name)
    monkeypatch.setattr(
        doctor.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, "GPU 0: NVIDIA H200 (UUID: x)\n")
    )
    said = states(doctor._devices({}), "warn")
    assert "GPU (GPU 0: NVIDIA H200)" in said and "pip install 'dpo-jax[cuda13]'" in said
    assert "JAX_PLATFORMS=cpu says so" in states(doctor._devices({"JAX_PLATFORMS": "cpu"}), "warn")


def test_a_device_that_multiplies_wrongly(monkeypatch):
    right = doctor.jnp.matmul

    def wrong(left, right_, **options):
        product = right(left, right_, **options)
        return product.at[3, 5].add(1.0) if {each.id for each in left.devices()} == {2} else product

    monkeypatch.setattr(doctor.jnp, "matmul", wrong)
    assert "device 2 multiplies wrongly" in states(doctor._devices({}), "bad")


def test_a_compiler_that_is_wrong(monkeypatch):
    right = doctor.jnp.sum
    monkeypatch.setattr(doctor.jnp, "sum", lambda values: right(values) * 0.992)
    said = states(doctor._devices({}), "bad")
    assert "jax-ml/jax#39103 wrong. Set XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=." in said


def test_no_devices(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: (_ for _ in ()).throw(RuntimeError("no backend\nmore")))
    assert "JAX finds none: no backend" in states(doctor._devices({}), "bad")


@pytest.mark.slow("whole commands")
def test_the_processes_of_a_run_answer_by_name(tmp_path: Path):
    arguments = ("dpo_jax.cli", "doctor", "--workdir", str(tmp_path))
    first, other = together(2, *arguments, folders=[tmp_path] * 2)
    assert first.returncode == other.returncode == 0, first.stderr + other.stderr
    assert "processes    all 2 answer" in first.stdout and "with 8 devices" in first.stdout
    assert "s apart" in first.stdout and "the same on all of them" in first.stdout and "good" not in other.stdout


def test_processes_that_differ(tmp_path: Path, monkeypatch):
    everyone = [{"host": "a", "versions": {"jax": "1"}}, {"host": "b", "versions": {"jax": "2"}}]
    monkeypatch.setattr(doctor.multihost_utils, "sync_global_devices", lambda _: None)
    monkeypatch.setattr(
        doctor.multihost_utils, "process_allgather", lambda mine: np.stack([mine, mine + np.array([7, 0])])
    )
    seen = list(doctor._together(json.loads(json.dumps(everyone)), tmp_path))
    assert "process 1 on b has jax 2, not 1. Install the same on all." in states(seen, "bad")
    assert "at most 7.00 s apart; set that of process" in states(seen, "warn")
