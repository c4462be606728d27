"""Language models of every kind as pure functions: hidden states and their unembedding, with a cache or without.

Dimension key: R rows, T tokens, S cached tokens, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dpo_jax.errors import UserError
from dpo_jax.models.attention import AttentionMask, Cache
from dpo_jax.models.attention.unpack import unpacking_of
from dpo_jax.models.decoder import Decoder
from dpo_jax.models.gpt2 import Gpt2
from dpo_jax.models.spec import DecoderSpec, Gpt2Spec, Spec
from dpo_jax.networks import Network, describe
from dpo_jax.types import Lora, Params, Unembedding

MODULES: dict[type[Spec], Callable[..., nnx.Module]] = {DecoderSpec: Decoder, Gpt2Spec: Gpt2}
"""Spec -> the module that computes it. They are made and called alike, and offer `unembed`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Network):
    """A language model as pure functions of its parameters, a plain nested dict with an adapter or without."""

    spec: Spec
    attention: str = "blocks"  # a name of `attention.BACKENDS`

    def apply(
        self,
        params: Params,
        tokens_RT: jax.Array,
        positions_RT: jax.Array,
        segments_RT: jax.Array,
        key: jax.Array | None = None,
        *,
        sequences: Sequence[jax.Array] | None = None,
    ) -> tuple[jax.Array, Unembedding]:
        """Hidden states [R, T, D] of whole rows, and the unembedding. `key` draws dropout; None drops nothing.

        `sequences` are those of the batch, which some forms of attention need.
        """
        chex.assert_equal_shape([tokens_RT, positions_RT, segments_RT])
        module = self.module(params)
        rows, length = tokens_RT.shape
        unpacking = None if sequences is None else unpacking_of(sequences, rows=rows, length=length)
        mask = self._mask(positions_RT, segments_RT)._replace(unpacking=unpacking)
        hidden_RTD, _ = module(tokens_RT, mask, key=key)
        return hidden_RTD, module.unembed()

    def extend(
        self, params: Params, tokens_RT: jax.Array, positions_RT: jax.Array, cache: Cache
    ) -> tuple[jax.Array, Unembedding, Cache]:
        """Hidden states of the next tokens of rows whose past is in the cache; each sees positions up to its own."""
        module = self.module(params)
        hidden_RTD, extended = module(tokens_RT, self._mask(positions_RT, None), cache)
        assert extended is not None
        return hidden_RTD, module.unembed(), extended

    def _mask(self, positions_RT: jax.Array, segments_RT: jax.Array | None) -> AttentionMask:
        return AttentionMask(positions_RT, segments_RT, self.attention, self.spec.windows)

    def empty_cache(self, rows: int, length: int) -> Cache:
        """A cache for `rows` rows of at most `length` tokens.

        Raises:
            UserError: the model has no positions for so many.
        """
        spec = self.spec
        if spec.max_positions is not None and length > spec.max_positions:
            raise UserError(
                f"prompt and response may have {length} tokens together, but the model has learned only "
                f"{spec.max_positions} positions. Ask for fewer new tokens, or cut the prompts."
            )
        zeros = jnp.zeros((spec.layers, rows, length, spec.kv_heads, spec.head_size), self.dtype)
        return Cache(zeros, zeros)


def make_model(
    spec: Spec,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: str = "none",
    attention: str = "blocks",
    lora: Lora | None = None,
) -> Model:
    """Describe a model without allocating anything."""

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return MODULES[type(spec)](spec, rngs, dtype=dtype, remat=remat)

    return Model(spec=spec, dtype=jnp.dtype(dtype), attention=attention, **describe(build, lora))
