"""Ways to compute the same over 50 steps, and what must not change a bit of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import tiny_run
from tests.faults.tiny_run import finish, said, start
from tests.tiny_experiment import metrics

STEPS = 50
# Relative, of the loss and of the gradient norm. Adam divides by what a gradient usually is: the smallest difference in
# the first step grows until the 50th.
TOLERANCE = {"loss": 2e-4, "grad_norm": 2e-3}
SAME = {
    "accumulation over 4 micro-batches": ["--train.micro_batch_pairs", "2"],
    "remat": ["--model.remat", "full"],
    "padded": ["--data.layout", "padded"],
    "packed": ["--data.layout", "packed"],
    "the reference in every step": ["--reference.update_every", "1000000"],
}
BITS = {
    "twice": [],
    "logging": ["--train.log_every", "7"],
    "checkpoints": ["--train.save_every", "5"],
    "evaluation": ["--evaluation.every", "10"],
    "evaluation and samples": ["--evaluation.every", "20", "--evaluation.watched", "2"],
}

pytestmark = pytest.mark.slow("fifty steps of each of a dozen programs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, trials: Callable) -> Path:
    trials(0, 1)
    folder = tiny_run.make_experiment(
        tmp_path_factory.mktemp("equivalences"),
        data={"eval": [{"path": "held.jsonl"}]},
        optimizer={"learning_rate": 1e-4},
        train={"batch_pairs": 8, "micro_batch_pairs": 8, "steps": STEPS, "log_every": 1},
        evaluation={"max_new_tokens": 4, "batch_rows": 8},
        mesh={"fsdp": 1, "data": 1},
    )
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[dict[str, Any]]:
    """The run to which the others are compared, on one device."""
    return trained(folder, "plain", [])


def trained(folder: Path, name: str, arguments: list[str], *, devices: int = 1) -> list[dict[str, Any]]:
    workdir = f"runs/{name.replace(' ', '_')}"
    processes = start(folder, "train", "e.yaml", "--workdir", workdir, *arguments, devices=devices)
    assert finish(processes) == [0], said(folder)
    return metrics(folder / workdir)


def assert_near(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> str:
    """Step by step; says how far apart they are at worst."""
    worst = dict.fromkeys(TOLERANCE, 0.0)
    assert len(found) == len(wanted) == STEPS
    for ours, theirs in zip(found, wanted, strict=True):
        for name, tolerance in TOLERANCE.items():
            assert ours[name] == pytest.approx(theirs[name], rel=tolerance), (name, theirs["step"])
            worst[name] = max(worst[name], abs(ours[name] / theirs[name] - 1))
    return f"loss within {worst['loss']:.0e}, gradient norm within {worst['grad_norm']:.0e}"


@pytest.mark.fault("50 steps: {how}")
@pytest.mark.parametrize("how", SAME)
def test_the_same_losses(how: str, folder: Path, plain: list, held: Callable):
    held(1, assert_near(trained(folder, how, SAME[how]), plain))


@pytest.mark.fault("50 steps: 8 devices against 1")
@pytest.mark.parametrize(
    "mesh", [["--mesh.fsdp", "8"], ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"]], ids=str
)
def test_the_same_losses_on_eight_devices(mesh: list[str], folder: Path, plain: list, held: Callable):
    name = "eight " + "_".join(word.removeprefix("--mesh.") for word in mesh)
    held(1, assert_near(trained(folder, name, mesh, devices=8), plain))


@pytest.mark.fault("the same seed with other logging, checkpoints, evaluation; twice")
@pytest.mark.parametrize("what", BITS)
def test_to_every_bit(what: str, folder: Path, plain: list, held: Callable):
    rows = {row["step"]: row for row in trained(folder, f"bits {what}", BITS[what])}
    same = [{name: rows[row["step"]].get(name) for name in row} == row for row in plain if row["step"] in rows]
    assert all(same) and len(same) >= 7
    held(1, "losses and metrics bit-identical")
