"""Several processes, joined over the loopback, do what one does: the same pairs, losses, store and files."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_jax import cli
from dpo_jax.errors import UserError
from dpo_jax.files import read_json
from dpo_jax.reference.store import Store
from dpo_jax.runtime.hosts import _arguments
from tests.commands import pairing
from tests.processes import ROOT, environments
from tests.tiny_experiment import metrics

JUDGE = """
import json, sys
for line in sys.stdin:
    print("asked", file=open("asked.txt", "a"))
    print(len(json.loads(line)["response"]))
"""


def together(count: int, *command: str, folders: list[Path]) -> list[subprocess.CompletedProcess[str]]:
    """Runs a command in so many processes with eight devices together; each starts in its folder."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([sys.executable, "-m", *command], env=own, cwd=folder, **pipes)
        for own, folder in zip(environments(count, 8), folders, strict=True)
    ]
    ended = [(process, *process.communicate(timeout=300)) for process in processes]
    return [subprocess.CompletedProcess(p.args, p.returncode, out, err) for p, out, err in ended]


def two(folder: Path, *arguments: str) -> str:
    """One command in two processes, which must succeed: what the first one says."""
    first, other = together(2, "dpo_jax.cli", *arguments, folders=[folder] * 2)
    assert first.returncode == other.returncode == 0, other.stderr[-2000:]
    assert "loss" not in other.stderr  # one of them talks
    return first.stderr


def assert_near(found: Any, wanted: Any) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.slow("two processes that compile")
def test_chosen_and_rejected_stay_with_their_rows():
    """Of a model whose log-probs are the numbers of the rows: scored and trained, each layout on a mesh of its own."""
    ended = together(2, "tests.commands.pairing", folders=[ROOT] * 2)
    for process in ended:
        assert process.returncode == 0, process.stderr[-2000:]
        found = json.loads(process.stdout.splitlines()[-1])
        assert len(found) == len(pairing.CASES)
        for pairs in found:
            assert len(pairs) == pairing.COUNT + pairing.PAIRS
            for row_id, logps in pairs:
                assert logps == pytest.approx(pairing.expected(row_id), abs=1e-5)


@pytest.mark.slow("two processes that compile")
def test_everything_that_one_process_does(finished: str, tmp_path: Path):
    """Fine-tuning, reference pass, training, evaluation, export and report; on another mesh, by another judge."""
    Path("judge.py").write_text(JUDGE)
    judge = {"name": "command", "command": shlex.join([sys.executable, "-I", "judge.py"])}
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    own = ["--workdir", "runs/two", "--reference.store", "runs/stores_of_two", "--export.max_shard_size", "20KB"]
    own += ["--mesh", json.dumps(mesh), "--evaluation.judge", json.dumps(judge)]
    two(tmp_path, "run", finished, *own)
    for part in ("", "sft"):
        assert_near(metrics(f"runs/two/{part}"), metrics(f"runs/demo/{part}"))
    stores = [next(Path("runs", name).iterdir()) for name in ("stores", "stores_of_two")]
    manifests = [read_json(store / "manifest.json") for store in stores]
    assert [[shard["rows"] for shard in each["shards"]] for each in manifests] == [[8, 8, 4, 8]] * 2
    opened = [Store(*both) for both in zip(stores, (each["fingerprint"] for each in manifests), strict=True)]
    ids = np.concatenate([ids for ids, _ in opened[0]._shards])
    for ours, wanted in zip(*(store.lookup(ids) for store in opened), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-4)
    one, several = (read_json(Path("runs", name, "evaluation.json")) for name in ("demo", "two"))
    assert several["samples"] == one["samples"] and several["judged"]["win_rate"] == one["judged"]["win_rate"]
    assert several["kl"]["exact"] == pytest.approx(one["kl"]["exact"], rel=1e-3)
    assert len(Path("asked.txt").read_text().splitlines()) == 2 * 6  # each response once, by one process
    shutil.rmtree("runs/demo/export")
    cli.main(["export", finished, "--max-shard-size", "20KB"])
    files = [{path.name for path in Path("runs", run, "export").glob("*.safetensors")} for run in ("demo", "two")]
    assert files[0] == files[1] and len(files[0]) > 2
    assert Path("runs/two/report.html").exists() and Path("runs/two/config.yaml").exists()


@pytest.mark.slow("two processes that compile")
def test_two_processes_go_on_where_one_stopped_and_back(trained: str, tmp_path: Path):
    shutil.copytree("runs/demo/sft", "runs/broken/sft")
    command = ("train", trained, "--workdir", "runs/broken", "--train.steps")
    cli.main([*command, "1"])
    assert "resumes at step 1 of 3" in two(tmp_path, *command, "3")
    cli.main([*command, "4"])
    assert_near(metrics("runs/broken"), metrics("runs/demo"))


@pytest.mark.slow("two processes")
def test_a_folder_that_is_not_shared_is_refused(scored: str, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    arguments = ("dpo_jax.cli", "train", str(tmp_path / scored), "--workdir", "here")
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
