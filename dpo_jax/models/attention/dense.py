"""The dense form of attention: all scores of all rows at once, with a mask. Every other form is tested against it.

Dimension key: R rows, T queries, S keys, H query heads, G key/value heads, M = H / G, K head size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dpo_jax.models.attention.mask import AttentionMask, Places, sees


def attend_dense(
    query_RTHK: jax.Array,
    key_RSGK: jax.Array,
    value_RSGK: jax.Array,
    mask: AttentionMask,
    *,
    scale: float,
    soft_cap: float | None,
) -> jax.Array:
    """Softmax attention over whole rows, or over a cache, [R, T, H, K]; scores in float32."""
    rows, length, heads, head_size = query_RTHK.shape
    groups = key_RSGK.shape[2]
    query_RTGMK = query_RTHK.reshape(rows, length, groups, heads // groups, head_size)
    scores = jnp.einsum("rtgmk,rsgk->rgmts", query_RTGMK, key_RSGK, preferred_element_type=jnp.float32) * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    mask_RTS = row_mask(mask) if mask.segments_RT is not None else cache_mask(mask, key_RSGK.shape[1])
    scores = jnp.where(mask_RTS[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value_RSGK.dtype)
    mixed_RTGMK = jnp.einsum("rgmts,rsgk->rtgmk", weights, value_RSGK)
    return mixed_RTGMK.reshape(query_RTHK.shape)


def row_mask(mask: AttentionMask) -> jax.Array:
    """True where a token of a row may look, bool [R, T, T]."""
    assert mask.segments_RT is not None
    order_RT = jnp.broadcast_to(jnp.arange(mask.positions_RT.shape[1]), mask.positions_RT.shape)
    tokens = Places(order_RT, mask.segments_RT, mask.positions_RT)
    return sees(Places(*(x[:, :, None] for x in tokens)), Places(*(x[:, None, :] for x in tokens)), mask.window)


def cache_mask(mask: AttentionMask, length: int) -> jax.Array:
    """The same over a cache of `length` places, bool [R, T, S]."""
    query_RTS, key_RTS = mask.positions_RT[:, :, None], jnp.arange(length)[None, None]
    mask_RTS = key_RTS <= query_RTS
    return mask_RTS if mask.window is None else mask_RTS & (key_RTS > query_RTS - mask.window)
