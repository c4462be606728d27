"""Packed rows and shared prompts unpacked inside attention, for forms that know causal sequences and nothing else.

Every sequence, a prompt and one response, is copied to a row of its own; the results are put back, a token that
several share taking its own from the first. Exact: a token of the prompt sees the same in each.

Dimension key: U parts of the rows, each on one device or more; M sequences in a part, L tokens in a sequence, N tokens
in a part, S tokens in all its sequences, H heads of any kind, K head size, R rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Causal = Callable[..., jax.Array]
"""`causal(segments_BL, query_BLHK, key_BLGK, value_BLGK)`: rows whose padding, segment 0, is at their end."""


class Unpacking(NamedTuple):
    """Places of sequences in the rows, and of tokens in the sequences; -1 is none. Without any the rows stay."""

    sequences: tuple[jax.Array, ...]  # [U, M, L] each, see `PairBatch`
    homes_UN2: jax.Array | None = None  # the first and the second place of a token in the sequences of its part
    owned_US: jax.Array | None = None  # the token of whose places this is the first


def unpacking_of(sequences: Sequence[jax.Array], *, rows: int, length: int) -> Unpacking:
    """Unpacking of these sequences: their places looked up from both sides, once for all layers."""
    if not sequences:
        return Unpacking(())
    places_US = jnp.concatenate([each.reshape(each.shape[0], -1) for each in sequences], axis=1)
    tokens, places = rows * length // places_US.shape[0], places_US.shape[1]

    def of_part(places_S: jax.Array) -> tuple[jax.Array, jax.Array]:
        token_S = jnp.where(places_S < 0, tokens, places_S)  # what is behind the end is dropped
        first_N = jnp.full(tokens, places).at[token_S].min(jnp.arange(places), mode="drop")
        last_N = jnp.full(tokens, -1).at[token_S].max(jnp.arange(places), mode="drop")
        homes_N2 = jnp.stack([jnp.where(last_N < 0, -1, first_N), jnp.where(last_N == first_N, -1, last_N)], axis=1)
        own_S = first_N[jnp.maximum(places_S, 0)] == jnp.arange(places)
        return homes_N2, jnp.where((places_S >= 0) & own_S, places_S, -1)

    return Unpacking(tuple(sequences), *jax.vmap(of_part)(places_US))


def attend_unpacked(
    query_RTHK: jax.Array,
    key_RTGK: jax.Array,
    value_RTGK: jax.Array,
    segments_RT: jax.Array,
    unpacking: Unpacking,
    causal: Causal,
) -> jax.Array:
    """Attention by `causal` over the sequences, or over the rows as they are, [R, T, H, K]; 0 on padding."""
    if not unpacking.sequences:
        mixed_RTHK = causal(segments_RT, query_RTHK, key_RTGK, value_RTGK)
        return jnp.where((segments_RT > 0)[:, :, None, None], mixed_RTHK, 0)
    assert unpacking.homes_UN2 is not None and unpacking.owned_US is not None
    parts = len(unpacking.homes_UN2)
    places_US = jnp.concatenate([each.reshape(parts, -1) for each in unpacking.sequences], axis=1)
    copied = [
        _moved(x.reshape(parts, -1, *x.shape[2:]), places_US[..., None], unpacking.homes_UN2)
        for x in (query_RTHK, key_RTGK, value_RTGK)
    ]
    ends = np.cumsum([each[0].size for each in unpacking.sequences])
    mixed = []
    for each, end in zip(unpacking.sequences, ends, strict=True):
        _, count, length = each.shape
        own = [x[:, end - count * length : end].reshape(parts * count, length, *x.shape[2:]) for x in copied]
        there_BL = (each >= 0).astype(jnp.int32).reshape(parts * count, length)
        mixed.append(causal(there_BL, *own).reshape(parts, count * length, *query_RTHK.shape[2:]))
    mixed_USHK = jnp.concatenate(mixed, axis=1)
    return _moved(mixed_USHK, unpacking.homes_UN2[..., :1], unpacking.owned_US[..., None]).reshape(query_RTHK.shape)


@jax.custom_vjp
def _moved(x_UAHK: jax.Array, places_UBn: jax.Array, back_UAn: jax.Array) -> jax.Array:
    """Sum of what stands at up to n places, [U, B, H, K]; `back` says which of the sums a place is part of.

    So the backward pass gathers too: a scatter-add is slow on GPUs, and sums in an order of its own.
    """
    gathered = [
        jnp.where(place >= 0, jnp.take_along_axis(x_UAHK, jnp.maximum(place, 0), axis=1, mode="clip"), 0)
        for place in jnp.moveaxis(places_UBn, 2, 0)[..., None, None]
    ]
    return sum(gathered[1:], start=gathered[0])


_moved.defvjp(
    lambda x, places, back: (_moved(x, places, back), (places, back)),
    lambda saved, grad: (_moved(grad, saved[1], saved[0]), None, None),
)
