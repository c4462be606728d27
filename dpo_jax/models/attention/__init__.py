"""Attention: one function, and the forms that compute it.

Dimension key: R rows, T queries, S keys, H query heads, G key/value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from dpo_jax.mesh import axis_splits, by_shards
from dpo_jax.models.attention.blocks import attend_blocks
from dpo_jax.models.attention.cudnn import attend_cudnn
from dpo_jax.models.attention.dense import attend_dense
from dpo_jax.models.attention.seen import Seen
from dpo_jax.models.attention.splash import attend_splash

__all__ = ["BACKENDS", "Backend", "Seen", "attend"]


class Backend(NamedTuple):
    """A form of attention: `attend(query_RTHK, key_RSGK, value_RSGK, seen, scale=, soft_cap=)` gives [R, T, H, K].

    `unpacks` names the layouts of rows whose sequences it must be told, see `PairBatch.sequences`; None: of none.
    """

    attend: Callable[..., jax.Array]
    unpacks: tuple[str, ...] | None = None


BACKENDS: dict[str, Backend] = {
    "dense": Backend(attend_dense),
    "blocks": Backend(attend_blocks),
    "cudnn": Backend(attend_cudnn, unpacks=("packed", "shared")),
    "splash": Backend(attend_splash, unpacks=("shared",)),
}


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

    On a mesh each device attends in its own rows and heads; where the length is split, heads are split by that axis
    instead, so that every device has whole rows.
    """
    chex.assert_equal_shape([key_RSGK, value_RSGK])
    rows, _, heads, head_size = query_RTHK.shape
    knobs = {"scale": head_size**-0.5 if scale is None else scale, "soft_cap": soft_cap}
    if seen.segments_RT is None or seen.backend == "dense":
        return attend_dense(query_RTHK, key_RSGK, value_RSGK, seen, **knobs)
    backend = BACKENDS[seen.backend]
    if backend.unpacks is not None:
        _check_sequences(seen, rows)

    def attend_part(query: jax.Array, key: jax.Array, value: jax.Array, *known: jax.Array) -> jax.Array:
        part = seen._replace(**dict(zip(_KNOWN, known, strict=True)))
        return backend.attend(query, key, value, part, **knobs)

    name = "heads" if heads % axis_splits("whole_rows_heads") else "whole_rows_heads"
    if key_RSGK.shape[2] % axis_splits(name):  # a head of queries finds its keys on its own device
        key_RSGK, value_RSGK = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (key_RSGK, value_RSGK))
    of_heads = ("rows", None, name, None)
    known = (seen.positions_RT, seen.segments_RT, jnp.asarray(seen.kind), seen.apart)
    names = (of_heads, of_heads, of_heads, ("rows",), ("rows",), (), ("rows",))
    arrays = (query_RTHK, key_RSGK, value_RSGK, *known)
    return by_shards(attend_part, *arrays, names=names, out=of_heads, out_shape=query_RTHK.shape)


def _check_sequences(seen: Seen, rows: int) -> None:
    if seen.apart is None:
        raise ValueError(f"{seen.backend} attention must be told the sequences of the rows: PairBatch.sequences")
    splits = axis_splits("rows")
    for each in seen.apart.sequences[:1] if splits > 1 else ():
        if rows % splits or len(each) % splits:
            raise ValueError(f"{rows} rows and {len(each)} parts of their sequences on a mesh that splits by {splits}")


_KNOWN = ("positions_RT", "segments_RT", "kind", "apart")
