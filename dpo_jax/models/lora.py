"""LoRA: a frozen weight W and two thin trained ones, x W + (alpha / rank) drop(x) A B (arXiv:2106.09685).

Parameters with an adapter are those of the base with a branch `adapter` next to each adapted weight.
"""

from __future__ import annotations

import functools
import math
import operator

import jax
import jax.numpy as jnp
from flax import nnx

from dpo_jax.models.stack import Here, Linear, contract
from dpo_jax.types import ADAPTER, Lora, Params


class Adapter(nnx.Module):
    """The two thin weights of one linear map: A uniform as in PEFT, B zero, so that at first it adds nothing.

    It computes in float32 whatever the model computes in, so its gradients are summed over devices in float32.
    """

    def __init__(self, rngs: nnx.Rngs, linear: Linear, lora: Lora, number: int):
        layers, *sizes = linear.weight.shape
        _, *names = linear.weight.axes
        inputs = linear.inputs
        bound = 1 / math.sqrt(math.prod(sizes[:inputs]))
        shape = (layers, *sizes[:inputs], lora.rank)
        thin = jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound)
        self.a = nnx.Param(thin, axes=("layers", *names[:inputs], "rank"))
        zeros = jnp.zeros((layers, lora.rank, *sizes[inputs:]), jnp.float32)
        self.b = nnx.Param(zeros, axes=("layers", "rank", *names[inputs:]))
        self.lora, self.inputs, self.number = lora, inputs, number

    def __call__(self, x: jax.Array, here: Here) -> jax.Array:
        """The addition to the result of the map, in the dtype of x."""
        # Computed again in the backward pass, which then keeps x alone, and not its float32 copy.
        return jax.checkpoint(self._product)(x, self.a[...], self.b[...], here)

    def _product(self, x: jax.Array, a: jax.Array, b: jax.Array, here: Here) -> jax.Array:
        wide = x.astype(jnp.float32)
        if self.lora.dropout and here.key is not None:
            key = jax.random.fold_in(jax.random.fold_in(here.key, here.layer), self.number)
            kept = 1.0 - self.lora.dropout
            wide = jnp.where(jax.random.bernoulli(key, kept, x.shape), wide / kept, 0.0)
        return (self.lora.scale * contract(contract(wide, a, self.inputs), b, 1)).astype(x.dtype)


def attach(module: nnx.Module, rngs: nnx.Rngs, lora: Lora) -> nnx.Module:
    """The module with an adapter on each of its maps that `lora` names."""
    for number, path in enumerate(lora.paths):
        linear: Linear = functools.reduce(getattr, path, module)  # type: ignore[arg-type]
        linear.adapter = Adapter(rngs, linear, lora, number)
    return module


def merge(base: Params, adapter: Params, lora: Lora) -> Params:
    """The parameters of a plain model that computes the same: W + (alpha / rank) A B, in float32."""
    merged = jax.tree.map(lambda leaf: leaf, base)
    for path in lora.paths:
        linear = functools.reduce(operator.getitem, path, merged)
        thin = functools.reduce(operator.getitem, path, adapter)[ADAPTER]
        linear["weight"] = _merged(linear["weight"], thin["a"], thin["b"], lora.scale)
    return merged


@functools.partial(jax.jit, static_argnames="scale")
def _merged(weight: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    product = jax.vmap(functools.partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST))
    return weight.astype(jnp.float32) + scale * product(a, b)
