"""GPT-2: learned positions, LayerNorm, biases everywhere, and an MLP without a gate.

Dimension key: L layers, R rows, T tokens, S cached tokens, V vocabulary, D width, H heads, K head size, F MLP width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dpo_jax.mesh import constrain
from dpo_jax.models.attention import AttentionMask, Cache, attend
from dpo_jax.models.spec import Gpt2Spec
from dpo_jax.networks import MLP, Here, Linear, Sizes, matrix, normed, scan_layers, zeros
from dpo_jax.types import Unembedding


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis, computed in float32."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[str, ...], *, epsilon: float):
        self.scale = nnx.Param(jnp.ones(shape, jnp.float32), axes=axes)
        self.bias = zeros(shape, axes)
        self.epsilon = epsilon

    def __call__(self, x_RTD: jax.Array) -> jax.Array:
        wide = normed(x_RTD, epsilon=self.epsilon)
        return (wide * self.scale[...][None, None] + self.bias[...][None, None]).astype(x_RTD.dtype)


class Attention(nnx.Module):
    """Attention whose query, key and value are one parameter."""

    def __init__(self, rngs: nnx.Rngs, spec: Gpt2Spec):
        embed: Sizes = {"embed": spec.width}
        heads: Sizes = {"heads": spec.heads, "head_size": spec.head_size}
        self.qkv = Linear(rngs, embed, {"qkv": 3, **heads}, layers=spec.layers)
        self.output = Linear(rngs, heads, embed, layers=spec.layers)

    @jax.named_scope("attention")
    def __call__(self, x_RTD: jax.Array, mask: AttentionMask, cache: Cache | None, here: Here) -> tuple:
        query, key, value = jnp.moveaxis(self.qkv(x_RTD, here), 2, 0)
        if cache is not None:
            cache = cache.write(here.layer, mask.positions_RT, key, value)
            key, value = cache.key[here.layer], cache.value[here.layer]
        query = constrain(query, "rows", "length", "heads", None)
        return self.output(attend(query, key, value, mask), here), cache


class Block(nnx.Module):
    """Pre-norm attention and MLP with residual sums."""

    def __init__(self, rngs: nnx.Rngs, spec: Gpt2Spec):
        shape = (spec.layers, spec.width)
        self.attention_norm = LayerNorm(shape, ("layers", "embed"), epsilon=spec.norm_epsilon)
        self.attention = Attention(rngs, spec)
        self.mlp_norm = LayerNorm(shape, ("layers", "embed"), epsilon=spec.norm_epsilon)
        self.mlp = MLP(rngs, spec.width, spec.mlp_width, layers=spec.layers)

    def __call__(self, x_RTD: jax.Array, mask: AttentionMask, cache: Cache | None, here: Here) -> tuple:
        mixed, cache = self.attention(self.attention_norm(x_RTD), mask, cache, here)
        x_RTD = x_RTD + mixed
        x_RTD = x_RTD + self.mlp(self.mlp_norm(x_RTD), here)
        return constrain(x_RTD, "rows", "length", None), cache


class Gpt2(nnx.Module):
    """A GPT-2 with float32 parameters, computing in `dtype`."""

    def __init__(self, spec: Gpt2Spec, rngs: nnx.Rngs, *, dtype: DTypeLike = jnp.float32, remat: str = "none"):
        self.spec, self.dtype, self.remat = spec, dtype, remat
        self.embedding = matrix(rngs, (spec.vocabulary, spec.width), ("vocab", "embed"))
        self.positions = matrix(rngs, (spec.positions, spec.width), ("positions", "embed"))
        self.layers = Block(rngs, spec)
        self.final_norm = LayerNorm((spec.width,), ("embed",), epsilon=spec.norm_epsilon)
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

        `key` draws dropout. A position beyond the table gives NaN, never the last row instead.
        """
        # The tables are gathered over fsdp once; looking up in a split table makes XLA recompute everything.
        with jax.named_scope("embed"):
            table_VD = constrain(self.embedding[...].astype(self.dtype), "vocab", None)
            places_SD = constrain(self.positions[...].astype(self.dtype), None, None)
            hidden_RTD = jnp.take(table_VD, tokens_RT, axis=0)
            hidden_RTD += jnp.take(places_SD, mask.positions_RT, axis=0, mode="fill")
            hidden_RTD = constrain(hidden_RTD, "rows", "length", None)

        def step(block: Block, carry: tuple[jax.Array, Cache | None], layer: jax.Array) -> tuple:
            hidden_RTD, cache = carry
            return block(hidden_RTD, mask, cache, Here(layer, key))

        carry = (hidden_RTD, cache)
        hidden_RTD, cache = scan_layers(self.layers, step, carry, layers=self.spec.layers, remat=self.remat)
        return self.final_norm(hidden_RTD), cache

    def unembed(self) -> Unembedding:
        """The matrix that turns hidden states into logits, in the compute dtype."""
        weight = self.embedding if self.spec.tied else self.unembedding
        return Unembedding(weight[...].astype(self.dtype), self.spec.vocabulary)
