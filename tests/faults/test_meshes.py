"""Resuming on other devices: the next losses are those of the run that stayed where it was."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import tiny_run
from tests.faults.tiny_run import finish, said, start
from tests.tiny_experiment import metrics

BEFORE = [{"fsdp": 2}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 4, "fsdp": 1}]
AFTER = [{"fsdp": 1}, {"fsdp": 1, "tensor": 2}, {"fsdp": 4}, {"fsdp": 2, "tensor": 4}]
TOLERANCE = 2e-5  # relative: a mesh decides in which order float32 numbers are added
STEPS = 3

pytestmark = pytest.mark.slow("a program for each mesh")


def train(folder: Path, workdir: str, mesh: dict[str, int], steps: int, *more: str, count: int = 1) -> list[float]:
    """Trains to so many steps on so many devices; all losses so far."""
    devices = 1
    for size in mesh.values():
        devices *= size
    axes = [argument for axis, size in mesh.items() for argument in (f"--mesh.{axis}", str(size))]
    arguments = ("train", "e.yaml", "--workdir", workdir, "--train.steps", str(steps), *axes, *more)
    assert finish(start(folder, *arguments, devices=devices, count=count)) == [0] * count, said(folder)
    return [row["loss"] for row in metrics(folder / workdir)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all: it does not depend on the mesh."""
    folder = tiny_run.make_experiment(tmp_path_factory.mktemp("meshes"), train={"batch_pairs": 16})
    assert finish(start(folder, "reference", "e.yaml")) == [0], said(folder)
    return folder


@pytest.fixture(scope="module")
def begun(folder: Path) -> Callable[[dict[str, int]], tuple[Path, list[float]]]:
    """A run begun on a mesh, and the losses of its longer twin there; each made once."""
    made: dict[str, tuple[Path, list[float]]] = {}

    def begin(mesh: dict[str, int]) -> tuple[Path, list[float]]:
        name = "_".join(f"{axis}{size}" for axis, size in mesh.items())
        if name not in made:
            losses = train(folder, f"runs/{name}_twin", mesh, 2 * STEPS)
            train(folder, f"runs/{name}", mesh, STEPS)
            made[name] = folder / "runs" / name, losses
        return made[name]

    return begin


@pytest.mark.fault("resume on another mesh, 1 to 8 devices")
def test_the_next_loss_on_another_mesh(folder: Path, begun: Callable, trials: Callable, held: Callable):
    pairs = list(itertools.product(BEFORE, AFTER))[: trials(1, 16)]
    worst = 0.0
    for number, (before, after) in enumerate(pairs):
        workdir, wanted = begun(before)
        shutil.copytree(workdir, folder / f"runs/moved_{number}")
        found = train(folder, f"runs/moved_{number}", after, 2 * STEPS)
        assert found[:STEPS] == wanted[:STEPS] and f"resumes at step {STEPS}" in said(folder)
        for ours, theirs in zip(found[STEPS:], wanted[STEPS:], strict=True):
            assert ours == pytest.approx(theirs, rel=TOLERANCE), (before, after)
            worst = max(worst, abs(ours / theirs - 1))
    held(len(pairs), f"the same losses within {worst:.0e} ({TOLERANCE:.0e})")


@pytest.mark.fault("1 process to 2 and back")
def test_one_process_to_two_and_back(folder: Path, trials: Callable, held: Callable):
    trials(0, 1)
    mesh = {"fsdp": 2}
    wanted = train(folder, "runs/one", mesh, 9)
    for count, steps in ((1, 3), (2, 6), (1, 9)):
        found = train(folder, "runs/both", mesh, steps, count=count)
    assert found == pytest.approx(wanted, rel=TOLERANCE)
    held(2, f"the same losses ({TOLERANCE:.0e})")


@pytest.mark.fault("resume with another dtype or model")
@pytest.mark.parametrize(
    ("key", "value"), [("model.dtype", "bfloat16"), ("optimizer.moment_dtype", "bfloat16"), ("model.weights", "other")]
)
def test_another_dtype_is_refused(
    folder: Path, begun: Callable, trials: Callable, held: Callable, key: str, value: str
):
    trials(1 * (key == "model.dtype"), 1)
    workdir, _ = begun(BEFORE[0])
    shutil.copytree(folder / "model", folder / "other", dirs_exist_ok=True)
    arguments = ("train", "e.yaml", "--workdir", str(workdir), "--train.steps", "9", f"--{key}", value)
    # its own store, so that it is the checkpoint which is refused
    assert finish(start(folder, *arguments, "--reference.store", f"runs/{key}")) == [2]
    assert f"{key}: was" in said(folder) and len(metrics(workdir)) == STEPS
    held(1, "refused by name")
