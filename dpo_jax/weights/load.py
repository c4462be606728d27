"""Parameters on a mesh from a checkpoint; every name and shape is checked before anything is allocated."""

from __future__ import annotations

import functools
import math
import operator
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from dpo_jax.errors import UserError, nearest
from dpo_jax.meeting import least
from dpo_jax.mesh import named_sharding, place_lazily
from dpo_jax.models.families import TensorRule
from dpo_jax.types import Params
from dpo_jax.weights.memory import HostMemory
from dpo_jax.weights.source import WeightsSource

_HEAD = "lm_head.weight"
# Old checkpoints store what the config already gives: rotary frequencies, and the causal mask of GPT-2.
_DERIVED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")


class Placed(Protocol):
    """The shape and dtype of each parameter of a network, and its logical axis names; a `Tree`, or what has them."""

    @property
    def shapes(self) -> Params:
        """A shape and a dtype at each leaf."""
        ...

    @property
    def axes(self) -> Params:
        """Names at each leaf."""
        ...


class Loaded(NamedTuple):
    """Measured costs of loading."""

    tensors: int  # of the checkpoint
    placed_bytes: int  # on the devices of this process
    seconds: float
    host_bytes: int | None  # the most that this host held beyond what was placed; None: its system does not tell

    def __str__(self) -> str:
        line = f"loaded {self.tensors} tensors, {self.placed_bytes / 1e6:.0f} MB placed in {self.seconds:.1f} s"
        return line if self.host_bytes is None else f"{line}, at most {self.host_bytes / 1e6:.0f} MB more on the host"


def load_params(
    source: WeightsSource,
    model: Placed,
    rules: Sequence[TensorRule],
    mesh: Mesh,
    *,
    dtypes: Params | None = None,
    skipped: Sequence[str] = (),
    told: Callable[[Loaded], None] = lambda loaded: None,
) -> Params:
    """Load the parameters of `model` in float32 or in `dtypes`, born with their sharding.

    A shard reads only its own slices. Tensors whose names begin with one of `skipped` are none of the model's. `told`
    gets the measured costs.

    Raises:
        UserError: a tensor is missing, unknown, of another shape, or holds what is no number.
    """
    expected = _check(source, model, rules, tuple(skipped))
    params: Params = {}
    unfit: set[str] = set()
    placed, start = 0, time.perf_counter()
    with HostMemory() as memory:
        for rule in rules:
            shape = leaf(model.shapes, rule.path).shape
            sharding = named_sharding(mesh, leaf(model.axes, rule.path), shape)
            dtype = np.dtype(leaf(dtypes, rule.path) if dtypes else np.float32)
            size = len(sharding.addressable_devices) * math.prod(sharding.shard_shape(shape)) * dtype.itemsize
            placed += size
            memory.stays(size if mesh.devices.flat[0].platform == "cpu" else 0)  # there it is the host's
            read = functools.partial(_read_part, source, rule, shape, dtype, unfit)
            array = place_lazily(sharding, shape, dtype, read, cut=_cut(rule, len(shape)))
            branch = functools.reduce(lambda tree, key: tree.setdefault(key, {}), rule.path[:-1], params)
            branch[rule.path[-1]] = array
    _check_finite(source, unfit, list(expected))
    told(Loaded(len(expected), placed, time.perf_counter() - start, memory.most))
    return params


def leaf(tree: Params, path: tuple[str, ...]) -> Any:
    """The leaf of a nested dict at `path`."""
    return functools.reduce(operator.getitem, path, tree)


def tensor_names(rule: TensorRule, shape: Sequence[int]) -> list[str]:
    """The tensors that fill a parameter of this shape: one, or one for each layer."""
    return [rule.name.format(layer=layer) for layer in range(shape[0])] if is_stacked(rule) else [rule.name]


def is_stacked(rule: TensorRule) -> bool:
    """True if the rule's tensors are slices of one stacked parameter."""
    return "{layer}" in rule.name


