"""Preference scorers: a picture or a clip to one number, higher for what is preferred. Only differences mean something.

Two blocks of convolution and pooling, the mean over all places, and a head: so any size will do, and a scorer is moved
to another size as it is. The convolutions of a clip reach over time as well. Scores of a pair go into
`losses.reward.preference_score`.

Dimension key: B samples, F frames, H height, W width, C channels.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from dpo_jax.mesh import constrain
from dpo_jax.networks import Linear, Network, describe, matrix, zeros
from dpo_jax.types import Params

_KERNEL = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScorerSpec:
    """The sizes of a scorer; all static."""

    channels: int
    clips: bool  # [B, F, H, W, C], not [B, H, W, C]
    widths: tuple[int, int] = (32, 64)  # of the two blocks
    head_width: int = 512

    @property
    def axes(self) -> int:
        """Number of axes that it convolves over."""
        return 3 if self.clips else 2


class ConvPool(nnx.Module):
    """A convolution, a ReLU, and the largest of each two neighbours along every axis."""

    def __init__(self, rngs: nnx.Rngs, axes: int, inputs: int, outputs: int):
        self.axes = axes
        places = (_KERNEL,) * axes
        deviation = float(np.sqrt(2 / (_KERNEL**axes * inputs)))  # He's: a ReLU lets half of it through
        names = (*[None] * axes, "embed", "mlp")
        self.weight = matrix(rngs, (*places, inputs, outputs), names, deviation=deviation)
        self.bias = zeros((outputs,), ("mlp",))

    def __call__(self, x: jax.Array) -> jax.Array:
        letters = "DHW"[-self.axes :]
        numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
        # Kernels and channels are whole on every device: with both split XLA (jax 0.10.2) gives wrong gradients.
        weight = constrain(self.weight[...].astype(x.dtype), *[None] * (self.axes + 2))
        ones = (1,) * self.axes
        x = jax.lax.conv_general_dilated(x, weight, ones, "SAME", dimension_numbers=numbers)
        x = jax.nn.relu(x + self.bias[...].astype(x.dtype).reshape(1, *ones, -1))
        pairs = (1, *(2,) * self.axes, 1)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, pairs, pairs, "SAME")
        return constrain(x, "rows", *[None] * (self.axes + 1))


class ScorerNetwork(nnx.Module):
    """Blocks, the mean over places, a hidden layer, a score; float32 parameters, computing in `dtype`."""

    def __init__(self, spec: ScorerSpec, rngs: nnx.Rngs, *, dtype: DTypeLike):
        self.dtype = dtype
        near, far = spec.widths
        self.first = ConvPool(rngs, spec.axes, spec.channels, near)
        self.second = ConvPool(rngs, spec.axes, near, far)
        self.hidden = Linear(rngs, {"embed": far}, {"mlp": spec.head_width}, deviation=None)
        self.score = Linear(rngs, {"mlp": spec.head_width}, {None: 1}, deviation=0.01)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.second(self.first(x.astype(self.dtype)))
        wide = jnp.promote_types(self.dtype, jnp.float32)
        pooled = x.mean(axis=tuple(range(1, x.ndim - 1)), dtype=wide).astype(self.dtype)
        # The score itself is wide: differences of near scores would vanish in half precision.
        return self.score(jax.nn.relu(self.hidden(pooled)).astype(wide))[:, 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer(Network):
    """A scorer as pure functions of its parameters, a plain nested dict. It has no adapter."""

    spec: ScorerSpec

    def scores(self, params: Params, samples: jax.Array) -> jax.Array:
        """The score of each image [B, H, W, C] or clip [B, F, H, W, C], at least float32 [B]."""
        chex.assert_rank(samples, 2 + self.spec.axes)
        chex.assert_axis_dimension(samples, -1, self.spec.channels)
        return self.module(params)(samples)


def make_scorer(spec: ScorerSpec, *, dtype: DTypeLike = jnp.float32) -> Scorer:
    """Describe a scorer without allocating anything."""

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return ScorerNetwork(spec, rngs, dtype=jnp.dtype(dtype))

    return Scorer(spec=spec, dtype=jnp.dtype(dtype), **describe(build))
