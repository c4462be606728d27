"""Two pairs small enough to check by hand, and the two functions that most losses are made of."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from dpo_jax.types import PairLogps

# a = -10 + 11 = 1 and -30 + 28 = -2; b = -14 + 12 = -2 and -25 + 29 = 4; h = 3 and -6.
POLICY = PairLogps(jnp.array([-10.0, -30.0]), jnp.array([-14.0, -25.0]), jnp.array([5.0, 4.0]), jnp.array([4.0, 2.0]))
REFERENCE = PairLogps(jnp.array([-11.0, -28.0]), jnp.array([-12.0, -29.0]))


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def zeros(n: int = 1) -> PairLogps:
    return PairLogps(jnp.zeros(n), jnp.zeros(n))


def random_pairs(seed: int, n: int = 8) -> tuple[PairLogps, PairLogps]:
    """Policy, with token counts, and reference; float64 where that is enabled."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, 12, (2, n)).astype(float)
    logps = -random.gamma(2.0, 1.0, (2, n)) * counts
    frozen = logps + random.normal(0, 1.5, (2, n))
    return PairLogps(*map(jnp.asarray, (*logps, *counts))), PairLogps(*map(jnp.asarray, frozen))
