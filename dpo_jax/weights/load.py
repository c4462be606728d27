"""From a checkpoint to parameters on a mesh; every name and shape is checked before anything is allocated."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from dpo_jax.errors import UserError, nearest
from dpo_jax.mesh import named_sharding, place_lazily
from dpo_jax.models.decoder import Described
from dpo_jax.models.families import TensorRule
from dpo_jax.types import Params
from dpo_jax.weights.source import WeightsSource

_HEAD = "lm_head.weight"
# Old checkpoints store what the config already gives: rotary frequencies, and the causal mask of GPT-2.
_DERIVED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


def load_params(
    source: WeightsSource,
    model: Described,
    rules: Sequence[TensorRule],
    mesh: Mesh,
    *,
    dtypes: Params | None = None,
    skipped: Sequence[str] = (),
) -> Params:
    """The parameters of `model` in float32 or in `dtypes`, born with their sharding; a shard reads only its own slices.

    Tensors whose names begin with one of `skipped` are none of the model's.

    Raises:
        UserError: a tensor is missing, unknown, or of another shape.
    """
    _check(source, model, rules, tuple(skipped))
    params: Params = {}
    for rule in rules:
        shape = leaf(model.shapes, rule.path).shape
        sharding = named_sharding(mesh, leaf(model.axes, rule.path), shape)
        dtype = np.dtype(leaf(dtypes, rule.path) if dtypes else np.float32)
        array = place_lazily(sharding, shape, functools.partial(_read_part, source, rule, shape, dtype))
        branch = functools.reduce(lambda tree, key: tree.setdefault(key, {}), rule.path[:-1], params)
        branch[rule.path[-1]] = array
    return params


def leaf(tree: Params, path: tuple[str, ...]) -> Any:
    """The leaf of a nested dict at `path`."""
    return functools.reduce(operator.getitem, path, tree)


def tensor_names(rule: TensorRule, shape: Sequence[int]) -> list[str]:
    """The tensors that fill a parameter of this shape: one, or one for each layer."""
    return [rule.name.format(layer=layer) for layer in range(shape[0])] if is_stacked(rule) else [rule.name]


def is_stacked(rule: TensorRule) -> bool:
    """Whether the rule's tensors are slices of one stacked parameter."""
    return "{layer}" in rule.name


def _check(source: WeightsSource, model: Described, rules: Sequence[TensorRule], skipped: tuple[str, ...]) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for rule in rules:
        shape = tuple(leaf(model.shapes, rule.path).shape)
        stored = rule.stored_shape(shape[1:] if is_stacked(rule) else shape)
        expected |= dict.fromkeys(tensor_names(rule, shape), stored)
    if missing := [name for name in expected if name not in source.shapes]:
        raise UserError(f"{source.where}: {len(missing)} tensors are missing: {', '.join(missing[:5])}")
    for name, shape in source.shapes.items():
        if name in expected and shape != expected[name]:
            raise UserError(f"{source.where}: tensor {name!r} has shape {shape}, config.json asks for {expected[name]}")
        if name == _HEAD and model.spec.tied:
            _check_tied_head(source, rules)
        elif name not in expected and not name.endswith(_DERIVED) and not name.startswith(skipped):
            known = nearest(name, [rule.name for rule in rules])
            raise UserError(f"{source.where}: tensor {name!r} is unknown ({model.spec.layers} layers). {known}")


def _check_tied_head(source: WeightsSource, rules: Sequence[TensorRule]) -> None:
    """Some tools write a tied head out: it may stand there if it says what the embedding says."""
    embedding = next(rule.name for rule in rules if rule.path == ("embedding",))
    if not np.array_equal(source.read(_HEAD), source.read(embedding)):
        raise UserError(
            f"{source.where}: {_HEAD} differs from {embedding}, but config.json ties them. "
            "Set tie_word_embeddings to false if the head is a matrix of its own."
        )


def _read_part(
    source: WeightsSource, rule: TensorRule, shape: tuple[int, ...], dtype: np.dtype, index: tuple[slice, ...]
) -> np.ndarray:
    """The part of a parameter at `index`, always a copy: a mapped file must not become device memory."""
    if not is_stacked(rule):
        return np.array(_in_our_axes(source.read(rule.name), rule, shape)[index], dtype, order="C")
    names = tensor_names(rule, shape)[index[0]]
    inner = [len(range(size)[part]) for size, part in zip(shape[1:], index[1:], strict=True)]
    part = np.empty((len(names), *inner), dtype)
    for layer, name in enumerate(names):
        part[layer] = _in_our_axes(source.read(name), rule, shape[1:])[index[1:]]
    return part


def _in_our_axes(stored: np.ndarray, rule: TensorRule, shape: tuple[int, ...]) -> np.ndarray:
    """A view of a stored tensor as a parameter of this shape, input dimensions first."""
    if not rule.inputs or not rule.transposed:
        return stored.reshape(shape)
    outputs = len(shape) - rule.inputs
    split = stored.reshape(shape[rule.inputs :] + shape[: rule.inputs])
    return split.transpose(*range(outputs, len(shape)), *range(outputs))
