"""Folders in which the tiny experiment has run as far as a test needs it; a test gets a copy, and is inside."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo_jax import cli
from tests.tiny_experiment import EVALUATED, EVALUATION, FINE_TUNING, make_experiment

SHARED: dict[str, Any] = {
    "data": EVALUATED,
    "loss": {"options": {"beta": 0.1}},
    "optimizer": {"learning_rate": 0.01},
    "train": {"save_every": 2},
}


def _run(folder: Path, *arguments: str) -> Path:
    with contextlib.chdir(folder):
        cli.main(arguments)
    return folder


@pytest.fixture(scope="session")
def scored_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All rows are in the store of the reference, the pretrained model."""
    return _run(make_experiment(tmp_path_factory.mktemp("scored"), **SHARED), "reference", "e.yaml")


@pytest.fixture(scope="session")
def _tuned_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_experiment(tmp_path_factory.mktemp("trained"), sft=FINE_TUNING, evaluation=EVALUATION, **SHARED)
    return _run(folder, "reference", "e.yaml")


@pytest.fixture(scope="session")
def trained_folder(_tuned_folder: Path) -> Path:
    """Fine-tuned, scored and trained; held-out rows were looked at in between."""
    return _run(_tuned_folder, "train", "e.yaml")


@pytest.fixture(scope="session")
def finished_folder(tmp_path_factory: pytest.TempPathFactory, trained_folder: Path) -> Path:
    """Evaluated, exported and reported too."""
    folder = tmp_path_factory.mktemp("finished")
    return _run(shutil.copytree(trained_folder, folder, dirs_exist_ok=True), "run", "e.yaml")


def copied(name: str, of: str) -> Any:
    """The fixture `name`: a copy of the folder of the fixture `of`, as the current directory, and its configuration."""

    def copy(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.chdir(shutil.copytree(request.getfixturevalue(of), tmp_path, dirs_exist_ok=True))
        return "e.yaml"

    return pytest.fixture(copy, name=name)


scored = copied("scored", of="scored_folder")
trained = copied("trained", of="trained_folder")
finished = copied("finished", of="finished_folder")
