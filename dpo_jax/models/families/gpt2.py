"""GPT-2 and DistilGPT-2."""

from __future__ import annotations

from dpo_jax.models.families.family import Config, Family, TensorRule
from dpo_jax.models.spec import Gpt2Spec

_PREFIX = "transformer."


def _spec(config: Config) -> Gpt2Spec:
    width, heads = config["n_embd"], config["n_head"]
    if width % heads:
        raise ValueError(f"n_embd is {width}; it is no multiple of n_head, {heads}")
    return Gpt2Spec(
        vocabulary=config["vocab_size"],
        width=width,
        layers=config["n_layer"],
        heads=heads,
        kv_heads=heads,
        head_size=width // heads,
        mlp_width=config["n_inner"] or 4 * width,
        norm_epsilon=float(config["layer_norm_epsilon"]),
        tied=bool(config["tie_word_embeddings"]),
        positions=config["n_positions"],
    )


def _rules(spec: Gpt2Spec) -> tuple[TensorRule, ...]:
    layer = _PREFIX + "h.{layer}."

    def linear(name: str, *path: str, inputs: int = 1) -> list[TensorRule]:
        """GPT-2 keeps its linear maps as [in, out]."""
        weight = TensorRule(f"{layer}{name}.weight", ("layers", *path, "weight"), inputs, transposed=False)
        return [weight, TensorRule(f"{layer}{name}.bias", ("layers", *path, "bias"), flat=True)]

    def norm(name: str, *path: str) -> list[TensorRule]:
        return [TensorRule(f"{name}.weight", (*path, "scale")), TensorRule(f"{name}.bias", (*path, "bias"))]

    return (
        TensorRule(_PREFIX + "wte.weight", ("embedding",)),
        TensorRule(_PREFIX + "wpe.weight", ("positions",)),
        *norm(layer + "ln_1", "layers", "attention_norm"),
        *linear("attn.c_attn", "attention", "qkv"),
        *linear("attn.c_proj", "attention", "output", inputs=2),
        *norm(layer + "ln_2", "layers", "mlp_norm"),
        *linear("mlp.c_fc", "mlp", "up"),
        *linear("mlp.c_proj", "mlp", "down"),
        *norm(_PREFIX + "ln_f", "final_norm"),
        *(() if spec.tied else (TensorRule("lm_head.weight", ("unembedding",)),)),
    )


_NEEDS = ("n_embd", "n_layer", "n_head")
_SUMMARY = {"summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"}

GPT2 = Family(
    _spec,
    _rules,
    frozenset(
        {
            *_NEEDS,
            "vocab_size",
            "n_positions",
            "n_ctx",  # the old name of the same
            "n_inner",
            "layer_norm_epsilon",
            "tie_word_embeddings",
            "reorder_and_upcast_attn",  # our scores are always computed in float32
            *_SUMMARY,  # of a classification head, which a language model lacks
        }
    ),
    only={
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    needs=_NEEDS,
    optional_prefix=_PREFIX,
)
