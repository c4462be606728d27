"""Phi-3 with the rotary positions of its short contexts; query, key and value are one tensor, gate and up another."""

from __future__ import annotations

from dpo_jax.models.families.family import SIZES, Config, Family, Part, TensorRule, decoder_rules, layer_kind, sizes
from dpo_jax.models.spec import DecoderSpec


def _spec(config: Config) -> DecoderSpec:
    kind = layer_kind(config["rope_parameters"], config["sliding_window"], partial=True)
    fields = sizes(config)
    turned = int(fields["head_size"] * kind.rotary_share)
    if turned % 2 or not turned:
        raise ValueError(f"partial_rotary_factor is {kind.rotary_share}; {turned} numbers of a head are no pairs")
    return DecoderSpec(**fields, kinds=(kind,))


def _rules(spec: DecoderSpec) -> tuple[TensorRule, ...]:
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


PHI3 = Family(
    _spec,
    _rules,
    # The original length is read by longrope alone, which `layer_kind` refuses.
    SIZES | {"sliding_window", "partial_rotary_factor", "original_max_position_embeddings"},
    only={"hidden_act": ("silu",)},
)
