"""Sizes of a diffusion transformer, and its embeddings of time and of the condition, what a sample is to show.

Dimension key: B samples, D width of the network, E width of a text embedding.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from dpo_jax.diffusion.schedules import STEPS
from dpo_jax.mesh import constrain
from dpo_jax.networks import Linear, matrix, zeros

NORM_EPSILON = 1e-6
_WAVES = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerSpec:
    """The sizes of a diffusion transformer; all static."""

    channels: int
    patch: int  # pixels along a side
    base: int  # patches along a side of the images that it is trained on; others are seen as if stretched to them
    layers: int
    heads: int
    head_size: int
    mlp_width: int
    frame_patch: int = 1  # frames in a patch; images need 1
    classes: int = 0  # conditioned on one of so many classes
    text_width: int = 0  # conditioned on a text embedding of this width; with neither, on nothing
    learned_sigma: bool = False  # its output has as many channels again, for a variance that our samplers do not use
    mlp_epsilon: float = NORM_EPSILON  # of the norm before the MLP; the other norms have 1e-6

    def __post_init__(self) -> None:
        if self.classes and self.text_width:
            raise ValueError(f"conditioned on {self.classes} classes and on text: choose one")

    @property
    def width(self) -> int:
        """Width of a token."""
        return self.heads * self.head_size

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return self.channels * (2 if self.learned_sigma else 1)


class Condition(NamedTuple):
    """Conditions of samples: classes, int32 [B], or text embeddings, float [B, E]; and which have no condition."""

    shown_B: jax.Array
    absent_B: jax.Array  # bool


def present(shown_B: jax.Array) -> Condition:
    """Condition of samples that all have one."""
    return Condition(shown_B, jnp.zeros(shown_B.shape[:1], bool))


class TimeEmbedding(nnx.Module):
    """Time as waves, then two linear maps: [B] to [B, D]."""

    def __init__(self, rngs: nnx.Rngs, spec: TransformerSpec):
        self.first = Linear(rngs, {None: 2 * _WAVES}, {"mlp": spec.width})
        self.second = Linear(rngs, {"mlp": spec.width}, {"embed": spec.width})

    def __call__(self, time_B: jax.Array, dtype: DTypeLike) -> jax.Array:
        # Published models count their steps from 0.
        steps_B = STEPS * time_B - 1.0
        frequency = np.exp(-np.log(10000.0) * np.arange(_WAVES) / (_WAVES - 1)).astype(np.float32)
        angles = steps_B[:, None] * jnp.asarray(frequency)[None]
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1).astype(dtype)
        return self.second(jax.nn.silu(self.first(waves)))


class ClassEmbedding(nnx.Module):
    """A row for each class, and one behind them for none: [B] to [B, D]."""

    def __init__(self, rngs: nnx.Rngs, spec: TransformerSpec):
        self.classes = spec.classes
        self.table = matrix(rngs, (spec.classes + 1, spec.width), (None, "embed"))

    def __call__(self, condition: Condition, dtype: DTypeLike) -> jax.Array:
        # Gathered over fsdp once; looking up in a split table makes XLA recompute everything.
        table = constrain(self.table[...].astype(dtype), None, None)
        rows_B = jnp.where(condition.absent_B, self.classes, condition.shown_B)
        return jnp.take(table, rows_B, axis=0, mode="fill")  # an unknown class is NaN, never another one


class TextEmbedding(nnx.Module):
    """Two linear maps of an embedding of the whole text; a learned one stands for none: [B, E] to [B, D]."""

    def __init__(self, rngs: nnx.Rngs, spec: TransformerSpec):
        self.nothing = zeros((spec.text_width,), (None,))
        self.first = Linear(rngs, {None: spec.text_width}, {"mlp": spec.width})
        self.second = Linear(rngs, {"mlp": spec.width}, {"embed": spec.width})

    def __call__(self, condition: Condition, dtype: DTypeLike) -> jax.Array:
        nothing = self.nothing[...][None]
        text_BE = jnp.where(condition.absent_B[:, None], nothing, condition.shown_B).astype(dtype)
        return self.second(jax.nn.silu(self.first(text_BE)))
