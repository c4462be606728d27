"""Attention: which key each query may see, and the dense form.

Dimension key: R rows, T queries, S keys, H query heads, G key/value heads, M = H / G, K head size.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def causal_mask(segments_RT: jax.Array) -> jax.Array:
    """True where a token may look: at itself and before, inside its own segment. Bool [R, T, T]."""
    chex.assert_rank(segments_RT, 2)
    length = segments_RT.shape[1]
    order_T = jnp.arange(length)
    causal_TS = order_T[:, None] >= order_T[None, :]
    return causal_TS[None] & (segments_RT[:, :, None] == segments_RT[:, None, :])


def attend(query_RTHK: jax.Array, key_RSGK: jax.Array, value_RSGK: jax.Array, mask_RTS: jax.Array) -> jax.Array:
    """Grouped-query softmax attention, scores in float32. Returns [R, T, H, K] in the dtype of the values."""
    chex.assert_equal_shape([key_RSGK, value_RSGK])
    rows, length, heads, head_size = query_RTHK.shape
    groups = key_RSGK.shape[2]
    query_RTGMK = query_RTHK.reshape(rows, length, groups, heads // groups, head_size)
    scores = jnp.einsum("rtgmk,rsgk->rgmts", query_RTGMK, key_RSGK, preferred_element_type=jnp.float32)
    scores = jnp.where(mask_RTS[:, None, None], scores * head_size**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value_RSGK.dtype)
    mixed_RTGMK = jnp.einsum("rgmts,rsgk->rtgmk", weights, value_RSGK)
    return mixed_RTGMK.reshape(query_RTHK.shape)
