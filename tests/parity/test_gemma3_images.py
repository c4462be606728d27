"""Gemma 3 with images: its text model by value, and a vision tower that an export leaves as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity.ours import Ours, load, their_logits
from tests.tiny import make_hf_folder

IMAGE, BEGIN, END = 349, 347, 348
PATCHES = 4
TEXT = {
    "vocab_size": 350,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 6,
    "max_position_embeddings": 128,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
    },
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Ours, Path]:
    """A random model of transformers, ours read from what it saved, and the folder."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    tokens = {"image_token_index": IMAGE, "boi_token_index": BEGIN, "eoi_token_index": END}
    config = Gemma3Config(text_config=TEXT, vision_config=VISION, mm_tokens_per_image=PATCHES, **tokens)
    theirs = Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.1 * torch.randn_like(weight))  # norms and biases are all alike otherwise
        theirs.get_input_embeddings().weight.mul_(0.15)
    folder = make_hf_folder(tmp_path_factory.mktemp("model") / "hf")  # for its tokenizer; the model is replaced
    theirs.save_pretrained(folder)
    return theirs, load(folder), folder


def test_logits_of_text(pair):
    theirs, ours, _ = pair
    ids_RT = np.random.default_rng(1).integers(3, BEGIN, (3, 70))
    expected_RTV = their_logits(theirs, ids_RT)
    assert np.ptp(expected_RTV) > 2
    np.testing.assert_allclose(ours.logits(ids_RT), expected_RTV, rtol=0, atol=2e-4)


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
    from transformers import AutoModelForImageTextToText

    theirs, ours, _ = pair
    exported = ours.export(tmp_path / "export", max_shard_bytes=40_000)
    again = AutoModelForImageTextToText.from_pretrained(exported, attn_implementation="eager").eval()
    ids_RT = np.random.default_rng(1).integers(3, BEGIN, (2, 30))
    np.testing.assert_array_equal(their_logits(again, ids_RT), their_logits(theirs, ids_RT))
    bright, dark = (_logits_of_an_image(again, brightness) for brightness in (1.0, -1.0))
    np.testing.assert_array_equal(bright, _logits_of_an_image(theirs, 1.0))
    assert np.abs(bright - dark).max() > 1e-2


def _logits_of_an_image(model: Any, brightness: float) -> np.ndarray:
    import torch

    ids = torch.tensor([[5, BEGIN, *[IMAGE] * PATCHES, END, 7, 8]])
    pixels = brightness * torch.linspace(0, 1, 3 * 28 * 28).reshape(1, 3, 28, 28)
    with torch.no_grad():
        return model(ids, pixel_values=pixels, token_type_ids=(ids == IMAGE).long()).logits.numpy()
