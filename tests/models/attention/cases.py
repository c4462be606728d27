"""Rows to attend over, and what the dense form makes of them.

Dimension key: R rows, T tokens, H query heads, G key/value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.data.layouts import find_sequences
from dpo_jax.models.attention import BACKENDS, AttentionMask, attend
from dpo_jax.models.attention.unpack import unpacking_of
from dpo_jax.types import SEGMENT_PARTS

LAYOUTS: dict[str, list[list[tuple[int, ...]]]] = {
    "padded": [[(150,)], [(131,)], [(1,)], []],
    "packed": [[(70,), (30,), (1,), (45,)], [(140,)], [(7,), (70,), (3,)], []],
    "shared": [[(60, 20, 25), (10, 1, 30)], [(1, 70, 75)], [(20, 15), (2, 9, 9), (65, 3, 4)], []],
}
"""Layout -> row after row, its segments: tokens of the part that all see, and of the parts that share it."""

LENGTH = 152


class Rows(NamedTuple):
    """Positions and segments, [R, T], and which tokens are there."""

    positions_RT: jax.Array
    segments_RT: jax.Array

    @property
    def real_RT(self) -> jax.Array:
        return self.segments_RT > 0


def make_rows(layout: str, length: int = LENGTH) -> Rows:
    """The rows of a layout as the batch has them."""
    positions_RT, segments_RT = np.zeros((2, len(LAYOUTS[layout]), length), np.int32)
    for row, segments in enumerate(LAYOUTS[layout]):
        at = 0
        for number, parts in enumerate(segments):
            for part, size in enumerate(parts):
                positions_RT[row, at : at + size] = np.arange(size) + (parts[0] if part else 0)
                segments_RT[row, at : at + size] = 1 + SEGMENT_PARTS * number + part
                at += size
    return Rows(jnp.asarray(positions_RT), jnp.asarray(segments_RT))


def heads(rows: int, *, heads: int = 4, groups: int = 2, size: int = 8, length: int = LENGTH, dtype: Any = jnp.float32):
    """Queries, keys and values."""
    random = np.random.default_rng(0)
    shapes = [(rows, length, count, size) for count in (heads, groups, groups)]
    return [jnp.asarray(2 * random.standard_normal(shape), dtype) for shape in shapes]


def mixed_and_gradients(
    qkv: list[jax.Array], rows: Rows, mask: AttentionMask, *, under: Callable = jax.jit, **knobs: Any
):
    """What attention gives on real tokens, and the gradients of a weighted sum of it."""
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(qkv[0].shape), jnp.float32)

    def weighed(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        mixed = jnp.where(rows.real_RT[..., None, None], attend(*qkv, mask, **knobs), 0.0)
        return (weights * mixed.astype(jnp.float32)).sum(), mixed

    (_, mixed), gradients = under(jax.value_and_grad(weighed, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return [np.asarray(x.astype(jnp.float32)) for x in (mixed, *gradients)]


def assert_like_dense(
    qkv: list[jax.Array], rows: Rows, mask: AttentionMask, *, near: float = 2e-5, **knobs: Any
) -> None:
    """Values and gradients of a backend are those of the dense form in float32, up to `near` of the largest."""
    wide = [x.astype(jnp.float32) for x in qkv]
    plain = AttentionMask(*rows, "dense", windows=mask.windows, kind=mask.kind)
    wanted = mixed_and_gradients(wide, rows, plain, **knobs)
    for ours, theirs in zip(mixed_and_gradients(qkv, rows, mask, **knobs), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=near * np.abs(theirs).max())


def sequences_of(rows: Rows, *, parts: int, sizes: tuple[int, ...] = (32, 80, 152)) -> tuple[jax.Array, ...]:
    """The sequences of the rows by length, with room for one more of each."""
    longest = find_sequences(np.asarray(rows.segments_RT), [(parts, 30, LENGTH)])[0]
    tokens = (longest >= 0).sum(axis=2)
    most = [
        ((tokens > low) & (tokens <= size)).sum(axis=1).max() for low, size in zip((0, *sizes), sizes, strict=False)
    ]
    shapes = [(parts, int(count) + 1, size) for count, size in zip(most, sizes, strict=True)]
    return tuple(map(jnp.asarray, find_sequences(np.asarray(rows.segments_RT), shapes)))


def told(layout: str, backend: str, *, parts: int = 1, **options: Any) -> tuple[Rows, AttentionMask]:
    """Rows of a layout, and what a backend that wants its sequences is told of them."""
    rows = make_rows(layout)
    wanted = layout in (BACKENDS[backend].unpacks or ())
    places = sequences_of(rows, parts=parts) if wanted else ()
    return rows, AttentionMask(
        *rows, backend, unpacking=unpacking_of(places, rows=len(rows.segments_RT), length=LENGTH), **options
    )
