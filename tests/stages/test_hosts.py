"""Several processes, joined over the loopback, do what one does: the same pairs, losses, store and files."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dpo_jax.errors import UserError
from dpo_jax.files import read_json
from dpo_jax.reference.store import Store
from dpo_jax.stages.hosts import _arguments
from tests.stages import pairing
from tests.stages.test_pipeline import write_rows
from tests.tiny import make_hf_folder

ROOT = Path(__file__).parents[2]
JUDGE = """
import json, sys
print("asked", file=open("asked.txt", "a"))
for line in sys.stdin:
    print(len(json.loads(line)["response"]))
"""
MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def together(count: int, *command: str, folders: list[Path]) -> list[subprocess.CompletedProcess[str]]:
    """Runs a command in so many processes with eight devices together; each starts in its folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // count}", "PYTHONPATH": str(ROOT)}
    joined = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)} if count > 1 else {}
    processes = []
    for number, folder in enumerate(folders):
        own = {**os.environ, **alone, **joined, **({"JAX_PROCESS_ID": str(number)} if joined else {})}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, "-m", *command], env=own, cwd=folder, **pipes))
    ended = [(process, *process.communicate(timeout=300)) for process in processes]
    return [subprocess.CompletedProcess(p.args, p.returncode, out, err) for p, out, err in ended]


def dpo_jax(count: int, folder: Path, *arguments: str) -> str:
    """One command in so many processes, all of which must succeed: what the first one says."""
    ended = together(count, "dpo_jax.cli", *arguments, folders=[folder] * count)
    assert [each.returncode for each in ended] == [0] * count, ended[-1].stderr[-2000:]
    for other in ended[1:]:
        assert "loss" not in other.stderr  # one of them talks
    return ended[0].stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, rows and an experiment that asks for everything."""
    folder = tmp_path_factory.mktemp("hosts")
    make_hf_folder(folder / "model")
    write_rows(folder / "pairs.jsonl", 20)
    write_rows(folder / "eval.jsonl", 6, seed=1)
    rows = [{"prompt": f"the lamp {n} ", "completion": "was warm"} for n in range(12)]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "workdir": "runs/demo",
        "model": {"weights": "model"},
        "data": {"train": [{"path": "pairs.jsonl"}], "max_prompt_tokens": 32, "max_tokens": 64},
        "reference": {"rows_per_shard": 8},
        "loss": {"name": "dpo"},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"batch_pairs": 8, "micro_batch_pairs": 4, "steps": 4},
        "mesh": MESH,
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    config["data"]["eval"] = [{"path": "eval.jsonl"}]  # type: ignore[index]
    config["sft"] = {"data": {"train": [{"path": "sft.jsonl"}]}, "train": {"batch_pairs": 4, "steps": 2}}
    (folder / "judge.py").write_text(JUDGE)
    judge = {"name": "command", "command": shlex.join([sys.executable, "-I", "judge.py"])}
    config["evaluation"] = {"samples": 4, "max_new_tokens": 5, "batch_rows": 8, "every": 2, "judge": judge}
    config["export"] = {"max_shard_size": "20KB"}
    (folder / "all.yaml").write_text(yaml.safe_dump(config))
    return folder


def metrics(folder: Path, run: str) -> list[dict[str, float]]:
    """What was logged, without the clock's part of it."""
    rows = [json.loads(line) for line in (folder / "runs" / run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if "per_second" not in name} for row in rows]


def assert_near(found: Any, wanted: Any) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_chosen_and_rejected_stay_with_their_rows():
    """The model's log-probs are the numbers of the rows: on three meshes, in three layouts, scored and trained."""
    ended = together(2, "tests.stages.pairing", folders=[ROOT] * 2)
    for process in ended:
        assert process.returncode == 0, process.stderr[-2000:]
        found = json.loads(process.stdout.splitlines()[-1])
        assert len(found) == len(pairing.MESHES) * len(pairing.LAYOUTS)
        for pairs in found:
            assert len(pairs) == pairing.COUNT + pairing.PAIRS
            for row_id, logps in pairs:
                assert logps == pytest.approx(pairing.expected(row_id), abs=1e-5)


