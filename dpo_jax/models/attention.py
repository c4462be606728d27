"""Attention: which key each query may see, and the dense form.

Dimension key: R rows, T queries, S keys, H query heads, G key/value heads, M = H / G, K head size.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def causal_mask(segments_RT: jax.Array, *, window: int | None = None) -> jax.Array:
    """True where a token may look: at itself and before, inside its own segment. Bool [R, T, T].

    `window` tokens, itself among them, are the most that it sees.
    """
    chex.assert_rank(segments_RT, 2)
    order_T = jnp.arange(segments_RT.shape[1])
    causal_TS = _visible(order_T[:, None], order_T[None, :], window)
    return causal_TS[None] & (segments_RT[:, :, None] == segments_RT[:, None, :])


def cached_mask(positions_RT: jax.Array, length: int, *, window: int | None = None) -> jax.Array:
    """The same for tokens at these positions over a cache of `length` places. Bool [R, T, S]."""
    return _visible(positions_RT[..., None], jnp.arange(length)[None, None], window)


def _visible(query: jax.Array, key: jax.Array, window: int | None) -> jax.Array:
    causal = key <= query
    return causal if window is None else causal & (key > query - window)


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
