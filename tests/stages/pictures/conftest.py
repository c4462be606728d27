"""An experiment whose pre-training and pairs are done."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from dpo_jax import cli
from tests.stages.pictures.digits import PICTURES


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a run whose pre-training and pairs are done."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "e.yaml").write_text(yaml.safe_dump(PICTURES))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["pairs", "e.yaml"])
    return folder


@pytest.fixture
def experiment(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of it, as the current directory."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return "e.yaml"
