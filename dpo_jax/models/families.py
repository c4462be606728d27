"""The table of model families: how a `config.json` becomes a spec, and which tensor becomes which parameter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dpo_jax.models.decoder import DecoderSpec


class TensorRule(NamedTuple):
    """One tensor of the checkpoint and the parameter that it fills.

    A name with `{layer}` fills one slice of a stacked parameter. A checkpoint holds a linear map as [out, in]; ours
    begins with its `inputs` input dimensions, so ours is the transpose, reshaped. `inputs` 0 means stored as it is.
    """

    name: str
    path: tuple[str, ...]
    inputs: int = 0

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the checkpoint of a parameter (of one layer) of this shape."""
        if not self.inputs:
            return shape
        return (math.prod(shape[self.inputs :]), math.prod(shape[: self.inputs]))


class Family(NamedTuple):
    """What a model family needs: its spec from the config, and its tensors."""

    spec: Callable[[Mapping[str, Any]], DecoderSpec]
    rules: Callable[[DecoderSpec], tuple[TensorRule, ...]]


_LLAMA_FIXED = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}


def _llama_spec(config: Mapping[str, Any]) -> DecoderSpec:
    for key, only in _LLAMA_FIXED.items():
        if config.get(key, only) != only:
            raise ValueError(f"config.json: {key} is {config[key]!r}; this decoder computes with {only!r} only")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"config.json: rope type {kind!r}; this decoder computes with 'default' only")
    heads = config["num_attention_heads"]
    return DecoderSpec(
        vocabulary=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or config["hidden_size"] // heads,
        mlp_width=config["intermediate_size"],
        rope_base=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _llama_rules(spec: DecoderSpec) -> tuple[TensorRule, ...]:
    layer = "model.layers.{layer}."
    rules = (
        TensorRule("model.embed_tokens.weight", ("embedding",)),
        TensorRule("model.norm.weight", ("final_norm", "scale")),
        TensorRule(layer + "input_layernorm.weight", ("layers", "attention_norm", "scale")),
        TensorRule(layer + "self_attn.q_proj.weight", ("layers", "attention", "query"), 1),
        TensorRule(layer + "self_attn.k_proj.weight", ("layers", "attention", "key"), 1),
        TensorRule(layer + "self_attn.v_proj.weight", ("layers", "attention", "value"), 1),
        TensorRule(layer + "self_attn.o_proj.weight", ("layers", "attention", "output"), 2),
        TensorRule(layer + "post_attention_layernorm.weight", ("layers", "mlp_norm", "scale")),
        TensorRule(layer + "mlp.gate_proj.weight", ("layers", "mlp", "gate"), 1),
        TensorRule(layer + "mlp.up_proj.weight", ("layers", "mlp", "up"), 1),
        TensorRule(layer + "mlp.down_proj.weight", ("layers", "mlp", "down"), 1),
    )
    return rules if spec.tied else (*rules, TensorRule("lm_head.weight", ("unembedding",)))


FAMILIES: dict[str, Family] = {
    "llama": Family(_llama_spec, _llama_rules),
}
"""`model_type` of config.json -> family."""
