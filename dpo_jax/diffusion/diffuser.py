"""A diffusion transformer as pure functions of its parameters, for training, sampling and files.

Dimension key: B samples, F frames, H height, W width, C channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dpo_jax.diffusion.embeddings import Condition, TransformerSpec
from dpo_jax.diffusion.layers import Build, describe, initial
from dpo_jax.diffusion.transformer import DiffusionTransformer, Kernel
from dpo_jax.types import Lora, Params, Tree, adapter_of

Attach = Callable[[nnx.Module, nnx.Rngs, Lora], nnx.Module]
"""Gives a network an adapter: `models.lora.attach`."""


@dataclasses.dataclass(frozen=True)
class Diffuser:
    """A diffusion transformer as pure functions of its parameters, a plain nested dict with an adapter or without."""

    spec: TransformerSpec
    dtype: jnp.dtype
    build: Build
    graphdef: nnx.GraphDef
    tree: Tree
    lora: Lora | None = None
    build_adapted: Build | None = None
    adapted: nnx.GraphDef | None = None
    adapter: Tree | None = None

    @property
    def shapes(self) -> Params:
        """The shape and dtype of each parameter, the adapter's left out."""
        return self.tree.shapes

    @property
    def axes(self) -> Params:
        """The logical axis names of each parameter, the adapter's left out."""
        return self.tree.axes

    @property
    def trained(self) -> Tree:
        """The parameters that training changes: the adapter if there is one, else all."""
        return self.adapter or self.tree

    def init(self, key: jax.Array) -> Params:
        """Random parameters, the adapter's left out."""
        return initial(self.build, key)

    def init_adapter(self, key: jax.Array) -> Params:
        """The adapter before the first step: with it the model computes what it computes without. To be jitted."""
        assert self.build_adapted is not None
        return adapter_of(initial(self.build_adapted, key))

    def held_dtypes(self) -> Params:
        """Dtype of each frozen parameter: that in which it is used."""
        return jax.tree.map(lambda _: self.dtype, self.shapes)

    def apply(
        self,
        params: Params,
        noisy: jax.Array,
        time_B: jax.Array,
        condition: Condition | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Prediction from noisy images [B, H, W, C] or clips [B, F, H, W, C], in their shape and the compute dtype.

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
        """The prediction with the channels of a learned variance behind the others."""
        chex.assert_rank(noisy, {4, 5})
        chex.assert_axis_dimension(noisy, -1, self.spec.channels)
        chex.assert_shape(time_B, noisy.shape[:1])
        if (condition is None) != (not self.spec.classes and not self.spec.text_width):
            raise ValueError(f"the network is conditioned on {_told(self.spec)}, and gets {_given(condition)}")
        graphdef = self.adapted if adapter_of(params) else self.graphdef
        assert graphdef is not None
        module = nnx.merge(graphdef, params)
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
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
    kernel: Kernel = "xla",
    lora: Lora | None = None,
    attach: Attach | None = None,
) -> Diffuser:
    """Describe a diffusion transformer without allocating anything; with `lora`, `attach` gives it the adapter."""

    def plain(rngs: nnx.Rngs) -> nnx.Module:
        return DiffusionTransformer(spec, rngs, dtype=dtype, remat=remat, kernel=kernel)

    network = Diffuser(spec, jnp.dtype(dtype), plain, *describe(plain))
    if lora is None:
        return network
    if attach is None:
        raise ValueError("an adapter takes a function that attaches it, such as models.lora.attach")

    def with_adapter(rngs: nnx.Rngs) -> nnx.Module:
        return attach(plain(rngs), rngs, lora)

    adapted, whole = describe(with_adapter)
    adapter = Tree(*map(adapter_of, whole))
    return dataclasses.replace(network, lora=lora, build_adapted=with_adapter, adapted=adapted, adapter=adapter)