def _check(
    source: WeightsSource, model: Placed, rules: Sequence[TensorRule], skipped: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape as stored, of all that will be read."""
    expected: dict[str, tuple[int, ...]] = {}
    layers, embedding = 0, next((rule.name for rule in rules if rule.path == ("embedding",)), None)
    for rule in rules:
        shape = tuple(leaf(model.shapes, rule.path).shape)
        stored = rule.tensor_shape(shape[1:] if is_stacked(rule) else shape)
        expected |= dict.fromkeys(tensor_names(rule, shape), stored)
        layers = shape[0] if is_stacked(rule) else layers
    if missing := [name for name in expected if name not in source.shapes]:
        raise UserError(f"{source.where}: {len(missing)} tensors are missing: {', '.join(missing[:5])}")
    for name, shape in source.shapes.items():
        if name in expected and shape != expected[name]:
            raise UserError(f"{source.where}: tensor {name!r} has shape {shape}, config.json asks for {expected[name]}")
        if name == _HEAD and embedding and name not in expected:
            _check_tied_head(source, embedding)
        elif name not in expected and not name.endswith(_DERIVED) and not name.startswith(skipped):
            known = nearest(name, [rule.name for rule in rules])
            raise UserError(f"{source.where}: tensor {name!r} is unknown ({layers} layers). {known}")
    return expected


def _check_finite(source: WeightsSource, unfit: set[str], names: Sequence[str]) -> None:
    """Refuse tensors that some process has seen to hold no numbers; all processes come here, and say the same."""
    first = least(min(map(names.index, unfit), default=len(names)))
    if first < len(names):
        raise UserError(
            f"{source.where}: tensor {names[first]!r} holds NaN or Inf. Nothing can be learned from such weights: "
            "fetch them again, or take an earlier checkpoint."
        )


def is_finite(part: np.ndarray) -> bool:
    """True if no number of it is NaN or infinite."""
    if part.dtype == ml_dtypes.bfloat16:  # whose own isfinite takes seven times as long
        return bool(((part.view(np.uint16) & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(part).all())


def _check_tied_head(source: WeightsSource, embedding: str) -> None:
    """Refuse a tied head that some tool has written out, unless it equals the embedding."""
    if not np.array_equal(source.read(_HEAD), source.read(embedding)):
        raise UserError(
            f"{source.where}: {_HEAD} differs from {embedding}, but config.json ties them. "
            "Set tie_word_embeddings to false if the head is a matrix of its own."
        )


def _read_part(
    source: WeightsSource,
    rule: TensorRule,
    shape: tuple[int, ...],
    dtype: np.dtype,
    unfit: set[str],
    index: tuple[slice, ...],
) -> np.ndarray:
    """The part of a parameter at `index`, always a copy: a mapped file must not become device memory.

    `unfit` collects the tensors that hold NaN or Inf there.
    """
    part = np.empty([at.stop - at.start for at in index], dtype)
    stacked = is_stacked(rule)
    names = tensor_names(rule, shape)[index[0]] if stacked else [rule.name]
    own_shape, own_index = (shape[1:], index[1:]) if stacked else (shape, index)
    for own, name in zip(part if stacked else [part], names, strict=True):
        _read_slice(own, source, name, rule, own_shape, own_index)
        if not is_finite(own):
            unfit.add(name)
    return part


def _read_slice(
    into: np.ndarray,
    source: WeightsSource,
    name: str,
    rule: TensorRule,
    shape: tuple[int, ...],
    index: tuple[slice, ...],
) -> None:
    """Read a part of a parameter (of one layer) of this shape, and no more rows of the tensor than it needs."""
    axis = _first_stored(rule)
    if axis == len(shape):  # one output, one stored row
        into[...] = _in_our_axes(source.read(name), rule, shape)[index]
        return
    taken, each = index[axis], rule.stored_shape(shape)[0] // shape[axis]
    first = rule.part.first if rule.part else 0
    stored = source.read(name, slice(first + taken.start * each, first + taken.stop * each))
    rows = (*shape[:axis], taken.stop - taken.start, *shape[axis + 1 :])
    view = _in_our_axes(stored, rule, rows)[(*index[:axis], slice(None), *index[axis + 1 :])]
    # Few rows at a time: to transpose many at once takes several times as long, a cache miss for every number.
    step = max(1, 64 // each)
    for start in range(0, view.shape[axis], step):
        some = (*[slice(None)] * axis, slice(start, start + step))
        into[some] = view[some]


def _first_stored(rule: TensorRule) -> int:
    """The dimension of a parameter (of one layer) along which the rows of the stored tensor follow each other."""
    return rule.inputs if rule.transposed else 0


def _cut(rule: TensorRule, rank: int) -> tuple[int, ...]:
    """The dimensions of a parameter in the order in which they are cut: layers, then as the tensor is stored."""
    layers = int(is_stacked(rule))
    inner = range(rank - layers)
    first = _first_stored(rule)
    return (*range(layers), *(layers + axis for axis in (*inner[first:], *inner[:first])))


def _in_our_axes(stored: np.ndarray, rule: TensorRule, shape: tuple[int, ...]) -> np.ndarray:
    """A view of a stored tensor as a parameter of this shape, input dimensions first."""
    if not rule.transposed:
        return stored.reshape(shape)
    outputs = len(shape) - rule.inputs
    split = stored.reshape(shape[rule.inputs :] + shape[: rule.inputs])
    return split.transpose(*range(outputs, len(shape)), *range(outputs))
