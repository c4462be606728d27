"""Linear maps, stacked over layers. Every tensor is declared once: shape, logical axes and initial value.

Dimension key: R rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dpo_jax.mesh import axis_splits


class Here(NamedTuple):
    """Where in the scan over layers the model is, and the key of its dropout; None: nothing is dropped."""

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
