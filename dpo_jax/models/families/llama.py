"""Families of Llama's layers: Llama, SmolLM2, Mistral, Qwen 2 and 2.5 (biases), Qwen 3 (norms of heads), Phi-3."""

from __future__ import annotations

from dpo_jax.models.families.family import (
    SIZES,
    Config,
    Family,
    Part,
    TensorRule,
    decoder_rules,
    kinds_by_type,
    layer_kind,
    sizes,
)
from dpo_jax.models.spec import DecoderSpec


def _llama(config: Config) -> DecoderSpec:
    return DecoderSpec(**sizes(config), kinds=(layer_kind(config["rope_parameters"]),))


def _mistral(config: Config) -> DecoderSpec:
    return DecoderSpec(**sizes(config), kinds=(layer_kind(config["rope_parameters"], config["sliding_window"]),))


def _qwen(config: Config, *, qkv_bias: bool = False, qk_norm: bool = False) -> DecoderSpec:
    rope = config["rope_parameters"]
    kinds = {"full_attention": layer_kind(rope), "sliding_attention": layer_kind(rope, config["sliding_window"])}
    return DecoderSpec(**sizes(config), **kinds_by_type(config, kinds), qkv_bias=qkv_bias, qk_norm=qk_norm)


def _phi3(config: Config) -> DecoderSpec:
    kind = layer_kind(config["rope_parameters"], config["sliding_window"], partial=True)
    fields = sizes(config)
    turned = int(fields["head_size"] * kind.rotary_share)
    if turned % 2 or not turned:
        raise ValueError(f"partial_rotary_factor is {kind.rotary_share}; {turned} numbers of a head are no pairs")
    return DecoderSpec(**fields, kinds=(kind,))


def _phi3_rules(spec: DecoderSpec) -> tuple[TensorRule, ...]:
    """Query, key and value are one tensor, gate and up another."""
    queries, keys, width = spec.heads * spec.head_size, spec.kv_heads * spec.head_size, spec.mlp_width
    fused = {
        ".q_proj.": (".qkv_proj.", Part(0, queries + 2 * keys)),
        ".k_proj.": (".qkv_proj.", Part(queries, queries + 2 * keys)),
        ".v_proj.": (".qkv_proj.", Part(queries + keys, queries + 2 * keys)),
        ".gate_proj.": (".gate_up_proj.", Part(0, 2 * width)),
        ".up_proj.": (".gate_up_proj.", Part(width, 2 * width)),
    }

    def as_stored(rule: TensorRule) -> TensorRule:
        for own, (whole, part) in fused.items():
            if own in rule.name:
                return rule._replace(name=rule.name.replace(own, whole), part=part)
        return rule

    return tuple(map(as_stored, decoder_rules(spec)))


_SILU = {"hidden_act": ("silu",)}
# `layer_types` says what the switch and its first layer say.
_QWEN_READS = SIZES | {"layer_types", "sliding_window", "use_sliding_window", "max_window_layers"}

LLAMA = Family(_llama, decoder_rules, SIZES, only={**_SILU, "attention_bias": (False,), "mlp_bias": (False,)})
MISTRAL = Family(_mistral, decoder_rules, SIZES | {"sliding_window"}, only=_SILU)
QWEN2 = Family(lambda config: _qwen(config, qkv_bias=True), decoder_rules, _QWEN_READS, only=_SILU)
QWEN3 = Family(
    lambda config: _qwen(config, qk_norm=True),
    decoder_rules,
    _QWEN_READS,
    only={**_SILU, "attention_bias": (False,)},
)
PHI3 = Family(
    _phi3,
    _phi3_rules,
    # The original length is read by longrope alone, which `layer_kind` refuses.
    SIZES | {"sliding_window", "partial_rotary_factor", "original_max_position_embeddings"},
    only=_SILU,
)
