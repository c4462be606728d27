"""The exact denoiser of a known Gaussian, and where its flow carries a start.

Of data N(m, s^2), each number by itself, a noisy sample x is N(alpha m, V), V = alpha^2 s^2 + sigma^2. So the best
guesses are clean = m + alpha s^2 / V (x - alpha m) and noise = sigma / V (x - alpha m). The exact flow carries start z
to m + s (z - alpha m) / sqrt(V), alpha and V at t = 1.
"""

from __future__ import annotations

import functools
import hashlib

import jax
import jax.numpy as jnp

from dpo_jax.diffusion.draws import row_keys
from dpo_jax.diffusion.schedules import PREDICTIONS, SCHEDULES
from dpo_jax.types import row_words

SHAPE = (2, 3)
MEAN = jnp.array([[0.5, -1.0, 0.0], [2.0, 0.3, -0.2]])
SPREAD = jnp.array([[0.2, 1.0, 0.5], [0.1, 0.7, 1.5]])


def keys(count: int) -> jax.Array:
    ids = [hashlib.md5(str(number).encode()).hexdigest() for number in range(count)]
    return row_keys(row_words(ids), seed=0, epoch=0)


def of_data(mean, spread, kind, schedule, noisy, time):
    """The exact prediction."""
    signal = SCHEDULES[schedule](time)
    alpha, sigma = (share.reshape(-1, 1, 1) for share in signal)
    apart = (noisy - alpha * mean[None]) / (alpha**2 * spread[None] ** 2 + sigma**2)
    return PREDICTIONS[kind].target(mean[None] + alpha * spread[None] ** 2 * apart, sigma * apart, signal)


def exact(kind, schedule):
    return functools.partial(of_data, MEAN, SPREAD, kind, schedule)


def options(kind, schedule, **more):
    return {"schedule": SCHEDULES[schedule], "prediction": PREDICTIONS[kind], **more}


def carried(begin, schedule, mean=MEAN, spread=SPREAD):
    """Where the exact flow carries a start."""
    alpha, sigma = (share[0] for share in SCHEDULES[schedule](jnp.ones(1)))
    return mean[None] + spread[None] * (begin - alpha * mean[None]) / jnp.sqrt(alpha**2 * spread**2 + sigma**2)[None]
