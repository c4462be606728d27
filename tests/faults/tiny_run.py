"""A tiny run that is started as a user starts it, killed, and compared with one that nobody touched."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dpo_jax.files import read_json
from dpo_jax.training.checkpoint import Checkpoints
from tests import tiny_experiment
from tests.processes import environments

CLI = "dpo_jax.cli"


def make_experiment(folder: Path, *, rows: int = 40, train: dict[str, int] = {}, **sections: Any) -> Path:  # noqa: B006
    """The tiny experiment, with more rows and six steps."""
    return tiny_experiment.make_experiment(folder, rows=rows, train={"steps": 6, **train}, **sections)


def start(
    folder: Path, *arguments: str, module: str = CLI, count: int = 1, devices: int = 2, **environment: str
) -> list[subprocess.Popen[str]]:
    """Starts a command in so many processes, with so many devices together; they write to process_N.log."""
    processes = []
    for number, own in enumerate(environments(count, devices, **environment)):
        with (folder / f"process_{number}.log").open("w") as log:
            command = [sys.executable, "-m", module, *arguments]
            processes.append(subprocess.Popen(command, cwd=folder, env=own, stderr=log, text=True))
    return processes


def finish(processes: list[subprocess.Popen[str]], *, seconds: float = 300) -> list[int]:
    """Waits until all have ended, and gives their exit codes."""
    end = time.monotonic() + seconds
    try:
        return [process.wait(max(0.0, end - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()


def said(folder: Path, number: int = 0) -> str:
    """The error stream of a process so far."""
    return (folder / f"process_{number}.log").read_text(errors="replace")


def wait_until(true: Callable[[], bool], processes: list[subprocess.Popen[str]], *, seconds: float = 120) -> bool:
    """Waits for something to be true; False if a process ended before."""
    end = time.monotonic() + seconds
    while not true():
        if any(process.poll() is not None for process in processes):
            return true()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
    return True


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """All that Orbax holds in a folder, by name."""
    import orbax.checkpoint as ocp

    reader, here = ocp.StandardCheckpointer(), jax.sharding.SingleDeviceSharding(jax.devices()[0])
    held: Any = reader.metadata(folder.absolute()).item_metadata
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), held.tree)
    found = reader.restore(folder.absolute(), like)  # wherever it was written
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def last_state(workdir: Path) -> dict[str, np.ndarray]:
    """Parameters, optimizer, random key and step of the newest checkpoint."""
    step = Checkpoints(workdir / "checkpoints").latest()
    parts = [path for path in sorted((workdir / "checkpoints" / str(step)).iterdir()) if path.is_dir()]
    return {f"{part.name}{name}": array for part in parts for name, array in arrays(part).items()}


def assert_same_end(ours: Path, wanted: Path) -> None:
    """The same metrics and the same last state, to every bit."""
    assert tiny_experiment.metrics(ours) == tiny_experiment.metrics(wanted)
    found, expected = last_state(ours), last_state(wanted)
    assert found.keys() == expected.keys() and len(found) > 4
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def assert_listed_steps_are_whole(workdir: Path) -> None:
    """Every step that counts is as its digests say."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    for step in checkpoints.steps():
        checkpoints._verify(step)


def stored(store: Path) -> tuple[list[dict[str, Any]], list[dict[str, np.ndarray]]]:
    """The shards that a store's manifest names, and their arrays."""
    shards = read_json(store / "manifest.json")["shards"] if (store / "manifest.json").exists() else []
    return shards, [arrays(store / shard["name"]) for shard in shards]
