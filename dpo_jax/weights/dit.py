"""Class-conditional diffusion transformers (arXiv:2212.09748) as folders that Diffusers' `DiTTransformer2DModel` loads.

The step that it calls i is t = (i + 1) / 1000 of ours, in the linear schedule. It gives each block embeddings of time
and class of its own, which in every published checkpoint are copies of one; this network has one, and refuses others.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from dpo_jax.diffusion.diffuser import Diffuser
from dpo_jax.diffusion.embeddings import Grid, TransformerSpec, positions
from dpo_jax.errors import UserError, nearest
from dpo_jax.files import write_json
from dpo_jax.models.families import TensorRule
from dpo_jax.types import Params
from dpo_jax.weights.export import Made, as_stored, export_dtype, whole_or_absent
from dpo_jax.weights.folder import open_folder
from dpo_jax.weights.load import Loaded, is_stacked, leaf, load_params, tensor_names
from dpo_jax.weights.source import JsonObject, WeightsSource, check_sizes

STEM = "diffusion_pytorch_model"
_BLOCK = "transformer_blocks.{layer}."
_EMBEDDINGS = _BLOCK + "norm1.emb."
_PATCHES = "pos_embed.proj.weight"
_POSITIONS = "pos_embed.pos_embed"


def open_dit(folder: Path) -> WeightsSource:
    """Open the folder of a transformer, with config.json and safetensors (a pipeline has it in `transformer`).

    Raises:
        UserError: a file is missing or damaged.
    """
    inner = folder / "transformer"
    return open_folder(inner if (inner / "config.json").exists() else folder, stem=STEM)


def dit_rules() -> tuple[TensorRule, ...]:
    """The tensors of a Diffusers folder and the parameters that they fill. The kernel of patches counts as a matrix."""
    first, block = _EMBEDDINGS.format(layer=0), ("layers",)
    maps = {
        "pos_embed.proj": (("patches",), 1),
        first + "timestep_embedder.linear_1": (("time", "first"), 1),
        first + "timestep_embedder.linear_2": (("time", "second"), 1),
        _BLOCK + "norm1.linear": ((*block, "modulation"), 1),
        _BLOCK + "attn1.to_q": ((*block, "attention", "query"), 1),
        _BLOCK + "attn1.to_k": ((*block, "attention", "key"), 1),
        _BLOCK + "attn1.to_v": ((*block, "attention", "value"), 1),
        _BLOCK + "attn1.to_out.0": ((*block, "attention", "output"), 2),
        _BLOCK + "ff.net.0.proj": ((*block, "mlp", "up"), 1),
        _BLOCK + "ff.net.2": ((*block, "mlp", "down"), 1),
        "proj_out_1": (("final_modulation",), 1),
        "proj_out_2": (("output",), 1),
    }
    rules = [TensorRule(first + "class_embedder.embedding_table.weight", ("condition", "table"))]
    for name, (path, inputs) in maps.items():
        rules.append(TensorRule(f"{name}.weight", (*path, "weight"), inputs))
        rules.append(TensorRule(f"{name}.bias", (*path, "bias"), flat=True))
    return tuple(rules)


def load_dit(
    source: WeightsSource,
    model: Diffuser,
    mesh: Mesh,
    *,
    dtypes: Params | None = None,
    told: Callable[[Loaded], None] = lambda loaded: None,
) -> Params:
    """Load the parameters of a folder onto the mesh, as `load_params` gives them; `model` has the spec of `dit_spec`.

    Raises:
        UserError: as there; blocks have different embeddings, or positions are not sines and cosines.
    """
    spec = model.spec
    kernel = (spec.width, spec.channels, spec.patch, spec.patch)
    if source.shapes.get(_PATCHES, kernel) != kernel:
        raise UserError(
            f"{source.where}: tensor {_PATCHES!r} has shape {source.shapes[_PATCHES]}, config.json asks for {kernel}"
        )
    _check_copies(source, spec)
    _check_positions(source, spec)
    flat = (spec.width, math.prod(kernel[1:]))

    def read(name: str, rows: slice = slice(None), /) -> np.ndarray:
        tensor = source.read(name, rows)
        return tensor.reshape(-1, flat[1]) if name == _PATCHES else tensor

    shapes = {name: flat if name == _PATCHES else shape for name, shape in source.shapes.items()}
    copies = [_EMBEDDINGS.format(layer=layer) for layer in range(1, spec.layers)]
    seen = source._replace(shapes=shapes, read=read)
    return load_params(seen, model, dit_rules(), mesh, dtypes=dtypes, skipped=[*copies, _POSITIONS], told=told)


def _check_copies(source: WeightsSource, spec: TransformerSpec) -> None:
    """Refuse blocks whose embeddings differ from those of the first."""
    first = _EMBEDDINGS.format(layer=0)
    for name in [name for name in source.shapes if name.startswith(first)]:
        for layer in range(1, spec.layers):
            copy = _EMBEDDINGS.format(layer=layer) + name.removeprefix(first)
            if copy not in source.shapes or not np.array_equal(source.read(copy), source.read(name)):
                raise UserError(
                    f"{source.where}: tensor {copy!r} is missing, or differs from {name!r}. This network has one "
                    "embedding of time and class for all blocks."
                )


def _check_positions(source: WeightsSource, spec: TransformerSpec) -> None:
    """Refuse positions, which old folders hold, that differ from those that the config gives."""
    if _POSITIONS not in source.shapes:
        return
    wanted = positions(Grid(1, spec.base, spec.base), width=spec.width, base=spec.base)
    stored = np.asarray(source.read(_POSITIONS), np.float32)
    if stored.shape != (1, *wanted.shape) or not np.allclose(stored[0], wanted, atol=1e-2):
        raise UserError(f"{source.where}: tensor {_POSITIONS!r} does not hold sines and cosines of {spec.base} places.")


def export_dit(
    folder: Path, params: Params, model: Diffuser, *, dtype: str = "float32", made: Made | None = None
) -> None:
    """Write a folder that Diffusers loads; an earlier export at `folder` is replaced. Every process calls it.

    Raises:
        UserError: an unknown `dtype`, no class for this network, or `folder` holds something that is not an export.
    """
    config, stored_dtype = dit_config(model.spec), export_dtype(dtype)
    with whole_or_absent(folder, made) as partial:
        tensors = dict(_tensors(params, model, stored_dtype))
        if partial:
            file = partial / f"{STEM}.safetensors"
            write_json(partial / "config.json", config)
            save_file(tensors, file, metadata={"format": "pt"})
            shutil.copymode(partial / "config.json", file)  # safetensors lets only the owner read


def _tensors(params: Params, model: Diffuser, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by name; gathering a sharded parameter takes every process."""
    spec, first = model.spec, _EMBEDDINGS.format(layer=0)
    for rule in dit_rules():
        array: jax.Array = leaf(params, rule.path)
        names = tensor_names(rule, array.shape)
        for number, name in enumerate(names):
            stored = as_stored(array[number] if is_stacked(rule) else array, rule, dtype)
            if name == _PATCHES:
                stored = stored.reshape(spec.width, spec.channels, spec.patch, spec.patch)
            yield name, stored
            if name.startswith(first):
                for layer in range(1, spec.layers):
                    yield _EMBEDDINGS.format(layer=layer) + name.removeprefix(first), stored.copy()


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