@pytest.mark.slow("whole commands")
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow("four processes"))])
def test_everything_that_one_process_does(folder: Path, count: int):
    """Fine-tuning, reference pass, training, evaluation, export and report."""
    runs = {1: "one", count: f"by{count}"}
    for processes, run in runs.items():
        if not (folder / "runs" / run).exists():
            dpo_jax(processes, folder, "run", "all.yaml", "--workdir", f"runs/{run}")
    one, several = (folder / "runs" / run for run in runs.values())
    assert_near(metrics(folder, runs[count]), metrics(folder, "one"))
    assert_near(metrics(folder, f"{runs[count]}/sft"), metrics(folder, "one/sft"))
    stores = [next((run / "stores").iterdir()) for run in (one, several)]
    manifests = [read_json(store / "manifest.json") for store in stores]
    assert [[shard["rows"] for shard in each["shards"]] for each in manifests] == [[8, 8, 4, 6]] * 2
    opened = [Store(*both) for both in zip(stores, (each["fingerprint"] for each in manifests), strict=True)]
    ids = np.concatenate([ids for ids, _ in opened[0]._shards])
    for ours, wanted in zip(*(store.lookup(ids) for store in opened), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4)
    evaluated = [read_json(run / "evaluation.json") for run in (one, several)]
    assert evaluated[0]["judged"] == evaluated[1]["judged"]
    assert evaluated[1]["kl"]["exact"] == pytest.approx(evaluated[0]["kl"]["exact"], rel=1e-3)
    asked = len((folder / "asked.txt").read_text().splitlines())
    assert asked == len([run for run in (folder / "runs").iterdir() if (run / "evaluation.json").exists()])
    texts = [[sample["policy"] for sample in found["samples"]] for found in evaluated]
    assert texts[0] == texts[1]
    files = [{path.relative_to(run) for path in run.rglob("*.safetensors")} for run in (one, several)]
    assert files[0] == files[1] and len(files[0]) > 2
    assert (several / "report.html").exists() and (several / "config.yaml").exists()


@pytest.mark.slow("whole commands")
def test_two_processes_go_on_where_one_stopped_and_back(folder: Path):
    dpo_jax(1, folder, "train", "train.yaml", "--workdir", "runs/unbroken")
    for count, steps in ((1, 1), (2, 3), (1, 4)):
        said = dpo_jax(count, folder, "train", "train.yaml", "--workdir", "runs/broken", "--train.steps", str(steps))
        assert ("resumes at step" in said) == (steps > 1)
    assert_near(metrics(folder, "broken"), metrics(folder, "unbroken"))


def test_a_folder_that_is_not_shared_is_refused(folder: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    arguments = ("dpo_jax.cli", "train", str(folder / "train.yaml"), "--workdir", "here")
    ended = together(2, *arguments, folders=[tmp_path, tmp_path / "elsewhere"])
    assert ended[0].returncode == 2, ended[0].stderr
    assert "here is not one folder on all hosts: process 1 does not see" in ended[0].stderr
    assert not list((tmp_path / "here").iterdir())


HOST = {"JAX_COORDINATOR_ADDRESS": "host:1"}


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        ({}, None),
        ({"SLURM_STEP_NUM_TASKS": "1", "TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, None),
        ({"SLURM_STEP_NUM_TASKS": "2"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "8"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "one,two"}, {}),
        (
            {**HOST, "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3", "SLURM_STEP_NUM_TASKS": "2"},
            {"coordinator_address": "host:1", "num_processes": 4, "process_id": 3},
        ),
    ],
)
def test_what_names_the_other_processes(environment: dict[str, str], arguments: Any):
    assert _arguments(environment) == arguments


@pytest.mark.parametrize(
    "environment",
    [
        HOST,
        {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
        {**HOST, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
        {**HOST, "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
    ],
)
def test_half_an_address_is_refused(environment: dict[str, str]):
    with pytest.raises(UserError, match="needs all of JAX_COORDINATOR_ADDRESS"):
        _arguments(environment)
