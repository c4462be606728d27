"""From config.json to a spec: every family, old and new spellings, and what is refused by name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dpo_jax.errors import UserError
from dpo_jax.models.spec import Gpt2Spec, LayerKind, RopeScaling
from dpo_jax.weights.resolve import Resolved, resolve_family, resolve_spec
from dpo_jax.weights.source import WeightsSource

TINY = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 24}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 48,
    "n_embd": 16,
    "n_layer": 4,
    "n_head": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def resolve(**config: Any) -> Resolved:
    named = config if config["model_type"] == "gpt2" else TINY | config
    source = WeightsSource("folder", named, {}, {}, lambda name: np.zeros(0), lambda: None)  # type: ignore[arg-type]
    return resolve_spec(source)


def test_llama_with_what_its_class_assumes():
    spec = resolve(model_type="llama").spec
    assert (spec.kv_heads, spec.head_size, spec.tied, spec.norm_epsilon) == (4, 4, False, 1e-6)
    assert spec.kinds == (LayerKind(10000.0),) and not spec.qkv_bias and not spec.qk_norm


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_theta": 5e5, "rope_scaling": {("type" if k == "rope_type" else k): v for k, v in LLAMA3.items()}},
        {"rope_parameters": {"rope_theta": 5e5} | LLAMA3},
    ],
    ids=["old", "older", "new"],
)
def test_llama_3_scaling_in_every_spelling(rope):
    kind = resolve(model_type="llama", **rope).spec.kinds[0]
    assert kind == LayerKind(5e5, None, RopeScaling(8.0, 1.0, 4.0, 8192))


def test_llama_3_frequencies_by_hand():
    # wavelength 2 pi base^(2i/K): below 8192 / 4 it stays, above 8192 / 1 it is stretched by 8, between it is mixed
    frequency_K = LayerKind(5e5, None, RopeScaling(8.0, 1.0, 4.0, 8192)).frequencies(64)
    plain_K = 5e5 ** (-np.arange(0, 64, 2) / 64)
    wavelength_K = 2 * math.pi / plain_K
    fast, slow = wavelength_K < 2048, wavelength_K > 8192
    assert fast.any() and slow.any() and (~fast & ~slow).any()
    np.testing.assert_allclose(frequency_K[fast], plain_K[fast], rtol=1e-6)
    np.testing.assert_allclose(frequency_K[slow], plain_K[slow] / 8, rtol=1e-6)
    share = (8192 / wavelength_K - 1.0) / (4.0 - 1.0)
    mixed = share * plain_K + (1 - share) * plain_K / 8
    np.testing.assert_allclose(frequency_K[~fast & ~slow], mixed[~fast & ~slow], rtol=1e-6)


def test_windows_of_mistral_and_qwen():
    heads = {"num_key_value_heads": 2}
    assert resolve(model_type="mistral", sliding_window=7, **heads).spec.kinds == (LayerKind(10000.0, 7),)
    assert resolve(model_type="mistral", sliding_window=None, **heads).spec.kinds == (LayerKind(10000.0),)
    off = resolve(model_type="qwen2", sliding_window=7, use_sliding_window=False, **heads).spec
    assert off.kinds == (LayerKind(10000.0),) and off.qkv_bias
    window = {"sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1}
    on = resolve(model_type="qwen3", head_dim=8, **window, **heads).spec
    assert on.kinds == (LayerKind(10000.0), LayerKind(10000.0, 7)) and on.kind_of_layer == (0, 1, 1, 1)
    assert on.qk_norm and not on.qkv_bias and on.head_size == 8


def test_gemma():
    two = resolve(
        model_type="gemma2", sliding_window=7, head_dim=8, query_pre_attn_scalar=16, num_key_value_heads=2
    ).spec
    assert two.kinds == (LayerKind(10000.0), LayerKind(10000.0, 7)) and two.kind_of_layer == (1, 0, 1, 0)
    assert (two.attention_soft_cap, two.logit_soft_cap, two.query_scale) == (50.0, 30.0, 0.25)
    assert two.sandwich_norms and two.norm_offset == 1 and two.embedding_scale == 4 and not two.qk_norm and two.tied
    options = {"sliding_window": 7, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 2}
    three = resolve(model_type="gemma3_text", num_key_value_heads=2, **options).spec
    assert set(three.kinds) == {LayerKind(1e6), LayerKind(1e4, 7)} and three.qk_norm
    assert [three.kinds[kind].window for kind in three.kind_of_layer] == [7, None, 7, None]
    assert three.attention_soft_cap is None and three.logit_soft_cap is None


def test_the_text_model_of_gemma_3_with_images():
    found = resolve(model_type="gemma3", text_config=TINY | {"sliding_window": 7, "num_key_value_heads": 2})
    assert found.spec.width == 16 and "vision_tower." in found.skipped
    assert found.rules[0].name == "language_model.model.embed_tokens.weight"


def test_gpt2_with_what_its_class_assumes():
    found = resolve(**GPT2, n_ctx=1024, summary_first_dropout=0.3, reorder_and_upcast_attn=True)
    spec = found.spec
    assert isinstance(spec, Gpt2Spec) and (spec.width, spec.layers, spec.head_size, spec.mlp_width) == (16, 4, 8, 64)
    assert spec.tied and spec.positions == spec.max_positions == 1024 and spec.norm_epsilon == 1e-5
    assert found.unknown == () and found.rules[0].name == "transformer.wte.weight"
    wide = resolve(**GPT2, n_inner=24, n_positions=32, tie_word_embeddings=False).spec
    assert isinstance(wide, Gpt2Spec) and (wide.mlp_width, wide.positions, wide.tied) == (24, 32, False)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"model_type": "llama", "attention_bias": True},
            "attention_bias is True; this decoder computes with False only",
        ),
        ({"model_type": "llama", "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
        (
            {"model_type": "llama", "chunk_size_feed_forward": 8},
            "chunk_size_feed_forward is 8; this decoder does not know",
        ),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"model_type": "gemma2", "hidden_activation": "relu"}, "hidden_activation is 'relu'"),
        (
            {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0},
            "attn_logit_softcapping is 50.0; this decoder computes with None only",
        ),
        ({"model_type": "mistral"}, "4 attention heads cannot share 8 key/value heads"),
        (
            GPT2 | {"activation_function": "gelu"},
            "activation_function is 'gelu'; this decoder computes with 'gelu_new'",
        ),
        (GPT2 | {"scale_attn_weights": False}, "scale_attn_weights is False"),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        (GPT2 | {"add_cross_attention": True}, "add_cross_attention is True"),
        (GPT2 | {"n_head": 3}, "n_embd is 16; it is no multiple of n_head, 3"),
        ({key: value for key, value in GPT2.items() if key != "n_layer"}, "key 'n_layer' is missing"),
        ({"model_type": "gpt5"}, "model_type 'gpt5' is not supported"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused_by_name(config, says):
    with pytest.raises(UserError, match=f"^folder: config.json: {says}"):
        resolve(**config)


def test_a_config_without_its_size_is_refused():
    config = {key: value for key, value in TINY.items() if key != "hidden_size"}
    source = WeightsSource("folder", config | {"model_type": "llama"}, {}, {}, lambda _: np.zeros(0), lambda: None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"folder: config\.json: key 'hidden_size' is missing"):
        resolve_spec(source)


def test_harmless_keys_pass_and_unknown_ones_are_listed():
    found = resolve(model_type="llama", attention_dropout=0.1, use_cache=False, pretraining_tp=2, mystery_scale=3)
    assert found.unknown == ("mystery_scale",)


def test_an_unknown_family_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"model_type 'lama' is not supported. Did you mean 'llama'\?"):
        resolve_family({"model_type": "lama"})


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"model_type": "llama"}, None),  # it says nothing
        ({"model_type": "llama", "max_position_embeddings": 4096}, 4096),
        (
            {"model_type": "llama", "max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}},
            16384,
        ),
        ({"model_type": "llama", "max_position_embeddings": 131072, "rope_scaling": LLAMA3}, 131072),
        ({"model_type": "llama", "max_position_embeddings": 8192, "rope_scaling": LLAMA3}, 65536),
    ],
)
def test_positions_of_the_training_and_of_the_scaling(config: dict[str, Any], positions: int | None):
    assert resolve(**config).positions == positions
