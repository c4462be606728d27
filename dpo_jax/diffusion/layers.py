"""Layers of networks on pictures: each tensor is declared once, and blocks are stacked and scanned.

Parameters and compute follow `models`: float32 parameters, computing in the dtype of what comes in, sharded by logical
axis names. A stacked linear map has the attributes that an adapter of `models.lora` is built from.

Dimension key: B samples, N tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from dpo_jax.types import Params, Tree

_Block = TypeVar("_Block", bound=nnx.Module)
Build = Callable[[nnx.Rngs], nnx.Module]
Sizes = Mapping[str | None, int]
"""Dimensions by their logical axis name; None: never split."""

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What the backward pass keeps of each block: everything, its input alone, or the results of matmuls."""


class Here(NamedTuple):
    """Block of the scan in which the network is, and the key of an adapter's dropout; None: nothing is dropped."""

    layer: jax.Array
    key: jax.Array | None = None


def matrix(rngs: nnx.Rngs, shape: Sequence[int], axes: Sequence[str | None], *, deviation: float) -> nnx.Param:
    """A float32 parameter, normal around 0; `axes` names each dimension."""
    return nnx.Param(deviation * jax.random.normal(rngs.params(), tuple(shape), jnp.float32), axes=tuple(axes))


def zeros(shape: Sequence[int], axes: Sequence[str | None]) -> nnx.Param:
    """A float32 parameter of zeros."""
    return nnx.Param(jnp.zeros(tuple(shape), jnp.float32), axes=tuple(axes))


class Linear(nnx.Module):
    """A linear map with a bias, [inputs, outputs], which may have several axes each; one for each block, or one alone.

    It begins with Glorot's variance, or at zero. `adapter` is a second map whose result is added, see `models.lora`.
    """

    adapter: nnx.Module | None = None

    def __init__(
        self,
        rngs: nnx.Rngs,
        inputs: Sizes,
        outputs: Sizes,
        *,
        layers: int | None = None,
        from_zero: bool = False,
        deviation: float | None = None,
    ):
        self.inputs = len(inputs)
        stack: Sizes = {} if layers is None else {"layers": layers}
        shape = [*stack.values(), *inputs.values(), *outputs.values()]
        if deviation is None:
            deviation = math.sqrt(2 / (math.prod(inputs.values()) + math.prod(outputs.values())))
        names = (*stack, *inputs, *outputs)
        self.weight = zeros(shape, names) if from_zero else matrix(rngs, shape, names, deviation=deviation)
        self.bias = zeros([*stack.values(), *outputs.values()], (*stack, *outputs))

    def __call__(self, x: jax.Array, here: Here | None = None) -> jax.Array:
        """[.., inputs] to [.., outputs]; with blocks, in one of them."""
        out = jnp.tensordot(x, self.weight[...].astype(x.dtype), self.inputs)
        bias = self.bias[...].astype(x.dtype)
        out += bias.reshape((1,) * (out.ndim - bias.ndim) + bias.shape)
        return out if self.adapter is None else out + self.adapter(x, here)


def normed(x: jax.Array, *, epsilon: float) -> jax.Array:
    """LayerNorm over the last axis without parameters; computed and returned at least in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    wide = wide - wide.mean(axis=-1, keepdims=True)
    return wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + epsilon)


@jax.named_scope("blocks")
def scan_blocks(
    stacked: _Block,
    step: Callable[[_Block, jax.Array, jax.Array], jax.Array],
    x_BND: jax.Array,
    *,
    layers: int,
    remat: str,
) -> jax.Array:
    """The tokens after `step(block, x_BND, layer)` for each block of `stacked`."""
    graphdef, state = nnx.split(stacked)

    def body(x_BND: jax.Array, layer: tuple[Params, jax.Array]) -> tuple[jax.Array, None]:
        weights, index = layer
        return step(nnx.merge(graphdef, weights), x_BND, index), None

    if remat != "none":
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat])
    return jax.lax.scan(body, x_BND, (nnx.to_pure_dict(state), jnp.arange(layers)))[0]


def describe(build: Build) -> tuple[nnx.GraphDef, Tree]:
    """Structure and parameters of what `build` would make, without allocating anything."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(params=0))))
    axes = nnx.to_pure_dict(jax.tree.map(lambda v: v.axes, state, is_leaf=lambda v: isinstance(v, nnx.Variable)))
    return graphdef, Tree(nnx.to_pure_dict(state), axes)


def initial(build: Build, key: jax.Array) -> Params:
    """Random parameters of what `build` makes; it may be jitted, so that they are born sharded."""
    return nnx.to_pure_dict(nnx.split(build(nnx.Rngs(params=key)))[1])
