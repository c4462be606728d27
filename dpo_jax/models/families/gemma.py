"""Gemma 2 (soft caps) and Gemma 3 (query and key norms, two rotary bases); of Gemma 3 with images the text model."""

from __future__ import annotations

from dpo_jax.models.families.family import (
    SIZES,
    Config,
    Family,
    TensorRule,
    decoder_rules,
    kinds_by_type,
    layer_kind,
    sizes,
)
from dpo_jax.models.spec import DecoderSpec

_READS = SIZES | {
    "layer_types",
    "sliding_window",
    "_sliding_window_pattern",  # `layer_types` says the same
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
}
_ONLY: dict[str, tuple[object, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "hidden_act": ("gelu_pytorch_tanh",),  # the old name of the same
    "attention_bias": (False,),
    "use_bidirectional_attention": (None, False),
}


def _spec(config: Config, *, local: Config, full: Config, qk_norm: bool = False) -> DecoderSpec:
    window = config["sliding_window"]
    kinds = {"full_attention": layer_kind(full), "sliding_attention": layer_kind(local, window)}
    return DecoderSpec(
        **sizes(config),
        **kinds_by_type(config, kinds),
        qk_norm=qk_norm,
        sandwich_norms=True,
        norm_offset=1.0,
        activation="gelu_tanh",
        embedding_scale=config["hidden_size"] ** 0.5,
        query_scale=config["query_pre_attn_scalar"] ** -0.5,
        attention_soft_cap=config["attn_logit_softcapping"],
        logit_soft_cap=config["final_logit_softcapping"],
    )


def _gemma2(config: Config) -> DecoderSpec:
    rope = config["rope_parameters"]
    return _spec(config, local=rope, full=rope)


def _gemma3(config: Config) -> DecoderSpec:
    rope = config["rope_parameters"]
    return _spec(config, local=rope["sliding_attention"], full=rope["full_attention"], qk_norm=True)


def _rules(spec: DecoderSpec, prefix: str = "model.") -> tuple[TensorRule, ...]:
    layer = prefix + "layers.{layer}."
    return (
        *decoder_rules(spec, prefix=prefix, mlp_norm="pre_feedforward_layernorm"),
        TensorRule(layer + "post_attention_layernorm.weight", ("layers", "attention_out_norm", "scale")),
        TensorRule(layer + "post_feedforward_layernorm.weight", ("layers", "mlp_out_norm", "scale")),
    )


GEMMA2 = Family(_gemma2, _rules, _READS, only=_ONLY)
# transformers has Gemma 3 without a cap of its scores, and with images without any.
GEMMA3_TEXT = Family(
    _gemma3, _rules, _READS - {"attn_logit_softcapping"}, only=_ONLY | {"attn_logit_softcapping": (None,)}
)
GEMMA3 = Family(
    _gemma3,
    lambda spec: _rules(spec, "language_model.model."),
    _READS - {"attn_logit_softcapping", "final_logit_softcapping"},
    only=_ONLY | {"attn_logit_softcapping": (None,), "final_logit_softcapping": (None,)},
    skipped=("vision_tower.", "multi_modal_projector."),
    inner="text_config",
)
