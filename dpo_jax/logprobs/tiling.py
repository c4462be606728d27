"""Passes over the logits of a batch in tiles: the vocabulary is cut, and the scored tokens inside each cut.

A backward pass computes each tile again. All sums are float32, also those of the weight's gradient: a bfloat16 sum
over tiles biases training.

Dimension key: R rows, N scored tokens, V vocabulary, S vocabulary shards, D width; in a tile n scored tokens (of all
rows) and v columns of the vocabulary (of all shards).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from dpo_jax.mesh import axis_splits, constrain
from dpo_jax.types import Unembedding

TILE_TOKENS = 2048
TILE_VOCABULARY = 16384

Carry = TypeVar("Carry", bound=tuple)
Tokens = jax.Array | tuple


class Tiling(NamedTuple):
    """Cut of the vocabulary; static and hashable, for the custom backwards."""

    vocabulary: int
    shards: int
    per_shard: int
    width: int  # columns that each shard gives to a tile
    count: int  # vocabulary tiles


class Bend(NamedTuple):
    """Map from raw products to logits, see `Unembedding`; static and hashable."""

    scale: float
    soft_cap: float | None


class Side(NamedTuple):
    """A distribution over the vocabulary at every scored token: hidden [tiles, n, D] and the sharded weight."""

    bend: Bend
    hidden: jax.Array
    weight_SVD: jax.Array


class RunningLse(NamedTuple):
    """The log-sum-exp of the logits seen so far: their maximum, and the sum of exponentials below it."""

    highest: jax.Array
    total: jax.Array

    @classmethod
    def start(cls, zeros: jax.Array) -> RunningLse:
        """State before the first logit."""
        return cls(jnp.full_like(zeros, -jnp.inf), zeros)

    def add(self, logits_nv: jax.Array) -> tuple[RunningLse, jax.Array, jax.Array]:
        """Add one more tile; also by what older sums shrink, [n], and the tile's exponentials, [n, v]."""
        risen = jnp.maximum(self.highest, logits_nv.max(axis=-1))
        # Finite even where this tile is padding alone: the first tile holds token 0.
        shrink, exponentials = jnp.exp(self.highest - risen), jnp.exp(logits_nv - risen[:, None])
        return RunningLse(risen, self.total * shrink + exponentials.sum(axis=-1)), shrink, exponentials

    def value(self) -> jax.Array:
        """The log-sum-exp."""
        return self.highest + jnp.log(self.total)


