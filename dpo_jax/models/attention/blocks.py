"""Attention in blocks of queries, each against the keys up to its end: no array of [T, T] exists or is kept.

Scores lie keys first, [S, T]: then their sums, and the matmuls behind them, run over the slow axis, which XLA's CPU
backend does fastest. The backward pass computes the scores again from what the softmax summed to (arXiv:2205.14135).

Dimension key: R rows, T queries, S keys, H query heads, G key/value heads, M = H / G, K head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from dpo_jax.models.attention.mask import AttentionMask, Places, Window, sees
from dpo_jax.networks import SAVED

_LEAST_BLOCK = 128
_MOST_BLOCKS = 8
_MASKED = float(jnp.finfo(jnp.float32).min)


class Row(NamedTuple):
    """One row, or an axis of rows: its tokens, and the window."""

    tokens: Places
    window: Window


class Bend(NamedTuple):
    """Map from products of queries and keys to scores: `scale` times as much, bent to stay below `soft_cap`."""

    scale: float
    soft_cap: float | None


def attend_blocks(
    query_RTHK: jax.Array,
    key_RSGK: jax.Array,
    value_RSGK: jax.Array,
    mask: AttentionMask,
    *,
    scale: float,
    soft_cap: float | None,
) -> jax.Array:
    """Softmax attention over whole rows, [R, T, H, K]; scores in float32."""
    assert mask.segments_RT is not None
    rows, length = query_RTHK.shape[:2]
    order_RT = jnp.broadcast_to(jnp.arange(length), (rows, length))
    window = mask.window
    window_R = None if window is None else jnp.broadcast_to(jnp.asarray(window), (rows,))
    row = Row(Places(order_RT, mask.segments_RT, mask.positions_RT), window_R)
    return _attend(query_RTHK, key_RSGK, value_RSGK, row, Bend(scale, soft_cap))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query: jax.Array, key: jax.Array, value: jax.Array, row: Row, bend: Bend) -> jax.Array:
    return _forward(query, key, value, row, bend)[0]


def _forward(
    query_RTHK: jax.Array, key_RSGK: jax.Array, value_RSGK: jax.Array, row: Row, bend: Bend
) -> tuple[jax.Array, tuple]:
    def of_head(keys: tuple, row: Row, query_TK: jax.Array) -> tuple:
        return _mix(row, bend, query_TK, *keys)

    queries = (_by_head(query_RTHK, key_RSGK.shape[2]),)
    keys = (_by_group(key_RSGK), _by_group(value_RSGK).mT)
    mixed, total_RGMT = _each_head(of_head, queries, keys, row)
    mixed_RTHK = checkpoint_name(_from_heads(mixed.mT).astype(value_RSGK.dtype), SAVED)
    total_RGMT = checkpoint_name(total_RGMT, SAVED)
    return mixed_RTHK, (query_RTHK, key_RSGK, value_RSGK, row, mixed_RTHK, total_RGMT)


def _backward(bend: Bend, saved: tuple, grad_RTHK: jax.Array) -> tuple:
    query_RTHK, key_RSGK, value_RSGK, row, mixed_RTHK, total_RGMT = saved
    groups = key_RSGK.shape[2]

    def of_head(keys: tuple, row: Row, query_TK: jax.Array, *rest: jax.Array) -> tuple:
        return _mix_gradients(row, bend, keys, query_TK, *rest)

    products_RTHK = grad_RTHK.astype(jnp.float32) * mixed_RTHK.astype(jnp.float32)
    drift_RGMT = _by_head(products_RTHK.sum(axis=-1, keepdims=True), groups)[..., 0]
    queries = (_by_head(query_RTHK, groups), _by_head(grad_RTHK, groups), drift_RGMT, total_RGMT)
    key_RGSK = _by_group(key_RSGK)
    to_query, *to_keys = _each_head(of_head, queries, (key_RGSK, key_RGSK.mT, _by_group(value_RSGK)), row)
    to_query = _from_heads(to_query.mT)
    to_key, to_value = (x.sum(axis=2).swapaxes(1, 2) for x in to_keys)
    return to_query.astype(query_RTHK.dtype), to_key.astype(key_RSGK.dtype), to_value.astype(value_RSGK.dtype), None


_attend.defvjp(_forward, _backward)


def _mix(
    row: Row, bend: Bend, query_TK: jax.Array, key_SK: jax.Array, value_KS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The mixed values of one head, [K, T], and the log-sum-exp of its scores, [T]."""
    mixed, totals = [], []
    for here, end in _blocks(len(query_TK)):
        scores_ST, _ = _scores(key_SK[:end], query_TK[here], bend)
        scores_ST = jnp.where(_mask(row, here, end), scores_ST, _MASKED)
        most_T = scores_ST.max(axis=0)
        weights_ST = jnp.exp(scores_ST - most_T[None])
        sum_T = weights_ST.sum(axis=0)
        mixed.append(_dot(value_KS[:, :end], weights_ST.astype(value_KS.dtype)) / sum_T[None])
        totals.append(most_T + jnp.log(sum_T))
    return jnp.concatenate(mixed, axis=1), jnp.concatenate(totals)


