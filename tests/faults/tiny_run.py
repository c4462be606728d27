"""A tiny run that is started as a user starts it, killed, and compared with one that nobody touched."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml

from dpo_jax.files import read_json
from dpo_jax.training.checkpoint import Checkpoints
from tests.tiny import make_hf_folder

ROOT = Path(__file__).parents[2]
CLI = "dpo_jax.cli"


def write_rows(path: Path, count: int, *, seed: int = 0) -> None:
    """Pairs whose rows are all of one length bucket: each of these words is a token."""
    words = ("the", "was", "warm", "and", "quiet", "old", "ending", "are", "a")
    draw = np.random.default_rng(seed)
    texts = [[" ".join(draw.choice(words, size)) for size in (5, *draw.integers(8, 11, 2))] for _ in range(count)]
    rows = [{"prompt": f"{a}\n", "chosen": f"good {b}", "rejected": f"bad {c}"} for a, b, c in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_experiment(folder: Path, *, rows: int = 40, **sections: Any) -> Path:
    """A model, rows and an experiment file in a new folder; `sections` change or join those of the experiment."""
    make_hf_folder(folder / "model")
    write_rows(folder / "pairs.jsonl", rows)
    write_rows(folder / "eval.jsonl", 4, seed=1)
    config: dict[str, Any] = {
        "workdir": "runs/demo",
        "model": {"weights": "model"},
        "data": {"train": [{"path": "pairs.jsonl"}], "max_prompt_tokens": 32, "max_tokens": 64},
        "reference": {"store": "runs/stores", "rows_per_shard": 8, "batch_pairs": 8},
        "loss": {"name": "dpo"},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"batch_pairs": 8, "micro_batch_pairs": 4, "steps": 6},
    }
    for name, section in sections.items():
        config[name] = {**config[name], **section} if isinstance(config.get(name), dict) else section
    (folder / "e.yaml").write_text(yaml.safe_dump(config))
    return folder


def start(
    folder: Path, *arguments: str, module: str = CLI, count: int = 1, devices: int = 2, **environment: str
) -> list[subprocess.Popen[str]]:
    """Starts a command in so many processes, with so many devices together; they write to process_N.log."""
    own = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    device_flag = "--xla_force_host_platform_device_count="
    others = [flag for flag in own["XLA_FLAGS"].split() if not flag.startswith(device_flag)]
    own["XLA_FLAGS"] = " ".join([*others, f"{device_flag}{devices // count}"])
    if count > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            own |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": str(count)}
    processes = []
    for number in range(count):
        joined = {"JAX_PROCESS_ID": str(number)} if count > 1 else {}
        with (folder / f"process_{number}.log").open("w") as log:
            command = [sys.executable, "-m", module, *arguments]
            processes.append(subprocess.Popen(command, cwd=folder, env=own | joined, stderr=log, text=True))
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
    """What a process has written to its error stream so far."""
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


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file without the clock's part; NaN, which equals nothing, as a word."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: "NaN" if value != value else value for name, value in row.items() if "per_second" not in name}
        for row in rows
    ]


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
    assert metrics(ours) == metrics(wanted)
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
