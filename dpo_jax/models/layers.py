"""The layers of a decoder. Every tensor is declared once, stacked over layers: shape, logical axes and initial value.

Dimension key: L layers, R rows, T tokens, S cached tokens, D width, H query heads, G key/value heads, K head size,
F MLP width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dpo_jax.mesh import axis_splits, constrain
from dpo_jax.models.attention import attend
from dpo_jax.models.spec import DecoderSpec


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far, [L, R, S, G, K]; token s of a row stands at position s."""

    key: jax.Array
    value: jax.Array

    def write(self, layer: jax.Array, positions_RT: jax.Array, key_RTGK: jax.Array, value_RTGK: jax.Array) -> Cache:
        """The cache with these tokens of one layer in it."""
        at = (layer, jnp.arange(positions_RT.shape[0])[:, None], positions_RT)
        return Cache(self.key.at[at].set(key_RTGK), self.value.at[at].set(value_RTGK))


class View(NamedTuple):
    """What a block needs to know of the rows: rotary angles, the attention mask, where to write the cache.

    Where layers are of several kinds, angles and mask have a leading axis of kinds; `of_kind` takes one.
    """

    sine_RTK: jax.Array  # K here is half the head size
    cosine_RTK: jax.Array
    mask_RTS: jax.Array
    positions_RT: jax.Array

    def of_kind(self, kind: jax.Array) -> View:
        """The view of a layer of this kind."""
        return self._replace(**{name: getattr(self, name)[kind] for name in ("sine_RTK", "cosine_RTK", "mask_RTS")})


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


def bias(shape: tuple[int, ...], axes: str) -> nnx.Param:
    """A float32 vector of zeros; `axes` names each dimension."""
    return nnx.Param(jnp.zeros(shape, jnp.float32), axes=tuple(axes.split()))


def matrix(rngs: nnx.Rngs, shape: tuple[int, ...], axes: str) -> nnx.Param:
    """A float32 weight, normal with standard deviation 0.02; `axes` names each dimension."""
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32), axes=tuple(axes.split()))


class Norm(nnx.Module):
    """RMSNorm over the last axis, computed in float32; the scale is the parameter plus `offset` (Gemma's 1)."""

    def __init__(self, shape: tuple[int, ...], axes: str, *, epsilon: float, offset: float = 0.0):
        self.scale = nnx.Param(jnp.full(shape, 1.0 - offset, jnp.float32), axes=tuple(axes.split()))
        self.epsilon, self.offset = epsilon, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        scale = self.scale[...] + self.offset
        return (wide * scale.reshape((1,) * (x.ndim - 1) + scale.shape)).astype(x.dtype)


def rotary_angles(positions_RT: jax.Array, frequency_K: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of the rotary angles, float32 [R, T, K / 2]."""
    angle_RTK = positions_RT[..., None].astype(jnp.float32) * jnp.asarray(frequency_K)[None, None]
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

    def __init__(self, rngs: nnx.Rngs, spec: DecoderSpec):
        layers, width, heads, kv_heads, head_size = spec.layers, spec.width, spec.heads, spec.kv_heads, spec.head_size
        self.spec = spec
        self.query = matrix(rngs, (layers, width, heads, head_size), "layers embed heads head_size")
        self.key = matrix(rngs, (layers, width, kv_heads, head_size), "layers embed heads head_size")
        self.value = matrix(rngs, (layers, width, kv_heads, head_size), "layers embed heads head_size")
        self.output = matrix(rngs, (layers, heads, head_size, width), "layers heads head_size embed")
        if spec.qkv_bias:
            self.query_bias = bias((layers, heads, head_size), "layers heads head_size")
            self.key_bias = bias((layers, kv_heads, head_size), "layers heads head_size")
            self.value_bias = bias((layers, kv_heads, head_size), "layers heads head_size")
        if spec.qk_norm:
            norm = {"epsilon": spec.norm_epsilon, "offset": spec.norm_offset}
            self.query_norm = Norm((layers, head_size), "layers head_size", **norm)
            self.key_norm = Norm((layers, head_size), "layers head_size", **norm)

    def __call__(self, x_RTD: jax.Array, view: View, cache: Cache | None, layer: jax.Array) -> tuple:
        dtype = x_RTD.dtype
        query = jnp.einsum("rtd,dhk->rthk", x_RTD, self.query[...].astype(dtype))
        key = jnp.einsum("rtd,dgk->rtgk", x_RTD, self.key[...].astype(dtype))
        value = jnp.einsum("rtd,dgk->rtgk", x_RTD, self.value[...].astype(dtype))
        if self.spec.qkv_bias:
            query += self.query_bias[...].astype(dtype)[None, None]
            key += self.key_bias[...].astype(dtype)[None, None]
            value += self.value_bias[...].astype(dtype)[None, None]
        if self.spec.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotate(query, view), rotate(key, view)
        if cache is not None:
            cache = cache.write(layer, view.positions_RT, key, value)
            key, value = cache.key[layer], cache.value[layer]
        query = constrain(query, "rows", "length", "heads", None)
        scale, soft_cap = self.spec.query_scale, self.spec.attention_soft_cap
        mixed = attend(query, key, value, view.mask_RTS, scale=scale, soft_cap=soft_cap)
        return jnp.einsum("rthk,hkd->rtd", mixed, self.output[...].astype(dtype)), cache


class MLP(nnx.Module):
    """A gated MLP: SwiGLU, or with another activation."""

    def __init__(self, rngs: nnx.Rngs, spec: DecoderSpec):
        layers, width, mlp_width = spec.layers, spec.width, spec.mlp_width
        self.gate = matrix(rngs, (layers, width, mlp_width), "layers embed mlp")
        self.up = matrix(rngs, (layers, width, mlp_width), "layers embed mlp")
        self.down = matrix(rngs, (layers, mlp_width, width), "layers mlp embed")
        self.activation = ACTIVATIONS[spec.activation]

    def __call__(self, x_RTD: jax.Array) -> jax.Array:
        gate, up = project(x_RTD, self.gate[...]), project(x_RTD, self.up[...])
        hidden_RTF = constrain(self.activation(gate) * up, "rows", "length", "mlp")
        return project(hidden_RTF, self.down[...])


class Block(nnx.Module):
    """Pre-norm attention and MLP with residual sums; with `sandwich_norms` what they give is normed as well."""

    def __init__(self, rngs: nnx.Rngs, spec: DecoderSpec):
        def norm() -> Norm:
            shape = (spec.layers, spec.width)
            return Norm(shape, "layers embed", epsilon=spec.norm_epsilon, offset=spec.norm_offset)

        self.attention_norm, self.attention = norm(), Attention(rngs, spec)
        self.mlp_norm, self.mlp = norm(), MLP(rngs, spec)
        self.sandwich = spec.sandwich_norms
        if self.sandwich:
            self.attention_out_norm, self.mlp_out_norm = norm(), norm()

    def __call__(self, x_RTD: jax.Array, view: View, cache: Cache | None, layer: jax.Array) -> tuple:
        mixed, cache = self.attention(self.attention_norm(x_RTD), view, cache, layer)
        x_RTD = x_RTD + (self.attention_out_norm(mixed) if self.sandwich else mixed)
        bent = self.mlp(self.mlp_norm(x_RTD))
        x_RTD = x_RTD + (self.mlp_out_norm(bent) if self.sandwich else bent)
        return constrain(x_RTD, "rows", "length", None), cache
