"""Architectures without tensors: the published ones count as published, and where a config is found is said."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import pytest

from dpo_jax.errors import UserError
from dpo_jax.models.model import make_model
from dpo_jax.weights.opening import Published, open_outline, published
from dpo_jax.weights.resolve import resolve_spec
from tests.tiny import make_hf_folder

COUNTS = {  # as on the model cards; of Gemma the 4,300,079,472 less vision tower and projector, 419,816,304
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "google/gemma-3-4b-it": 4_300_079_472 - 419_816_304,
}


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("known", published(), ids=lambda known: known.hub[0])
def test_published_architectures_have_the_published_number_of_parameters(known: Published):
    outline = open_outline(known.hub[-1])
    assert outline.origin == "the table of published architectures"
    found = resolve_spec(outline.source)
    counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(make_model(found.spec).shapes))
    assert counted == known.parameters == COUNTS[known.hub[0]] and not found.unknown


def test_what_is_published_of_gemma_3_is_a_window_in_five_layers_of_six():
    spec = resolve_spec(open_outline("google/gemma-3-4b-it").source).spec
    assert spec.windows == (None, 1024) and getattr(spec, "kind_of_layer")[:6] == (1, 1, 1, 1, 1, 0)  # noqa: B009


def test_a_folder_needs_no_tensors(tmp_path: Path):
    folder = make_hf_folder(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    outline = open_outline(str(folder))
    assert outline.origin.endswith("config.json") and resolve_spec(outline.source).spec.width == 32
    assert outline.source.tokenizer().eos_token_id == 2
    with pytest.raises(UserError, match="only the config"):
        outline.source.read("model.embed_tokens.weight")


def test_the_local_cache_comes_before_the_table(no_cache: Path):
    snapshot = no_cache / "models--Qwen--Qwen3-0.6B" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (no_cache / "models--Qwen--Qwen3-0.6B" / "refs").mkdir()
    (no_cache / "models--Qwen--Qwen3-0.6B" / "refs" / "main").write_text("0" * 40)
    config = next(known.config for known in published() if "Qwen/Qwen3-0.6B" in known.hub)
    (snapshot / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    outline = open_outline("Qwen/Qwen3-0.6B")
    assert "local cache" in outline.origin and outline.source.config["num_hidden_layers"] == 3


def test_what_nobody_knows_is_refused():
    with pytest.raises(UserError, match="nobody/nothing"):
        open_outline("nobody/nothing")
    with pytest.raises(UserError, match="no such folder"):
        open_outline("not a name")


def test_the_tokenizer_of_a_published_architecture_is_not_at_hand():
    with pytest.raises(UserError, match="tokenizer"):
        open_outline("Qwen/Qwen3-0.6B").source.tokenizer()