def _mix_gradients(
    row: Row,
    bend: Bend,
    keys: tuple[jax.Array, jax.Array, jax.Array],
    query_TK: jax.Array,
    grad_TK: jax.Array,
    drift_T: jax.Array,
    total_T: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of one head by its queries, [K, T], and by keys and values, [S, K], in float32."""
    key_SK, key_KS, value_SK = keys
    to_key, to_value = jnp.zeros((2, *key_SK.shape), jnp.float32)
    to_query = []
    for here, end in _blocks(len(query_TK)):
        scores_ST, slope_ST = _scores(key_SK[:end], query_TK[here], bend)
        weights_ST = jnp.where(_mask(row, here, end), jnp.exp(scores_ST - total_T[None, here]), 0.0)
        to_score_ST = weights_ST * (_dot(value_SK[:end], grad_TK[here].mT) - drift_T[None, here])
        to_score_ST = (to_score_ST * slope_ST).astype(query_TK.dtype)
        to_value = to_value.at[:end].add(_dot(weights_ST.astype(grad_TK.dtype), grad_TK[here]))
        to_key = to_key.at[:end].add(_dot(to_score_ST, query_TK[here]))
        to_query.append(_dot(key_KS[:, :end], to_score_ST))
    return jnp.concatenate(to_query, axis=1), to_key, to_value


def _blocks(length: int) -> Iterator[tuple[slice, int]]:
    """Each block of queries as a slice, and the end of the keys that it sees."""
    block = -(-length // _MOST_BLOCKS // _LEAST_BLOCK) * _LEAST_BLOCK
    for start in range(0, length, block):
        end = min(start + block, length)
        yield slice(start, end), end


def _scores(key_SK: jax.Array, query_TK: jax.Array, bend: Bend) -> tuple[jax.Array, jax.Array | float]:
    """Scores [S, T] in float32, and how they change with the products."""
    scores_ST = _dot(key_SK, query_TK.mT) * bend.scale
    if bend.soft_cap is None:
        return scores_ST, bend.scale
    bent_ST = jnp.tanh(scores_ST / bend.soft_cap)
    return bend.soft_cap * bent_ST, bend.scale * (1.0 - bent_ST * bent_ST)


def _mask(row: Row, here: slice, end: int) -> jax.Array:
    """True where a query of the block sees a key, bool [S, T]."""
    query, key = (Places(*(x[at] for x in row.tokens)) for at in (np.s_[None, here], np.s_[:end, None]))
    return sees(query, key, row.window)


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def _each_head(f: Callable[..., tuple], queries: tuple, keys: tuple, row: Row) -> tuple[jax.Array, ...]:
    """`f(keys, row, *queries)` for each row, group and head: one after the other on a CPU, else all at once."""

    def mapped(over: Callable[[Callable], Callable], queries: tuple, keys: tuple, row: Row) -> tuple[jax.Array, ...]:
        def of_group(row: Row, queries: tuple, keys: tuple) -> tuple:
            return over(lambda queries: f(keys, row, *queries))(queries)

        def of_row(each: tuple) -> tuple:
            row, queries, keys = each
            return over(lambda each: of_group(row, *each))((queries, keys))

        return over(of_row)((row, queries, keys))

    one_by_one = partial(mapped, lambda f: partial(jax.lax.map, f))
    return jax.lax.platform_dependent(queries, keys, row, cpu=one_by_one, default=partial(mapped, jax.vmap))


def _by_head(x_RTHK: jax.Array, groups: int) -> jax.Array:
    """[R, T, H, K] to [R, G, M, T, K]."""
    rows, length, heads, size = x_RTHK.shape
    return x_RTHK.reshape(rows, length, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)


def _by_group(x_RSGK: jax.Array) -> jax.Array:
    """[R, S, G, K] to [R, G, S, K]."""
    return x_RSGK.swapaxes(1, 2)


def _from_heads(x_RGMTK: jax.Array) -> jax.Array:
    """[R, G, M, T, K] to [R, T, H, K]."""
    rows, groups, members, length, size = x_RGMTK.shape
    return x_RGMTK.transpose(0, 3, 1, 2, 4).reshape(rows, length, groups * members, size)
