"""Layers stacked and scanned, so that compile time does not grow with depth, and the linear maps they are made of.

Every tensor is declared once: shape, logical axes and initial value.

Dimension key: R rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from dpo_jax.mesh import axis_splits
from dpo_jax.types import Params

_Carry = TypeVar("_Carry")
_Block = TypeVar("_Block", bound=nnx.Module)

SAVED = "attention"
"""The name of what the backward pass of attention needs of its forward pass, for policies of recomputing."""

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        # With it nothing in front is needed: else the scores of attention would be kept.
        jax.checkpoint_policies.save_only_these_names(SAVED),
    ),
}
"""What the backward pass keeps of each layer: everything, its input alone, or the results of matmuls and attention."""


class Here(NamedTuple):
    """Layer of the scan in which the model is, and the key of its dropout; None: nothing is dropped."""

    layer: jax.Array
    key: jax.Array | None = None


def bias(shape: tuple[int, ...], axes: str) -> nnx.Param:
    """A float32 vector of zeros; `axes` names each dimension."""
    return nnx.Param(jnp.zeros(shape, jnp.float32), axes=tuple(axes.split()))


def matrix(rngs: nnx.Rngs, shape: tuple[int, ...], axes: str) -> nnx.Param:
    """A float32 weight, normal with standard deviation 0.02; `axes` names each dimension."""
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32), axes=tuple(axes.split()))


class Linear(nnx.Module):
    """A linear map of each layer, [inputs, outputs], with a bias or without; inputs and outputs may have several axes.

    Both are given as logical axis name -> size. `adapter` is a second map whose result is added, see `lora`.
    """

    adapter: nnx.Module | None = None

    def __init__(
        self,
        rngs: nnx.Rngs,
        layers: int,
        inputs: Mapping[str, int],
        outputs: Mapping[str, int],
        *,
        with_bias: bool = False,
    ):
        self.inputs = len(inputs)
        axes = ("layers", *inputs, *outputs)
        self.weight = matrix(rngs, (layers, *inputs.values(), *outputs.values()), " ".join(axes))
        if with_bias:
            self.bias = bias((layers, *outputs.values()), " ".join(("layers", *outputs)))
        self.with_bias = with_bias

    def __call__(self, x: jax.Array, here: Here) -> jax.Array:
        """[R, T, inputs] to [R, T, outputs], in one layer."""
        out = contract(x, self.weight[...].astype(x.dtype), self.inputs)
        if self.with_bias:
            out += self.bias[...].astype(x.dtype)[None, None]
        return out if self.adapter is None else out + self.adapter(x, here)


def contract(x: jax.Array, weight: jax.Array, inputs: int) -> jax.Array:
    """The product over the last `inputs` axes of x, [R, T, ..], and the first ones of the weight."""
    if weight.ndim > 2 or axis_splits("length") > 1:
        return jnp.tensordot(x, weight, inputs)
    # Rows and tokens as one axis: the backward pass of XLA's CPU backend takes 0.6 of the time.
    return (x.reshape(-1, x.shape[2]) @ weight).reshape(*x.shape[:2], -1)


@jax.named_scope("layers")
def scan_layers(
    stacked: _Block, step: Callable[[_Block, _Carry, jax.Array], _Carry], carry: _Carry, *, layers: int, remat: str
) -> _Carry:
    """The carry after `step(block, carry, layer)` for each block of `stacked`."""
    graphdef, state = nnx.split(stacked)

    def body(carry: _Carry, layer: tuple[Params, jax.Array]) -> tuple[_Carry, None]:
        weights, index = layer
        return step(nnx.merge(graphdef, weights), carry, index), None

    if remat != "none":
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat])
    return jax.lax.scan(body, carry, (nnx.to_pure_dict(state), jnp.arange(layers)))[0]
