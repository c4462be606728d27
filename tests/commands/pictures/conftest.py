"""Experiments that are run once and copied: as far as the pairs, or the policy; on one device unless told otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import pytest
import yaml

from dpo_jax import cli
from tests.commands.pictures.digits import PICTURES

_DEVICES = jax.devices()


@pytest.fixture(autouse=True)
def _one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs for one device compile in half of the time."""
    monkeypatch.setattr(jax, "devices", lambda *_: _DEVICES[:1])


@pytest.fixture
def eight_devices(_one_device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "devices", lambda *_: _DEVICES)


def _made(folder: Path, command: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: _DEVICES[:1])
        patch.chdir(folder)
        cli.main([command, "e.yaml"])
    return folder


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an experiment whose pre-training and pairs are done."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "e.yaml").write_text(yaml.safe_dump(PICTURES))
    return _made(folder, "pairs")


@pytest.fixture(scope="session")
def trained(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, and its policy is trained."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(begun, folder, dirs_exist_ok=True)
    return _made(folder, "train")


@pytest.fixture
def experiment(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of `begun`, as the current directory."""
    return _copied(begun, tmp_path, monkeypatch)


@pytest.fixture
def policy(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of `trained`, as the current directory."""
    return _copied(trained, tmp_path, monkeypatch)


def _copied(folder: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    monkeypatch.chdir(to)
    return "e.yaml"
