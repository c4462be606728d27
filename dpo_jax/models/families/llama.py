"""Llama 2, 3 and 3.2, SmolLM2, and Mistral with its window."""

from __future__ import annotations

from dpo_jax.models.families.family import SIZES, Config, Family, decoder_rules, layer_kind, sizes
from dpo_jax.models.spec import DecoderSpec


def _llama(config: Config) -> DecoderSpec:
    return DecoderSpec(**sizes(config), kinds=(layer_kind(config["rope_parameters"]),))


def _mistral(config: Config) -> DecoderSpec:
    return DecoderSpec(**sizes(config), kinds=(layer_kind(config["rope_parameters"], config["sliding_window"]),))


LLAMA = Family(
    _llama, decoder_rules, SIZES, only={"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)}
)
MISTRAL = Family(_mistral, decoder_rules, SIZES | {"sliding_window"}, only={"hidden_act": ("silu",)})
