"""Attention: one function, and the forms that compute it.

Dimension key: R rows, T queries, S keys, H query heads, G key/value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax

from dpo_jax.models.attention.blocks import attend_blocks
from dpo_jax.models.attention.dense import attend_dense
from dpo_jax.models.attention.seen import Seen

__all__ = ["BACKENDS", "Seen", "attend"]

BACKENDS: dict[str, Callable[..., jax.Array]] = {"dense": attend_dense, "blocks": attend_blocks}
"""By name: `backend(query_RTHK, key_RSGK, value_RSGK, seen, scale=, soft_cap=) -> [R, T, H, K]`."""


def attend(
    query_RTHK: jax.Array,
    key_RSGK: jax.Array,
    value_RSGK: jax.Array,
    seen: Seen,
    *,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> jax.Array:
    """Grouped-query softmax attention, [R, T, H, K] in the dtype of the values.

    Scores are multiplied by `scale`, 1 / sqrt(K) unless told otherwise, and bent to stay below `soft_cap`.
    """
    chex.assert_equal_shape([key_RSGK, value_RSGK])
    scale = query_RTHK.shape[-1] ** -0.5 if scale is None else scale
    backend = attend_dense if seen.segments_RT is None else BACKENDS[seen.backend]
    return backend(query_RTHK, key_RSGK, value_RSGK, seen, scale=scale, soft_cap=soft_cap)
