"""The mask of attention, which tokens of its row a token may look at, and the cache of keys and values.

Dimension key: L layers, R rows, T tokens, S cached tokens, G key/value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.models.attention.unpack import Unpacking
from dpo_jax.types import SEGMENT_PARTS

EVERYTHING = np.iinfo(np.int32).max // 2
"""A window that nothing is outside of, for a layer without one beside layers that have one."""

Window = int | jax.Array | None


class AttentionMask(NamedTuple):
    """Description of the rows and of the layer for attention; see `PairBatch` for who sees whom.

    `windows` are those of each kind of layer, `kind` which of them this layer is. A window is how many positions a
    token sees, its own among them.
    """

    positions_RT: jax.Array
    segments_RT: jax.Array | None  # None: the keys are a cache, whose place s holds position s
    backend: str  # a name of `BACKENDS`
    windows: tuple[int | None, ...] = (None,)
    kind: jax.Array | int = 0
    unpacking: Unpacking | None = None  # the sequences of the rows; None: not known

    @property
    def window(self) -> Window:
        """The window of this layer; traced where layers differ."""
        if len(set(self.windows)) == 1:
            return self.windows[0]
        return jnp.asarray([EVERYTHING if window is None else window for window in self.windows])[self.kind]

    def of_window(self, attend: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
        """`attend(*arrays, window=)` for forms to which a window is static: layers choose between the kinds."""
        if len(set(self.windows)) == 1:
            return attend(*arrays, window=self.windows[0])
        return jax.lax.switch(self.kind, [partial(attend, window=window) for window in self.windows], *arrays)


class Cache(NamedTuple):
    """Keys and values of the tokens seen so far, [L, R, S, G, K]; token s of a row stands at position s."""

    key: jax.Array
    value: jax.Array

    def write(self, layer: jax.Array, positions_RT: jax.Array, key_RTGK: jax.Array, value_RTGK: jax.Array) -> Cache:
        """The cache with these tokens of one layer in it."""
        at = (layer, jnp.arange(positions_RT.shape[0])[:, None], positions_RT)
        return Cache(self.key.at[at].set(key_RTGK), self.value.at[at].set(value_RTGK))


class Places(NamedTuple):
    """Tokens, whatever the shape: their number in the row, segment and position."""

    order: jax.Array
    segment: jax.Array
    position: jax.Array


def sees(query: Places, key: Places, window: Window) -> jax.Array:
    """True where a query may look at a key: at itself and before, inside its segment and window. Bool, broadcast."""
    shared = query.segment - (query.segment - 1) % SEGMENT_PARTS  # part 0 of its segment; of padding one that is not
    mask = (query.order >= key.order) & ((key.segment == query.segment) | (key.segment == shared))
    return mask if window is None else mask & (key.position > query.position - window)
