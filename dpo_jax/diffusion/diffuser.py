"""A diffusion transformer as pure functions of its parameters, for training, sampling and files.

Dimension key: B samples, F frames, H height, W width, C channels.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dpo_jax.diffusion.embeddings import Condition, TransformerSpec
from dpo_jax.diffusion.transformer import DiffusionTransformer, Kernel
from dpo_jax.networks import Network, describe
from dpo_jax.types import Lora, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffuser(Network):
    """A diffusion transformer as pure functions of its parameters, a plain nested dict with an adapter or without."""

    spec: TransformerSpec

    def apply(
        self,
        params: Params,
        noisy: jax.Array,
        time_B: jax.Array,
        condition: Condition | None = None,
        key: jax.Array | None = None,
        *,
        variance: bool = False,
    ) -> jax.Array:
        """Prediction from noisy images [B, H, W, C] or clips [B, F, H, W, C], in their shape and the compute dtype.

        Time is in [0, 1]. `key` draws the dropout of an adapter; None drops nothing. With `variance`, the channels of
        a learned one stand behind the others.
        """
        chex.assert_rank(noisy, {4, 5})
        chex.assert_axis_dimension(noisy, -1, self.spec.channels)
        chex.assert_shape(time_B, noisy.shape[:1])
        if (condition is None) != (not self.spec.classes and not self.spec.text_width):
            raise ValueError(f"the network is conditioned on {_told(self.spec)}, and gets {_given(condition)}")
        module = self.module(params)
        if noisy.ndim == 4:  # a clip of one frame
            outputs = module(noisy[:, None], time_B, condition, key)[:, 0]
        else:
            outputs = module(noisy, time_B, condition, key)
        return outputs if variance else outputs[..., : self.spec.channels]


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
) -> Diffuser:
    """Describe a diffusion transformer without allocating anything."""

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return DiffusionTransformer(spec, rngs, dtype=dtype, remat=remat, kernel=kernel)

    return Diffuser(spec=spec, dtype=jnp.dtype(dtype), **describe(build, lora))
