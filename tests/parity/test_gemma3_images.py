"""Gemma 3 with images: a vision tower that an export leaves as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.contracts.families import write_folder
from tests.parity.golden import their_model
from tests.parity.ours import Ours, load

IMAGE, BEGIN, END = 349, 347, 348
PATCHES = 4


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Ours, Path]:
    """The model of transformers, ours from the same folder, and the folder."""
    folder = write_folder("gemma3, with images", tmp_path_factory.mktemp("model"))
    return their_model(folder), load(folder), folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_keeps_the_vision_tower_bit_for_bit(pair, tmp_path: Path, dtype: str):
    """Even where the text model is written in another dtype."""
    _, ours, folder = pair
    exported = load_file(ours.export(tmp_path / "export", dtype=dtype) / "model.safetensors")
    saved = load_file(folder / "model.safetensors")
    assert exported.keys() == saved.keys()
    vision = {name for name in saved if not name.startswith("language_model.")}
    assert len(vision) > 30 and any(name.startswith("multi_modal_projector.") for name in vision)
    for name in saved:
        wanted = saved[name] if name in vision else saved[name].astype(exported[name].dtype)
        np.testing.assert_array_equal(exported[name], wanted, err_msg=name, strict=True)
    assert {str(exported[name].dtype) for name in exported.keys() - vision} == {dtype}


def test_transformers_loads_the_export_and_sees_with_it(pair, tmp_path: Path):
    theirs, ours, _ = pair
    again = their_model(ours.export(tmp_path / "export", max_shard_bytes=40_000))
    bright, dark = (_logits_of_an_image(again, brightness) for brightness in (1.0, -1.0))
    np.testing.assert_array_equal(bright, _logits_of_an_image(theirs, 1.0))
    assert np.abs(bright - dark).max() > 1e-2


def _logits_of_an_image(model: Any, brightness: float) -> np.ndarray:
    import torch

    ids = torch.tensor([[5, BEGIN, *[IMAGE] * PATCHES, END, 7, 8]])
    pixels = brightness * torch.linspace(0, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)
    with torch.no_grad():
        return model(ids, pixel_values=pixels, token_type_ids=(ids == IMAGE).long()).logits.numpy()
