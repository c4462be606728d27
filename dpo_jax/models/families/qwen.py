"""Qwen 2 and 2.5 (biases on query, key and value), Qwen 3 (norms on query and key)."""

from __future__ import annotations

from typing import Any

from dpo_jax.models.families.family import SIZES, Config, Family, decoder_rules, kinds_by_type, layer_kind, sizes
from dpo_jax.models.spec import DecoderSpec

# `layer_types` says what the switch and its first layer say.
_READS = SIZES | {"layer_types", "sliding_window", "use_sliding_window", "max_window_layers"}


def _spec(config: Config, **switches: Any) -> DecoderSpec:
    rope = config["rope_parameters"]
    kinds = {"full_attention": layer_kind(rope), "sliding_attention": layer_kind(rope, config["sliding_window"])}
    return DecoderSpec(**sizes(config), **kinds_by_type(config, kinds), **switches)


QWEN2 = Family(lambda config: _spec(config, qkv_bias=True), decoder_rules, _READS, only={"hidden_act": ("silu",)})
QWEN3 = Family(
    lambda config: _spec(config, qk_norm=True),
    decoder_rules,
    _READS,
    only={"hidden_act": ("silu",), "attention_bias": (False,)},
)
