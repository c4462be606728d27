"""The config.json of a class-conditional diffusion transformer in Diffusers, and the sizes that it states."""

from __future__ import annotations

from dpo_jax.diffusion.embeddings import TransformerSpec
from dpo_jax.errors import UserError, nearest
from dpo_jax.weights.source import JsonObject, WeightsSource, check_sizes

_CLASS = "DiTTransformer2DModel"
_MLP_WIDTHS = 4  # of the network

_NEEDS = ("num_attention_heads", "attention_head_dim", "in_channels", "num_layers", "sample_size", "patch_size")
_READS = (*_NEEDS, "out_channels", "num_embeds_ada_norm", "norm_eps")
_HARMLESS = ("dropout", "norm_num_groups", "upcast_attention")
_ONLY: dict[str, tuple[object, ...]] = {
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "norm_elementwise_affine": (False,),
    "norm_type": ("ada_norm_zero",),
    # What an older class of Diffusers has besides, turned off.
    "attention_type": ("default",),
    "caption_channels": (None,),
    "cross_attention_dim": (None,),
    "double_self_attention": (False,),
    "interpolation_scale": (None,),
    "num_vector_embeds": (None,),
    "only_cross_attention": (False,),
    "use_additional_conditions": (None, False),
    "use_linear_projection": (False,),
}
"""The keys of a config of which this network computes some values only."""


def dit_spec(source: WeightsSource) -> TransformerSpec:
    """The sizes that config.json states.

    Raises:
        UserError: a key is missing, unknown, or has a value that this network does not compute.
    """
    config, where = source.config, f"{source.where}/config.json"
    try:
        check_sizes(config)
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from None
    for key, value in config.items():
        if key in _ONLY and value not in _ONLY[key]:
            allowed = " or ".join(map(repr, _ONLY[key]))
            raise UserError(f"{where}: {key} is {value!r}; this diffusion transformer computes {allowed}.")
        if key not in (*_READS, *_HARMLESS, *_ONLY) and not key.startswith("_"):
            raise UserError(f"{where}: {key!r} is unknown. {nearest(key, (*_READS, *_HARMLESS, *_ONLY))}")
    if missing := [key for key in _NEEDS if config.get(key) is None]:
        raise UserError(f"{where}: {', '.join(missing)} missing; a diffusion transformer has them.")
    channels, outputs = config["in_channels"], config.get("out_channels") or config["in_channels"]
    if outputs not in (channels, 2 * channels):
        raise UserError(f"{where}: out_channels is {outputs}; allowed: {channels}, or {2 * channels} with a variance.")
    if config["sample_size"] % config["patch_size"]:
        raise UserError(f"{where}: sample_size {config['sample_size']} is no multiple of patch_size.")
    return TransformerSpec(
        channels=channels,
        patch=config["patch_size"],
        base=config["sample_size"] // config["patch_size"],
        layers=config["num_layers"],
        heads=config["num_attention_heads"],
        head_size=config["attention_head_dim"],
        mlp_width=_MLP_WIDTHS * config["num_attention_heads"] * config["attention_head_dim"],
        classes=config.get("num_embeds_ada_norm") or 1000,
        learned_sigma=outputs != channels,
        mlp_epsilon=float(config.get("norm_eps", 1e-5)),
    )


def dit_config(spec: TransformerSpec) -> JsonObject:
    """Return the config.json of a network.

    Raises:
        UserError: Diffusers has no class for such a network.
    """
    wrong = {
        "conditioned on text": spec.text_width,
        "conditioned on nothing": not (spec.classes or spec.text_width),
        f"of clips, {spec.frame_patch} frames in a patch": spec.frame_patch != 1,
        f"with an MLP {spec.mlp_width} wide, not {_MLP_WIDTHS * spec.width}": spec.mlp_width
        != _MLP_WIDTHS * spec.width,
    }
    if unlike := [what for what, holds in wrong.items() if holds]:
        raise UserError(f"export: {_CLASS} cannot be {', '.join(unlike)}. Keep the checkpoint of the run instead.")
    return {
        "_class_name": _CLASS,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": spec.head_size,
        "in_channels": spec.channels,
        "norm_elementwise_affine": False,
        "norm_eps": spec.mlp_epsilon,
        "norm_type": "ada_norm_zero",
        "num_attention_heads": spec.heads,
        "num_embeds_ada_norm": spec.classes,
        "num_layers": spec.layers,
        "out_channels": spec.outputs,
        "patch_size": spec.patch,
        "sample_size": spec.base * spec.patch,
    }
