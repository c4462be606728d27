"""A diffusion transformer (DiT): patches of images or clips, and norms that time and condition steer.

Classes, or one embedding of the text, are added to the embedding of time. Blocks begin as the identity (adaLN-zero).
All patches of a clip see each other, so attention grows with the square of frames x height x width.

Dimension key: B samples, F frames, H height (heads, behind N), W width, C channels, N patches, D width, K head size.

References:
    Peebles and Xie 2022, arXiv:2212.09748.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dpo_jax.diffusion.embeddings import (
    NORM_EPSILON,
    ClassEmbedding,
    Condition,
    TextEmbedding,
    TimeEmbedding,
    TransformerSpec,
    from_patches,
    grid_of,
    positions,
    to_patches,
)
from dpo_jax.mesh import constrain
from dpo_jax.networks import MLP, Here, Linear, Sizes, normed, scan_layers

Kernel = Literal["xla", "cudnn"]
"""What computes attention: XLA, anywhere, or cuDNN's kernel, on NVIDIA GPUs in half precision."""


def attend(query_BNHK: jax.Array, key_BNHK: jax.Array, value_BNHK: jax.Array, kernel: Kernel) -> jax.Array:
    """Softmax attention of all tokens to all, [B, N, H, K]."""
    if kernel == "cudnn":
        return jax.nn.dot_product_attention(query_BNHK, key_BNHK, value_BNHK, implementation="cudnn")
    wide = jnp.promote_types(query_BNHK.dtype, jnp.float32)
    scores = jnp.einsum("bnhk,bmhk->bhnm", query_BNHK, key_BNHK, preferred_element_type=wide)
    shares = jax.nn.softmax(scores / math.sqrt(query_BNHK.shape[-1]), axis=-1)
    return jnp.einsum("bhnm,bmhk->bnhk", shares.astype(query_BNHK.dtype), value_BNHK)


class Attention(nnx.Module):
    """Attention of all tokens of a sample to all of them."""

    def __init__(self, rngs: nnx.Rngs, spec: TransformerSpec, kernel: Kernel):
        self.kernel: Kernel = kernel
        embed: Sizes = {"embed": spec.width}
        heads: Sizes = {"heads": spec.heads, "head_size": spec.head_size}
        linear = functools.partial(Linear, rngs, layers=spec.layers, deviation=None)
        self.query, self.key, self.value = (linear(embed, heads) for _ in range(3))
        self.output = linear(heads, embed)

    @jax.named_scope("attention")
    def __call__(self, x_BND: jax.Array, here: Here) -> jax.Array:
        query = constrain(self.query(x_BND, here), "rows", "length", "heads", None)
        key, value = (constrain(of(x_BND, here), "rows", None, "heads", None) for of in (self.key, self.value))
        mixed_BNHK = attend(query, key, value, self.kernel)
        return self.output(mixed_BNHK, here)


class Block(nnx.Module):
    """Attention and MLP, each with shift and scale of its input and a gate on its output."""

    def __init__(self, rngs: nnx.Rngs, spec: TransformerSpec, kernel: Kernel):
        self.mlp_epsilon = spec.mlp_epsilon
        parts = {None: 6, "mlp": spec.width}
        self.modulation = Linear(rngs, {"embed": spec.width}, parts, layers=spec.layers, deviation=0.0)
        self.attention = Attention(rngs, spec, kernel)
        self.mlp = MLP(rngs, spec.width, spec.mlp_width, layers=spec.layers, deviation=None)

    def __call__(self, x_BND: jax.Array, steer_B1D: jax.Array, here: Here) -> jax.Array:
        parts = jnp.moveaxis(self.modulation(steer_B1D, here), 2, 0)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        mixed = self.attention(_steered(x_BND, shift, scale, epsilon=NORM_EPSILON), here)
        x_BND = x_BND + gate * mixed
        bent = self.mlp(_steered(x_BND, mlp_shift, mlp_scale, epsilon=self.mlp_epsilon), here)
        return constrain(x_BND + mlp_gate * bent, "rows", "length", None)


def _steered(x_BND: jax.Array, shift_B1D: jax.Array, scale_B1D: jax.Array, *, epsilon: float) -> jax.Array:
    """The norm of tokens, scaled and shifted, in their dtype."""
    return (normed(x_BND, epsilon=epsilon) * (1.0 + scale_B1D) + shift_B1D).astype(x_BND.dtype)


class DiffusionTransformer(nnx.Module):
    """A DiT with float32 parameters, computing in `dtype`."""

    def __init__(self, spec: TransformerSpec, rngs: nnx.Rngs, *, dtype: DTypeLike, remat: str, kernel: Kernel):
        self.spec, self.dtype, self.remat = spec, dtype, remat
        pixels = spec.frame_patch * spec.patch**2
        self.patches = Linear(rngs, {None: spec.channels * pixels}, {"embed": spec.width}, deviation=None)
        self.time = TimeEmbedding(rngs, spec)
        if spec.classes or spec.text_width:
            self.condition = (ClassEmbedding if spec.classes else TextEmbedding)(rngs, spec)
        self.layers = Block(rngs, spec, kernel)
        self.final_modulation = Linear(rngs, {"embed": spec.width}, {None: 2, "mlp": spec.width}, deviation=0.0)
        self.output = Linear(rngs, {"embed": spec.width}, {None: pixels * spec.outputs}, deviation=0.0)

    def __call__(
        self, noisy_BFHWC: jax.Array, time_B: jax.Array, condition: Condition | None, key: jax.Array | None
    ) -> jax.Array:
        spec = self.spec
        cut = {"patch": spec.patch, "frame_patch": spec.frame_patch}
        grid = grid_of(noisy_BFHWC.shape, **cut)
        places = jnp.asarray(positions(grid, width=spec.width, base=spec.base), self.dtype)
        x_BND = self.patches(to_patches(noisy_BFHWC.astype(self.dtype), grid)) + places[None]
        x_BND = constrain(x_BND, "rows", "length", None)
        steer_BD = self.time(time_B, self.dtype)
        if condition is not None:
            steer_BD += self.condition(condition, self.dtype)
        steer_B1D = jax.nn.silu(steer_BD)[:, None]

        def step(block: Block, x_BND: jax.Array, layer: jax.Array) -> jax.Array:
            return block(x_BND, steer_B1D, Here(layer, key))

        x_BND = scan_layers(self.layers, step, x_BND, layers=spec.layers, remat=self.remat)
        shift, scale = jnp.moveaxis(self.final_modulation(steer_B1D), 2, 0)
        return from_patches(self.output(_steered(x_BND, shift, scale, epsilon=NORM_EPSILON)), grid, **cut)
