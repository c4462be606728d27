"""Random draws of a row: a function of (seed, row id, epoch) alone, whatever else is in the batch.

So both members of a pair see the same time and noise, a second pass over the reference draws what the first one drew,
and errors of the reference may be stored: K of them where the epoch is counted modulo K.

Dimension key: B rows (pairs), W words of a row id; behind B a sample has any shape, written X.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax.diffusion.schedules import STEPS

_TIME, _NOISE, _DROPPED, _START, _STEP = range(5)


class Draw(NamedTuple):
    """The time of each row, float32 [B] in [0.001, 1], and its noise, float32 [B, X], standard normal."""

    time_B: jax.Array
    noise_BX: jax.Array


def row_keys(words_BW: jax.Array, *, seed: int | jax.Array, epoch: int | jax.Array) -> jax.Array:
    """A random key for each row, [B]. Seed and epoch, [] or [B], may be traced."""
    # Named, because stored errors must be those of a later run, whatever generator it prefers.
    root = jax.random.key(seed, impl="threefry2x32")
    rows = words_BW.shape[:1]
    keys_B = _fold(jnp.broadcast_to(root, rows), jnp.broadcast_to(epoch, rows))
    for words_B in jnp.moveaxis(jnp.asarray(words_BW), 1, 0):
        keys_B = _fold(keys_B, words_B)
    return keys_B


def draw(keys_B: jax.Array, shape_X: Sequence[int]) -> Draw:
    """Time and noise for training, or for the errors of a reference; time is uniform."""
    least = 1.0 / STEPS
    time_B = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32, least, 1.0))(_for(keys_B, _TIME))
    return Draw(time_B, _normal(_for(keys_B, _NOISE), shape_X))


def dropped(keys_B: jax.Array, *, rate: float | jax.Array) -> jax.Array:
    """Rows that are trained without their condition, bool [B]: guidance needs both."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, rate))(_for(keys_B, _DROPPED))


def start(keys_B: jax.Array, shape_X: Sequence[int]) -> jax.Array:
    """The noise from which a sample of each row starts, float32 [B, X]."""
    return _normal(_for(keys_B, _START), shape_X)


def step_noise(keys_B: jax.Array, step: jax.Array, shape_X: Sequence[int]) -> jax.Array:
    """The noise that a sampler adds in one of its steps, float32 [B, X]."""
    keys_B = _for(keys_B, _STEP)
    return _normal(_fold(keys_B, jnp.broadcast_to(step, keys_B.shape)), shape_X)


def _for(keys_B: jax.Array, purpose: int) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, purpose))(keys_B)


def _fold(keys_B: jax.Array, words_B: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in)(keys_B, words_B)


def _normal(keys_B: jax.Array, shape_X: Sequence[int]) -> jax.Array:
    return jax.vmap(lambda key: jax.random.normal(key, tuple(shape_X), jnp.float32))(keys_B)
