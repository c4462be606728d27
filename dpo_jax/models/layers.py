"""The layers of a decoder. Every tensor is declared once, stacked over layers: shape, logical axes and initial value.

Dimension key: L layers, R rows, T tokens, S cached tokens, D width, H query heads, G key/value heads, K head size,
F MLP width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dpo_jax.mesh import axis_splits, constrain
from dpo_jax.models.attention import attend


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far, [L, R, S, G, K]; token s of a row stands at position s."""

    key: jax.Array
    value: jax.Array


class View(NamedTuple):
    """What a block needs to know of the rows: rotary angles, the attention mask, where to write the cache."""

    sine_RTK: jax.Array  # K here is half the head size
    cosine_RTK: jax.Array
    mask_RTS: jax.Array
    positions_RT: jax.Array


def matrix(rngs: nnx.Rngs, shape: tuple[int, ...], axes: str) -> nnx.Param:
    """A float32 weight, normal with standard deviation 0.02; `axes` names each dimension."""
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32), axes=tuple(axes.split()))


class Norm(nnx.Module):
    """RMSNorm of [R, T, D], computed in float32."""

    def __init__(self, shape: tuple[int, ...], axes: str, *, epsilon: float):
        self.scale = nnx.Param(jnp.ones(shape, jnp.float32), axes=tuple(axes.split()))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        return (wide * self.scale[None, None]).astype(x.dtype)


def rotary_angles(positions_RT: jax.Array, *, head_size: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of the rotary angles, float32 [R, T, K / 2]."""
    frequency_K = base ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)
    angle_RTK = positions_RT[..., None].astype(jnp.float32) * frequency_K[None, None]
    return jnp.sin(angle_RTK), jnp.cos(angle_RTK)


def rotate(x_RTHK: jax.Array, view: View) -> jax.Array:
    """Rotary position embedding on (first half, second half) pairs, in float32."""
    first, second = jnp.split(x_RTHK.astype(jnp.float32), 2, axis=-1)
    sine, cosine = view.sine_RTK[:, :, None], view.cosine_RTK[:, :, None]
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x_RTHK.dtype)


def project(x_RTD: jax.Array, weight_DF: jax.Array) -> jax.Array:
    """x times weight, [R, T, F]."""
    weight_DF = weight_DF.astype(x_RTD.dtype)
    if axis_splits("length") > 1:
        return jnp.einsum("rtd,df->rtf", x_RTD, weight_DF)
    # Rows and tokens as one axis: the backward pass of XLA's CPU backend takes 0.6 of the time.
    return (x_RTD.reshape(-1, x_RTD.shape[2]) @ weight_DF).reshape(*x_RTD.shape[:2], -1)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, rngs: nnx.Rngs, *, layers: int, width: int, heads: int, kv_heads: int, head_size: int):
        kv_shape = (layers, width, kv_heads, head_size)
        self.query = matrix(rngs, (layers, width, heads, head_size), "layers embed heads head_size")
        self.key = matrix(rngs, kv_shape, "layers embed heads head_size")
        self.value = matrix(rngs, kv_shape, "layers embed heads head_size")
        self.output = matrix(rngs, (layers, heads, head_size, width), "layers heads head_size embed")

    def __call__(self, x_RTD: jax.Array, view: View, cache: Cache | None, layer: jax.Array) -> tuple:
        dtype = x_RTD.dtype
        query = rotate(jnp.einsum("rtd,dhk->rthk", x_RTD, self.query[...].astype(dtype)), view)
        key = rotate(jnp.einsum("rtd,dgk->rtgk", x_RTD, self.key[...].astype(dtype)), view)
        value = jnp.einsum("rtd,dgk->rtgk", x_RTD, self.value[...].astype(dtype))
        if cache is not None:
            at = (layer, jnp.arange(x_RTD.shape[0])[:, None], view.positions_RT)
            cache = Cache(cache.key.at[at].set(key), cache.value.at[at].set(value))
            key, value = cache.key[layer], cache.value[layer]
        query = constrain(query, "rows", "length", "heads", None)
        mixed = attend(query, key, value, view.mask_RTS)
        return jnp.einsum("rthk,hkd->rtd", mixed, self.output[...].astype(dtype)), cache


class MLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, rngs: nnx.Rngs, *, layers: int, width: int, mlp_width: int):
        self.gate = matrix(rngs, (layers, width, mlp_width), "layers embed mlp")
        self.up = matrix(rngs, (layers, width, mlp_width), "layers embed mlp")
        self.down = matrix(rngs, (layers, mlp_width, width), "layers mlp embed")

    def __call__(self, x_RTD: jax.Array) -> jax.Array:
        gate, up = project(x_RTD, self.gate[...]), project(x_RTD, self.up[...])
        hidden_RTF = constrain(jax.nn.silu(gate) * up, "rows", "length", "mlp")
        return project(hidden_RTF, self.down[...])


class Block(nnx.Module):
    """Pre-norm attention and MLP with residual sums."""

    def __init__(self, rngs: nnx.Rngs, spec):
        shape, axes = (spec.layers, spec.width), "layers embed"
        self.attention_norm = Norm(shape, axes, epsilon=spec.norm_epsilon)
        self.attention = Attention(
            rngs,
            layers=spec.layers,
            width=spec.width,
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            head_size=spec.head_size,
        )
        self.mlp_norm = Norm(shape, axes, epsilon=spec.norm_epsilon)
        self.mlp = MLP(rngs, layers=spec.layers, width=spec.width, mlp_width=spec.mlp_width)

    def __call__(self, x_RTD: jax.Array, view: View, cache: Cache | None, layer: jax.Array) -> tuple:
        mixed, cache = self.attention(self.attention_norm(x_RTD), view, cache, layer)
        x_RTD = x_RTD + mixed
        x_RTD = x_RTD + self.mlp(self.mlp_norm(x_RTD))
        return constrain(x_RTD, "rows", "length", None), cache
