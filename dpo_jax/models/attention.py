"""Attention: which key each query may see, and the dense form.

Dimension key: R rows, T queries, S keys, H query heads, G key/value heads, M = H / G, K head size.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from dpo_jax.types import SEGMENT_PARTS


def causal_mask(segments_RT: jax.Array, positions_RT: jax.Array, *, window: int | None = None) -> jax.Array:
    """True where a token may look: at itself and before, inside its segment, see `PairBatch`. Bool [R, T, T].

    `window` positions, its own among them, are the most that it sees.
    """
    chex.assert_rank([segments_RT, positions_RT], 2)
    order_T = jnp.arange(segments_RT.shape[1])
    segment_RT, part_RT = jnp.divmod(segments_RT - 1, SEGMENT_PARTS)  # padding is a segment of its own, -1
    same_RTS = segment_RT[:, :, None] == segment_RT[:, None, :]
    open_RTS = (part_RT[:, None, :] == 0) | (part_RT[:, :, None] == part_RT[:, None, :])
    mask_RTS = (order_T[:, None] >= order_T[None, :])[None] & same_RTS & open_RTS
    if window is None:
        return mask_RTS
    return mask_RTS & (positions_RT[:, None, :] > positions_RT[:, :, None] - window)


def cached_mask(positions_RT: jax.Array, length: int, *, window: int | None = None) -> jax.Array:
    """The same for tokens at these positions over a cache of `length` places. Bool [R, T, S]."""
    query, key = positions_RT[..., None], jnp.arange(length)[None, None]
    return key <= query if window is None else (key <= query) & (key > query - window)


def attend(
    query_RTHK: jax.Array,
    key_RSGK: jax.Array,
    value_RSGK: jax.Array,
    mask_RTS: jax.Array,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """Grouped-query softmax attention, scores in float32. Returns [R, T, H, K] in the dtype of the values.

    Scores are multiplied by `scale`, 1 / sqrt(K) unless told otherwise, and bent to stay below `soft_cap`.
    """
    chex.assert_equal_shape([key_RSGK, value_RSGK])
    rows, length, heads, head_size = query_RTHK.shape
    groups = key_RSGK.shape[2]
    query_RTGMK = query_RTHK.reshape(rows, length, groups, heads // groups, head_size)
    scores = jnp.einsum("rtgmk,rsgk->rgmts", query_RTGMK, key_RSGK, preferred_element_type=jnp.float32)
    scores = scores * (head_size**-0.5 if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    scores = jnp.where(mask_RTS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value_RSGK.dtype)
    mixed_RTGMK = jnp.einsum("rgmts,rsgk->rtgmk", weights, value_RSGK)
    return mixed_RTGMK.reshape(query_RTHK.shape)
