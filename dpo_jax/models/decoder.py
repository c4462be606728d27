"""A decoder of the Llama kind, tokens to hidden states, its layers stacked.

Dimension key: L layers, R rows, T tokens, S cached tokens, V vocabulary, D width, H query heads, G key/value heads,
K head size, F MLP width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from dpo_jax.mesh import constrain
from dpo_jax.models.attention import AttentionMask, Cache, attend
from dpo_jax.models.spec import DecoderSpec
from dpo_jax.networks import Here, Linear, Sizes, matrix, scan_layers
from dpo_jax.types import Unembedding


class View(NamedTuple):
    """Description of the rows for a block: rotary angles, and the mask of attention.

    Where layers are of several kinds, angles have a leading axis of kinds; `of_kind` takes one.
    """

    sine_RTK: jax.Array  # K here is half of what is turned of a head
    cosine_RTK: jax.Array
    mask: AttentionMask

    def of_kind(self, kind: jax.Array) -> View:
        """The view of a layer of this kind."""
        return View(self.sine_RTK[kind], self.cosine_RTK[kind], self.mask._replace(kind=kind))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class Norm(nnx.Module):
    """RMSNorm over the last axis, computed in float32; the scale is the parameter plus `offset` (Gemma's 1)."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[str, ...], *, epsilon: float, offset: float = 0.0):
        self.scale = nnx.Param(jnp.full(shape, 1.0 - offset, jnp.float32), axes=axes)
        self.epsilon, self.offset = epsilon, offset

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        scale = self.scale[...] + self.offset
        return (wide * scale.reshape((1,) * (x.ndim - 1) + scale.shape)).astype(x.dtype)


def rotary_angles(positions_RT: jax.Array, frequency_K: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Sine and cosine of the rotary angles, float32 [R, T, K]."""
    angle_RTK = positions_RT[..., None].astype(jnp.float32) * jnp.asarray(frequency_K)[None, None]
    return jnp.sin(angle_RTK), jnp.cos(angle_RTK)


def rotate(x_RTHK: jax.Array, view: View) -> jax.Array:
    """Rotary position embedding on (first half, second half) pairs, in float32; what is behind them stays as it is."""
    half = view.sine_RTK.shape[-1]
    first, second, rest = jnp.split(x_RTHK.astype(jnp.float32), (half, 2 * half), axis=-1)
    sine, cosine = view.sine_RTK[:, :, None], view.cosine_RTK[:, :, None]
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine, rest], axis=-1)
    return turned.astype(x_RTHK.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, rngs: nnx.Rngs, spec: DecoderSpec):
        self.spec = spec
        embed: Sizes = {"embed": spec.width}
        heads: Sizes = {"heads": spec.heads, "head_size": spec.head_size}
        kv_heads: Sizes = {"heads": spec.kv_heads, "head_size": spec.head_size}
        linear = functools.partial(Linear, rngs, layers=spec.layers)
        self.query = linear(embed, heads, with_bias=spec.qkv_bias)
        self.key = linear(embed, kv_heads, with_bias=spec.qkv_bias)
        self.value = linear(embed, kv_heads, with_bias=spec.qkv_bias)
        self.output = linear(heads, embed, with_bias=False)
        if spec.qk_norm:
            shape, norm = (spec.layers, spec.head_size), {"epsilon": spec.norm_epsilon, "offset": spec.norm_offset}
            self.query_norm = Norm(shape, ("layers", "head_size"), **norm)
            self.key_norm = Norm(shape, ("layers", "head_size"), **norm)

    @jax.named_scope("attention")
    def __call__(self, x_RTD: jax.Array, view: View, cache: Cache | None, here: Here) -> tuple:
        query, key, value = self.query(x_RTD, here), self.key(x_RTD, here), self.value(x_RTD, here)
        if self.spec.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotate(query, view), rotate(key, view)
        if cache is not None:
            cache = cache.write(here.layer, view.mask.positions_RT, key, value)
            key, value = cache.key[here.layer], cache.value[here.layer]
        query = constrain(query, "rows", "length", "heads", None)
        scale, soft_cap = self.spec.query_scale, self.spec.attention_soft_cap
        mixed = attend(query, key, value, view.mask, scale=scale, soft_cap=soft_cap)
        return self.output(mixed, here), cache


class MLP(nnx.Module):
    """A gated MLP: SwiGLU, or with another activation."""

    def __init__(self, rngs: nnx.Rngs, spec: DecoderSpec):
        linear = functools.partial(Linear, rngs, layers=spec.layers, with_bias=False)
        self.gate, self.up = (linear({"embed": spec.width}, {"mlp": spec.mlp_width}) for _ in range(2))
        self.down = linear({"mlp": spec.mlp_width}, {"embed": spec.width})
        self.activation = ACTIVATIONS[spec.activation]

    @jax.named_scope("mlp")
    def __call__(self, x_RTD: jax.Array, here: Here) -> jax.Array:
        gated_RTF = self.activation(self.gate(x_RTD, here)) * self.up(x_RTD, here)
        return self.down(constrain(gated_RTF, "rows", "length", "mlp"), here)


class Block(nnx.Module):
    """Pre-norm attention and MLP with residual sums; with `sandwich_norms` what they give is normed as well."""

    def __init__(self, rngs: nnx.Rngs, spec: DecoderSpec):
        def norm() -> Norm:
            shape = (spec.layers, spec.width)
            return Norm(shape, ("layers", "embed"), epsilon=spec.norm_epsilon, offset=spec.norm_offset)

        self.attention_norm, self.attention = norm(), Attention(rngs, spec)
        self.mlp_norm, self.mlp = norm(), MLP(rngs, spec)
        self.sandwich = spec.sandwich_norms
        if self.sandwich:
            self.attention_out_norm, self.mlp_out_norm = norm(), norm()

    def __call__(self, x_RTD: jax.Array, view: View, cache: Cache | None, here: Here) -> tuple:
        mixed, cache = self.attention(self.attention_norm(x_RTD), view, cache, here)
        x_RTD = x_RTD + (self.attention_out_norm(mixed) if self.sandwich else mixed)
        bent = self.mlp(self.mlp_norm(x_RTD), here)
        x_RTD = x_RTD + (self.mlp_out_norm(bent) if self.sandwich else bent)
        return constrain(x_RTD, "rows", "length", None), cache


class Decoder(nnx.Module):
    """A Llama-family decoder with float32 parameters, computing in `dtype`."""

    def __init__(self, spec: DecoderSpec, rngs: nnx.Rngs, *, dtype: DTypeLike = jnp.float32, remat: str = "none"):
        self.spec, self.dtype, self.remat = spec, dtype, remat
        self.embedding = matrix(rngs, (spec.vocabulary, spec.width), ("vocab", "embed"))
        self.layers = Block(rngs, spec)
        self.final_norm = Norm((spec.width,), ("embed",), epsilon=spec.norm_epsilon, offset=spec.norm_offset)
        if not spec.tied:
            self.unembedding = matrix(rngs, (spec.vocabulary, spec.width), ("vocab", "embed"))

    def __call__(
        self,
        tokens_RT: jax.Array,
        mask: AttentionMask,
        cache: Cache | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Hidden states [R, T, D] after the final norm, and the cache with these tokens written into it.

        `key` draws dropout.
        """
        spec = self.spec
        # The table is gathered over fsdp once; looking tokens up in a split table makes XLA recompute everything.
        with jax.named_scope("embed"):
            table_VD = constrain(self.embedding[...].astype(self.dtype), "vocab", None)
            hidden_RTD = constrain(jnp.take(table_VD, tokens_RT, axis=0), "rows", "length", None)
        if spec.embedding_scale != 1.0:
            hidden_RTD *= jnp.asarray(
                spec.embedding_scale, self.dtype
            )  # rounded to the dtype, as Gemma's own code does
        angles = [rotary_angles(mask.positions_RT, kind.frequencies(spec.head_size)) for kind in spec.kinds]
        several = len(spec.kinds) > 1
        sine, cosine = (jnp.stack(of_kinds) if several else of_kinds[0] for of_kinds in zip(*angles, strict=True))
        view = View(sine, cosine, mask)
        kind_of_layer = jnp.asarray(spec.kind_of_layer or (0,) * spec.layers)

        def step(block: Block, carry: tuple[jax.Array, Cache | None], layer: jax.Array) -> tuple:
            hidden_RTD, cache = carry
            own = view.of_kind(kind_of_layer[layer]) if several else view
            return block(hidden_RTD, own, cache, Here(layer, key))

        carry = (hidden_RTD, cache)
        hidden_RTD, cache = scan_layers(self.layers, step, carry, layers=spec.layers, remat=self.remat)
        return self.final_norm(hidden_RTD), cache

    def unembed(self) -> Unembedding:
        """The matrix that turns hidden states into logits, in the compute dtype."""
        weight = self.embedding if self.spec.tied else self.unembedding
        return Unembedding(weight[...].astype(self.dtype), self.spec.vocabulary, soft_cap=self.spec.logit_soft_cap)
