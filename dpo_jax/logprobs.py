"""Hidden states and unembedding to token and response log-probabilities; no array of shape [.., T, V] ever exists.

The vocabulary is worked through in tiles, and the scored tokens in tiles inside each. The backward pass computes each
tile again from the saved log-sum-exp. All sums are float32, also those of the weight's gradient: a bfloat16 sum over
tiles biases training.

Dimension key: B pairs, P slot in the pair, R rows, T tokens, N scored tokens, V vocabulary, S vocabulary shards, D
width; in a tile n scored tokens (of all rows) and v columns of the vocabulary (of all shards).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from dpo_jax.mesh import axis_splits, constrain
from dpo_jax.types import PairBatch, Unembedding

TILE_TOKENS = 2048
TILE_VOCABULARY = 16384


class _Tiling(NamedTuple):
    """Everything about the unembedding and the tiles that is static, hashable for the custom backward."""

    vocabulary: int
    scale: float
    soft_cap: float | None
    shards: int
    width: int  # columns that each shard gives to a tile
    count: int  # vocabulary tiles


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
        tile_tokens: tokens (over all rows) whose logits exist at one time.
        tile_vocabulary: columns of the vocabulary that exist at one time.
    """
    chex.assert_equal_shape_prefix([hidden_RND, target_RN], 2)
    weight_VD = unembedding.weight_VD
    chex.assert_equal(weight_VD.shape[1], hidden_RND.shape[2])
    rows, scored, _ = hidden_RND.shape
    splits = axis_splits("vocab")
    shards = splits if weight_VD.shape[0] % splits == 0 else 1
    per_shard = weight_VD.shape[0] // shards
    count = -(-weight_VD.shape[0] // tile_vocabulary)
    tiling = _Tiling(
        unembedding.vocabulary, unembedding.scale, unembedding.soft_cap, shards, -(-per_shard // count), count
    )
    # Tiles cut the N axis and leave the rows whole, so that rows sharded over devices stay where they are.
    tile = max(1, min(scored, tile_tokens // max(1, rows)))
    tiles = -(-scored // tile)
    padding = tiles * tile - scored
    hidden_RND = jnp.pad(hidden_RND, ((0, 0), (0, padding), (0, 0)))
    target_RN = jnp.pad(target_RN, ((0, 0), (0, padding)))
    # Each shard of the vocabulary gives a part of every tile: the max and the sum cross shards, the weight never does.
    weight_SVD = constrain(weight_VD, "vocab", None).reshape(shards, per_shard, -1)
    logps: jax.Array = _tiled_logps(
        tiling,
        hidden_RND.reshape(rows, tiles, tile, -1).swapaxes(0, 1).reshape(tiles, rows * tile, -1),
        target_RN.reshape(rows, tiles, tile).swapaxes(0, 1).reshape(tiles, rows * tile),
        weight_SVD,
    )
    return logps.reshape(tiles, rows, tile).swapaxes(0, 1).reshape(rows, tiles * tile)[:, :scored]


def _columns(tiling: _Tiling, index: jax.Array, weight_SVD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One vocabulary tile: its weights [v, D], the token id of each column (-1: not to be counted), its start."""
    shards, per_shard, width = weight_SVD.shape
    wanted = index * tiling.width
    start = jnp.minimum(wanted, per_shard - tiling.width)  # the last tile overlaps the one before it
    weight_vD = jax.lax.dynamic_slice_in_dim(weight_SVD, start, tiling.width, axis=1).reshape(-1, width)
    within = start + jnp.arange(tiling.width)[None]
    tokens = jnp.arange(shards)[:, None] * per_shard + within
    counted = (within >= wanted) & (tokens < tiling.vocabulary)
    return weight_vD, jnp.where(counted, tokens, -1).ravel(), start


def _logits(tiling: _Tiling, hidden_nD: jax.Array, weight_vD: jax.Array, token_v: jax.Array) -> tuple[Any, Any]:
    """Logits of one tile [n, v], minus infinity where not counted, and their slope by the raw product."""
    wide = jnp.promote_types(hidden_nD.dtype, jnp.float32)
    raw = tiling.scale * jnp.einsum("nd,vd->nv", hidden_nD, weight_vD, preferred_element_type=wide)
    slope: Any = tiling.scale
    if tiling.soft_cap is not None:
        bent = jnp.tanh(raw / tiling.soft_cap)
        raw, slope = tiling.soft_cap * bent, tiling.scale * (1.0 - bent * bent)
    return jnp.where(token_v[None] >= 0, raw, -jnp.inf), slope


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled_logps(tiling: _Tiling, hidden: jax.Array, target: jax.Array, weight_SVD: jax.Array) -> jax.Array:
    """`token_logps` on tiles of tokens: hidden [tiles, n, D], target [tiles, n] -> [tiles, n]."""
    return _forward(tiling, hidden, target, weight_SVD)[0]


def _forward(tiling: _Tiling, hidden: jax.Array, target: jax.Array, weight_SVD: jax.Array) -> tuple[jax.Array, tuple]:
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    zeros = jnp.zeros(target.shape, wide)
    # `highest`, `total` and `hit`: the running maximum, the sum of exponentials below it, the target's logit.
    start = (jnp.full(target.shape, -jnp.inf, wide), zeros, zeros)

    def over_vocabulary(carry: tuple, index: jax.Array) -> tuple[tuple, None]:
        weight_vD, token_v, _ = _columns(tiling, index, weight_SVD)

        def over_tokens(tile: tuple) -> tuple:
            hidden_nD, target_n, highest, total, hit = tile
            logits, _ = _logits(tiling, hidden_nD, weight_vD, token_v)
            risen = jnp.maximum(highest, logits.max(axis=-1))
            safe = jnp.where(jnp.isfinite(risen), risen, 0.0)  # a tile of padding alone has no maximum
            total = total * jnp.exp(highest - safe) + jnp.exp(logits - safe[:, None]).sum(axis=-1)
            is_target = token_v[None] == target_n[:, None]
            return risen, total, hit + jnp.where(is_target, logits, 0.0).sum(axis=-1)

        return jax.lax.map(over_tokens, (hidden, target, *carry)), None

    (highest, total, hit), _ = jax.lax.scan(over_vocabulary, start, jnp.arange(tiling.count))
    lse = highest + jnp.log(total)
    return hit - lse, (hidden, target, weight_SVD, lse)


def _backward(tiling: _Tiling, saved: tuple, gradient: jax.Array) -> tuple:
    hidden, target, weight_SVD, lse = saved

    def over_vocabulary(carry: tuple, index: jax.Array) -> tuple[tuple, None]:
        d_hidden, d_weight_SVD = carry
        weight_vD, token_v, start = _columns(tiling, index, weight_SVD)

        def over_tokens(d_weight_vD: jax.Array, tile: tuple) -> tuple[jax.Array, jax.Array]:
            hidden_nD, target_n, lse_n, gradient_n, d_hidden_nD = tile
            logits, slope = _logits(tiling, hidden_nD, weight_vD, token_v)
            hit = (token_v[None] == target_n[:, None]).astype(lse.dtype)
            d_raw = ((hit - jnp.exp(logits - lse_n[:, None])) * gradient_n[:, None] * slope).astype(weight_vD.dtype)
            d_hidden_nD += jnp.einsum("nv,vd->nd", d_raw, weight_vD, preferred_element_type=lse.dtype)
            d_weight_vD += jnp.einsum("nv,nd->vd", d_raw, hidden_nD, preferred_element_type=lse.dtype)
            return d_weight_vD, d_hidden_nD

        # The tile's slice of the sum goes in and comes out whole: the last tile overlaps columns already summed.
        before = jax.lax.dynamic_slice_in_dim(d_weight_SVD, start, tiling.width, axis=1)
        tiles = (hidden, target, lse, gradient, d_hidden)
        after_vD, d_hidden = jax.lax.scan(over_tokens, before.reshape(weight_vD.shape), tiles)
        after = after_vD.reshape(before.shape)
        return (d_hidden, jax.lax.dynamic_update_slice_in_dim(d_weight_SVD, after, start, axis=1)), None

    zeros = (jnp.zeros(hidden.shape, lse.dtype), jnp.zeros(weight_SVD.shape, lse.dtype))
    (d_hidden, d_weight_SVD), _ = jax.lax.scan(over_vocabulary, zeros, jnp.arange(tiling.count))
    return d_hidden.astype(hidden.dtype), None, d_weight_SVD.astype(weight_SVD.dtype)


_tiled_logps.defvjp(_forward, _backward)


def response_logps(token_logps_RN: jax.Array, response_RN: jax.Array, *, pairs: int, slots: int) -> jax.Array:
    """Sums token log-probs over each response: [B, P], nats. `response_RN` is slots * pair + slot, -1 on padding."""
    chex.assert_equal_shape([token_logps_RN, response_RN])
    # Ids outside [0, pairs * slots) are dropped, -1 among them.
    sums = jax.ops.segment_sum(token_logps_RN.ravel(), response_RN.ravel(), num_segments=pairs * slots)
    return sums.reshape(pairs, slots)


def batch_logps(hidden_RTD: jax.Array, unembedding: Unembedding, batch: PairBatch, **tiles: int) -> jax.Array:
    """Response log-probs [B, P] of a batch of any layout, from the hidden states of its rows."""
    hidden_RND = jnp.take_along_axis(hidden_RTD, batch.source_RN[..., None], axis=1)
    scored_RN = token_logps(constrain(hidden_RND, "rows", None, None), batch.target_RN, unembedding, **tiles)
    pairs, slots = batch.response_tokens_BP.shape
    return response_logps(scored_RN, batch.response_RN, pairs=pairs, slots=slots)
