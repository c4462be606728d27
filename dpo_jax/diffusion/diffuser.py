"""A diffusion transformer as pure functions of its parameters: what a stage trains and samples from.

Dimension key: B samples, F frames, H height, W width, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from dpo_jax.diffusion.conditions import Condition
from dpo_jax.diffusion.embeddings import TransformerSpec
from dpo_jax.diffusion.layers import describe, initial
from dpo_jax.diffusion.transformer import DiffusionTransformer, Kernel
from dpo_jax.types import Params

Adapt = Callable[[nnx.Module, nnx.Rngs], nnx.Module]
"""Gives a network adapters, as `models.lora.attach` does."""


@dataclasses.dataclass(frozen=True)
class Diffuser:
    """A diffusion transformer as pure functions of its parameters, a plain nested dict."""

    spec: TransformerSpec
    dtype: Any
    build: Callable[[nnx.Rngs], nnx.Module]
    graphdef: Any
    shapes: Params
    axes: Params

    def init(self, key: jax.Array) -> Params:
        """Random parameters, the adapter's among them if there is one."""
        return initial(self.build, key)

    def apply(
        self,
        params: Params,
        noisy: jax.Array,
        time_B: jax.Array,
        condition: Condition | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """What is predicted of noisy images [B, H, W, C] or clips [B, F, H, W, C]: their shape, the compute dtype.

        Time is in [0, 1]. `key` draws the dropout of an adapter; None drops nothing.
        """
        return self.outputs(params, noisy, time_B, condition, key)[..., : self.spec.channels]

    def outputs(
        self,
        params: Params,
        noisy: jax.Array,
        time_B: jax.Array,
        condition: Condition | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """The same with the channels of a learned variance behind the others."""
        chex.assert_rank(noisy, {4, 5})
        chex.assert_axis_dimension(noisy, -1, self.spec.channels)
        chex.assert_shape(time_B, noisy.shape[:1])
        if (condition is None) != (not self.spec.classes and not self.spec.text_width):
            raise ValueError(f"the network is conditioned on {_told(self.spec)}, and gets {_given(condition)}")
        module = nnx.merge(self.graphdef, params)
        if noisy.ndim == 4:  # a clip of one frame
            return module(noisy[:, None], time_B, condition, key)[:, 0]
        return module(noisy, time_B, condition, key)


def _told(spec: TransformerSpec) -> str:
    if spec.classes:
        return f"{spec.classes} classes"
    return f"text embeddings of width {spec.text_width}" if spec.text_width else "nothing"


def _given(condition: Condition | None) -> str:
    return "none" if condition is None else f"a condition of shape {condition.shown_B.shape}"


def make_diffuser(
    spec: TransformerSpec,
    *,
    dtype: Any = jnp.float32,
    remat: str = "none",
    kernel: Kernel = "xla",
    adapt: Adapt | None = None,
) -> Diffuser:
    """Describes a diffusion transformer without allocating anything.

    `adapt` gives the network adapters: its parameters are then those without, joined with an adapter's. Described once
    more without it, the base alone gives the network as it was: the reference of a policy that trains its adapter.
    """

    def build(rngs: nnx.Rngs) -> nnx.Module:
        module = DiffusionTransformer(spec, rngs, dtype=dtype, remat=remat, kernel=kernel)
        return adapt(module, rngs) if adapt else module

    found = describe(build)
    return Diffuser(spec, jnp.dtype(dtype), build, found.graphdef, found.shapes, found.axes)