def cut_vocabulary(unembedding: Unembedding, tile_vocabulary: int) -> tuple[Tiling, Bend, jax.Array]:
    """The unembedding as static parts and a weight [S, V / S, D].

    Each shard gives a part of every tile: maxima and sums cross shards, the weight never does.
    """
    assert unembedding.weight_VD is not None
    columns = unembedding.weight_VD.shape[0]
    splits = axis_splits("vocab")
    shards = splits if columns % splits == 0 else 1
    per_shard = columns // shards
    count = -(-columns // tile_vocabulary)
    tiling = Tiling(unembedding.vocabulary, shards, per_shard, -(-per_shard // count), count)
    weight_SVD = unembedding.weight_VD.reshape(shards, per_shard, -1)
    return tiling, Bend(unembedding.scale, unembedding.soft_cap), weight_SVD


def cut_tokens(array: jax.Array, tile_tokens: int) -> jax.Array:
    """[R, N, ...] to [tiles, n, ...]; tiles cut the N axis only, so that rows sharded over devices stay there.

    `tile_tokens` are those of one device.
    """
    rows, scored, *rest = array.shape
    tile = max(1, min(scored, tile_tokens * _row_splits(rows) // max(1, rows)))
    tiles = -(-scored // tile)
    array = jnp.pad(array, [(0, 0), (0, tiles * tile - scored), *((0, 0) for _ in rest)])
    return array.reshape(rows, tiles, tile, *rest).swapaxes(0, 1).reshape(tiles, rows * tile, *rest)


def _row_splits(rows: int) -> int:
    """Number of parts into which the mesh splits the rows, or tokens row after row."""
    splits = axis_splits("rows")
    return splits if rows % splits == 0 else 1


def join_tokens(array: jax.Array, rows: int, scored: int) -> jax.Array:
    """[tiles, n] back to [R, N]."""
    return array.reshape(array.shape[0], rows, -1).swapaxes(0, 1).reshape(rows, -1)[:, :scored]


def wide(*sides: Side) -> jnp.dtype:
    """The dtype of logits and sums."""
    return jnp.result_type(jnp.float32, *(side.hidden for side in sides))


def fold(tiling: Tiling, update: Callable[..., Carry], carry: Carry, tokens: Tokens, *sides: Side) -> Carry:
    """Carry values of each scored token through all vocabulary tiles.

    Args:
        tiling: how the vocabulary is cut.
        update: `(carry, tokens, token_v, *logits_nv) -> carry` on one tile. `token_v` is the token id of each column,
            -1 where it does not count: there the logits, one array a side, are minus infinity.
        carry: where to start, a tree of arrays [tiles, n].
        tokens: what else `update` knows of each token, a tree of arrays [tiles, n].
        sides: the distributions.
    """
    dtype, whole = wide(*sides), [_gathered(side) for side in sides]

    def over_vocabulary(carry: Carry, index: jax.Array) -> tuple[Carry, None]:
        start, token_v = _columns(tiling, index)
        weights = [_cut(tiling, weight_SVD, start) for weight_SVD in whole]

        def over_tokens(tile: tuple) -> Carry:
            carry, tokens, *hiddens = tile
            parts = zip(sides, hiddens, weights, strict=True)
            logits = [_logits(side.bend, hidden, weight, token_v, dtype)[0] for side, hidden, weight in parts]
            return update(carry, tokens, token_v, *logits)

        return jax.lax.map(over_tokens, (carry, tokens, *(side.hidden for side in sides))), None

    return jax.lax.scan(over_vocabulary, carry, jnp.arange(tiling.count))[0]


def pull_back(
    tiling: Tiling, d_logits: Callable[..., jax.Array], tokens: Tokens, side: Side, *others: Side
) -> tuple[jax.Array, ...]:
    """The gradients of `side`'s hidden states and weight, from those of its logits.

    Args:
        tiling: how the vocabulary is cut.
        d_logits: `(tokens, token_v, logits_nv, *other_logits_nv) -> [n, v]`, arguments as in `fold`.
        tokens: what `d_logits` knows of each token, a tree of arrays [tiles, n].
        side: the distribution that is differentiated.
        others: distributions whose logits `d_logits` needs.
    """
    dtype, whole = wide(side, *others), [_gathered(one) for one in (side, *others)]
    # Each part of the rows has a sum of its own until a vocabulary tile is done: devices then speak once, not per tile.
    parts = _row_splits(side.hidden.shape[1])

    def over_vocabulary(carry: tuple, index: jax.Array) -> tuple[tuple, None]:
        d_hidden, d_weight_SVD = carry
        start, token_v = _columns(tiling, index)
        weight_vD, *weights = (_cut(tiling, weight_SVD, start) for weight_SVD in whole)

        def over_tokens(d_weight_PvD: jax.Array, tile: tuple) -> tuple[jax.Array, jax.Array]:
            d_hidden_nD, tokens, hidden_nD, *hiddens = tile
            each = zip(others, hiddens, weights, strict=True)
            known = [_logits(other.bend, hidden, weight, token_v, dtype)[0] for other, hidden, weight in each]
            logits, slope = _logits(side.bend, hidden_nD, weight_vD, token_v, dtype)
            d_raw = (d_logits(tokens, token_v, logits, *known) * slope).astype(weight_vD.dtype)
            d_hidden_nD += jnp.einsum("nv,vd->nd", d_raw, weight_vD, preferred_element_type=dtype)
            return d_weight_PvD + _products(d_raw, hidden_nD, parts, dtype), d_hidden_nD

        zeros = constrain(jnp.zeros((parts, *weight_vD.shape), dtype), "rows", "vocab", None)
        tiles = (d_hidden, tokens, side.hidden, *(other.hidden for other in others))
        d_weight_PvD, d_hidden = jax.lax.scan(over_tokens, zeros, tiles)
        part_vD = constrain(d_weight_PvD.sum(axis=0), "vocab", "embed")
        # Added to what is there: the last tile overlaps columns already summed, and gives 0 for them.
        before = jax.lax.dynamic_slice_in_dim(d_weight_SVD, start, tiling.width, axis=1)
        after = before + part_vD.reshape(before.shape)
        return (d_hidden, jax.lax.dynamic_update_slice_in_dim(d_weight_SVD, after, start, axis=1)), None

    d_weight = constrain(jnp.zeros(side.weight_SVD.shape, dtype), "vocab", None, "embed")
    zeros = (jnp.zeros(side.hidden.shape, dtype), d_weight)
    (d_hidden, d_weight_SVD), _ = jax.lax.scan(over_vocabulary, zeros, jnp.arange(tiling.count))
    return d_hidden.astype(side.hidden.dtype), d_weight_SVD.astype(side.weight_SVD.dtype)


def _products(d_raw_nv: jax.Array, hidden_nD: jax.Array, parts: int, dtype: DTypeLike) -> jax.Array:
    """The weight's gradient from one tile, [P, v, D]: apart for each part of the rows."""
    if parts == 1:
        return jnp.einsum("nv,nd->vd", d_raw_nv, hidden_nD, preferred_element_type=dtype)[None]
    d_raw_Pnv, hidden_PnD = (x.reshape(parts, -1, x.shape[1]) for x in (d_raw_nv, hidden_nD))
    return jnp.einsum("pnv,pnd->pvd", d_raw_Pnv, hidden_PnD, preferred_element_type=dtype)


def _gathered(side: Side) -> jax.Array:
    """The weight as the tiles need it, gathered over fsdp once: here, as its gradient is not to be gathered."""
    return constrain(side.weight_SVD, "vocab", None, None)


def _columns(tiling: Tiling, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One vocabulary tile: where it starts in each shard, and the token id of each column, -1: not to be counted."""
    wanted = index * tiling.width
    start = jnp.minimum(wanted, tiling.per_shard - tiling.width)  # the last tile overlaps the one before it
    within = start + jnp.arange(tiling.width)[None]
    tokens = jnp.arange(tiling.shards)[:, None] * tiling.per_shard + within
    counted = (within >= wanted) & (tokens < tiling.vocabulary)
    return start, jnp.where(counted, tokens, -1).ravel()


def _cut(tiling: Tiling, weight_SVD: jax.Array, start: jax.Array) -> jax.Array:
    """The weights [v, D] of one vocabulary tile."""
    return jax.lax.dynamic_slice_in_dim(weight_SVD, start, tiling.width, axis=1).reshape(-1, weight_SVD.shape[2])


def _logits(
    bend: Bend, hidden_nD: jax.Array, weight_vD: jax.Array, token_v: jax.Array, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array | float]:
    """Logits of one tile [n, v], minus infinity where not counted, and their slope by the raw product."""
    raw = bend.scale * jnp.einsum("nd,vd->nv", hidden_nD, weight_vD, preferred_element_type=dtype)
    slope: jax.Array | float = bend.scale
    if bend.soft_cap is not None:
        bent = jnp.tanh(raw / bend.soft_cap)
        raw, slope = bend.soft_cap * bent, bend.scale * (1.0 - bent * bent)
    return jnp.where(token_v[None] >= 0, raw, -jnp.inf), slope
