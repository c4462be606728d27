"""Folders of weights to damage, and loading them: soon, in little memory, and nothing placed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_jax.errors import UserError
from dpo_jax.mesh import make_mesh
from dpo_jax.models.model import make_model
from dpo_jax.weights import load as loading
from dpo_jax.weights.load import load_params
from dpo_jax.weights.opening import open_weights
from dpo_jax.weights.resolve import resolve_spec
from tests.faults.within import within
from tests.tiny import make_hf_folder

Change = Callable[[Path], Any]
REFUSED = "refused by name before allocation, within 30 MB"
FOUND = "NaN and Inf named with their tensor, on a mesh of eight"


def whole_folder(root: Path) -> Path:
    """A folder with nothing wrong, loaded once: what is imported at first is none of what a fault takes."""
    folder = make_hf_folder(root / "model")
    load(folder)
    return folder


def copy_of(whole: Path, root: Path) -> Path:
    return Path(shutil.copytree(whole, root / "model"))


def place_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("parameters are allocated")

    monkeypatch.setattr(loading, "place_lazily", refuse)


def load(path: Path) -> Any:
    source = open_weights(str(path))
    spec, rules, skipped, *_ = resolve_spec(source)
    return load_params(source, make_model(spec), rules, make_mesh(data=2, fsdp=2, tensor=2), skipped=skipped)


def refused(read: Callable[[], Any], words: str, *, seconds: int = 4, megabytes: int = 30) -> str:
    """The message, which has all of these words, separated by |, and is short."""
    with within(seconds, megabytes), pytest.raises(UserError) as stop:
        read()
    said = str(stop.value)
    assert all(word in said for word in words.split("|")) and len(said) < 700, said
    return said


def config(**fields: Any) -> Change:
    def change(folder: Path) -> None:
        held = json.loads((folder / "config.json").read_text())
        kept = {name: value for name, value in {**held, **fields}.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def content(name: str, data: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(data)
