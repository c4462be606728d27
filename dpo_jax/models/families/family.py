"""A model family: its spec from a `config.json`, the parameter of each tensor, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax.models.spec import DecoderSpec, LayerKind, RopeScaling, Spec

Config = Mapping[str, Any]  # parsed JSON


class Part(NamedTuple):
    """The rows of one parameter in a tensor that fills several."""

    first: int
    of: int  # rows of the whole tensor


class TensorRule(NamedTuple):
    """One tensor of the checkpoint and the parameter that it fills.

    A name with `{layer}` fills one slice of a stacked parameter. A checkpoint holds a linear map as [out, in]; ours
    begins with its `inputs` input dimensions, so ours is the transpose, reshaped; not `transposed`, it is stored as
    [in, out]. `inputs` 0 means stored as it is, its dimensions as one if `flat`. The rules of a tensor with several
    parameters have a `part` each.
    """

    name: str
    path: tuple[str, ...]
    inputs: int = 0
    flat: bool = False
    transposed: bool = True
    part: Part | None = None

    def tensor_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor, the parts of others included, for a parameter (of one layer) of this shape."""
        stored = self.stored_shape(shape)
        return (self.part.of, *stored[1:]) if self.part else stored

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the checkpoint of a parameter (of one layer) of this shape."""
        if not self.inputs:
            return (math.prod(shape),) if self.flat else shape
        ours = (math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :]))
        return ours[::-1] if self.transposed else ours


class Family(NamedTuple):
    """Reading rules of a model family.

    `spec` gets the config as transformers completes it: defaults filled in, old spellings made new. `reads` are the
    keys that it reads, `only` those with the values that this decoder computes, `needs` those that must be there. Any
    other key must be at the default of transformers' class or be one of `HARMLESS`.
    """

    spec: Callable[[Config], Spec]
    rules: Callable[..., tuple[TensorRule, ...]]  # of the spec that `spec` gives
    reads: frozenset[str]
    only: Mapping[str, tuple[object, ...]] = {}
    skipped: tuple[str, ...] = ()  # prefixes of tensors that are left alone, a vision tower's say
    inner: str | None = None  # the key under which the decoder's own config stands
    needs: tuple[str, ...] = ("hidden_size", "num_hidden_layers")  # a default would be another model
    optional_prefix: str = ""  # of tensor names; old checkpoints leave it away


HARMLESS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "attn_pdrop",
        "auto_map",
        "bos_token_id",
        "cache_implementation",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "label2id",
        "max_position_embeddings",
        "model_type",
        "pad_token_id",
        "pretraining_tp",
        "resid_pdrop",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    }
)
"""Keys of a config that change nothing of what a trained model computes: dropout is off, the cache is ours."""

SIZES = frozenset(
    {
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_parameters",
        "tie_word_embeddings",
        "vocab_size",
    }
)
"""The keys that `sizes` and `layer_kind` read."""


def sizes(config: Config) -> dict[str, Any]:
    """The fields of a spec that all families name alike."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise ValueError(f"{heads} attention heads cannot share {kv_heads} key/value heads (num_key_value_heads)")
    return {
        "vocabulary": config["vocab_size"],
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": heads,
        "kv_heads": kv_heads,
        "head_size": config.get("head_dim") or config["hidden_size"] // heads,
        "mlp_width": config["intermediate_size"],
        "norm_epsilon": float(config["rms_norm_eps"]),
        "tied": bool(config["tie_word_embeddings"]),
    }


def layer_kind(rope: Config, window: int | None = None, *, partial: bool = False) -> LayerKind:
    """A kind of layer from its `rope_parameters`; with `partial` the family may turn a part of each head.

    Raises:
        ValueError: rotary positions of a type that this decoder does not compute.
    """
    kind = rope.get("rope_type", "default")
    share = rope.get("partial_rotary_factor", 1.0)
    if share != 1.0 and not partial:
        raise ValueError(f"partial_rotary_factor is {share}; this decoder turns whole heads")
    base = float(rope["rope_theta"])
    if kind == "default":
        return LayerKind(base, window, rotary_share=share)
    if kind == "linear":
        return LayerKind(base, window, RopeScaling(float(rope["factor"])))
    if kind == "llama3":
        bounds = (float(rope["low_freq_factor"]), float(rope["high_freq_factor"]))
        return LayerKind(
            base, window, RopeScaling(float(rope["factor"]), *bounds, rope["original_max_position_embeddings"])
        )
    raise ValueError(f"rope_type is {kind!r}; this decoder computes default, linear and llama3")


def kinds_by_type(config: Config, kinds: Mapping[str, LayerKind]) -> dict[str, Any]:
    """The fields `kinds` and `kind_of_layer` of a spec from the config's `layer_types`."""
    types: Sequence[str] = config["layer_types"]
    used = [name for name in kinds if name in types]
    return {"kinds": tuple(kinds[name] for name in used), "kind_of_layer": tuple(used.index(name) for name in types)}


def decoder_rules(
    spec: DecoderSpec, *, prefix: str = "model.", mlp_norm: str = "post_attention_layernorm"
) -> tuple[TensorRule, ...]:
    """The tensors of a Llama-like decoder, with those that its switches add."""
    layer = prefix + "layers.{layer}."
    attention = layer + "self_attn."
    rules = [
        TensorRule(prefix + "embed_tokens.weight", ("embedding",)),
        TensorRule(prefix + "norm.weight", ("final_norm", "scale")),
        TensorRule(layer + "input_layernorm.weight", ("layers", "attention_norm", "scale")),
        TensorRule(attention + "q_proj.weight", ("layers", "attention", "query", "weight"), 1),
        TensorRule(attention + "k_proj.weight", ("layers", "attention", "key", "weight"), 1),
        TensorRule(attention + "v_proj.weight", ("layers", "attention", "value", "weight"), 1),
        TensorRule(attention + "o_proj.weight", ("layers", "attention", "output", "weight"), 2),
        TensorRule(layer + mlp_norm + ".weight", ("layers", "mlp_norm", "scale")),
        TensorRule(layer + "mlp.gate_proj.weight", ("layers", "mlp", "gate", "weight"), 1),
        TensorRule(layer + "mlp.up_proj.weight", ("layers", "mlp", "up", "weight"), 1),
        TensorRule(layer + "mlp.down_proj.weight", ("layers", "mlp", "down", "weight"), 1),
    ]
    if spec.qkv_bias:
        names = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}
        rules += [
            TensorRule(f"{attention}{name}.bias", ("layers", "attention", path, "bias"), flat=True)
            for name, path in names.items()
        ]
    if spec.qk_norm:
        names = {"q_norm": "query_norm", "k_norm": "key_norm"}
        rules += [
            TensorRule(f"{attention}{name}.weight", ("layers", "attention", path, "scale"))
            for name, path in names.items()
        ]
    if not spec.tied:
        rules.append(TensorRule(prefix.removesuffix("model.") + "lm_head.weight", ("unembedding",)))
    return tuple(rules)
