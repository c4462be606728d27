"""Experiments that are run once and copied: as far as the pairs, or the policy; on one device unless told otherwise."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import jax
import pytest
import yaml

from dpo_jax import cli
from tests.commands.conftest import copied
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
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        patch.setattr(jax, "devices", lambda *_: _DEVICES[:1])
        cli.main([command, "e.yaml"])
    return folder


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an experiment whose pre-training and pairs are done."""
    folder = tmp_path_factory.mktemp("begun")
    (folder / "e.yaml").write_text(yaml.safe_dump(PICTURES))
    return _made(folder, "pairs")


@pytest.fixture(scope="session")
def trained_pictures(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, and its policy is trained."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(begun, folder, dirs_exist_ok=True)
    return _made(folder, "train")


experiment = copied("experiment", of="begun")
policy = copied("policy", of="trained_pictures")
