"""The log-probability of each scored token.

Dimension key: R rows, N scored tokens, V vocabulary, S vocabulary shards, D width; in a tile n scored tokens and v
columns of the vocabulary.
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp

from dpo_jax.logprobs.tiling import (
    TILE_TOKENS,
    TILE_VOCABULARY,
    Bend,
    RunningLse,
    Side,
    Tiling,
    cut_tokens,
    cut_vocabulary,
    fold,
    join_tokens,
    pull_back,
    wide,
)
from dpo_jax.types import Unembedding


def token_logps(
    hidden_RND: jax.Array,
    target_RN: jax.Array,
    unembedding: Unembedding,
    *,
    tile_tokens: int = TILE_TOKENS,
    tile_vocabulary: int = TILE_VOCABULARY,
) -> jax.Array:
    """Log-probability of each target under its hidden state, nats, at least float32, [R, N].

    Args:
        hidden_RND: the hidden states that predict the targets.
        target_RN: token ids.
        unembedding: see `Unembedding`; its soft cap is differentiated.
        tile_tokens: tokens (over all rows of a device) whose logits exist at one time.
        tile_vocabulary: columns of the vocabulary that exist at one time.
    """
    chex.assert_equal_shape_prefix([hidden_RND, target_RN], 2)
    chex.assert_equal(unembedding.weight_VD.shape[1], hidden_RND.shape[2])
    tiling, bend, weight_SVD = cut_vocabulary(unembedding, tile_vocabulary)
    hidden, target = cut_tokens(hidden_RND, tile_tokens), cut_tokens(target_RN, tile_tokens)
    logps: jax.Array = _tiled_logps(tiling, bend, hidden, target, weight_SVD)
    return join_tokens(logps, *target_RN.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tiled_logps(tiling: Tiling, bend: Bend, hidden: jax.Array, target: jax.Array, weight_SVD: jax.Array) -> jax.Array:
    """`token_logps` on tiles of tokens: hidden [tiles, n, D], target [tiles, n] -> [tiles, n]."""
    return _forward(tiling, bend, hidden, target, weight_SVD)[0]


def _forward(tiling: Tiling, bend: Bend, hidden: jax.Array, target: jax.Array, weight_SVD: jax.Array) -> tuple:
    def update(carry: tuple, target_n: jax.Array, token_v: jax.Array, logits_nv: jax.Array) -> tuple:
        running, hit = carry
        is_target = token_v[None] == target_n[:, None]
        return running.add(logits_nv)[0], hit + jnp.where(is_target, logits_nv, 0.0).sum(axis=-1)

    side = Side(bend, hidden, weight_SVD)
    zeros = jnp.zeros(target.shape, wide(side))
    running, hit = fold(tiling, update, (RunningLse.start(zeros), zeros), target, side)
    lse = running.value()
    return hit - lse, (hidden, target, weight_SVD, lse)


def _backward(tiling: Tiling, bend: Bend, saved: tuple, gradient: jax.Array) -> tuple:
    hidden, target, weight_SVD, lse = saved

    def d_logits(tokens: tuple, token_v: jax.Array, logits_nv: jax.Array) -> jax.Array:
        target_n, lse_n, gradient_n = tokens
        hit = (token_v[None] == target_n[:, None]).astype(logits_nv.dtype)
        return (hit - jnp.exp(logits_nv - lse_n[:, None])) * gradient_n[:, None]

    side = Side(bend, hidden, weight_SVD)
    d_hidden, d_weight_SVD = pull_back(tiling, d_logits, (target, lse, gradient), side)
    return d_hidden, None, d_weight_SVD


_tiled_logps.defvjp(_forward, _backward)
