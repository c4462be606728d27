"""Which tokens top-k and top-p leave, against sorting; ties and the ends of both knobs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.models import sampling
from dpo_jax.models.truncation import least_drawn

LEAST = jax.jit(least_drawn)
DRAW = jax.jit(sampling.draw)
INF = np.inf
ROWS = 50
LOGITS_RV, KEYS_R = 3 * jax.random.normal(jax.random.key(0), (ROWS, 600)), jax.random.split(jax.random.key(1), ROWS)


def may_be_drawn(scores_V: np.ndarray, top_p: float, top_k: int) -> np.ndarray:
    """By definition, one row in float64: fewer than k tokens, and less than p of what k leaves, are likelier."""
    better_VV = scores_V[None, :] > scores_V[:, None]
    mass_V = np.exp(scores_V - scores_V.max())
    if top_k:
        mass_V = np.where(better_VV.sum(axis=1) < top_k, mass_V, 0.0)
    ahead_V = np.where(better_VV, mass_V[None, :], 0.0).sum(axis=1) / mass_V.sum()
    return (mass_V > 0) & ((top_p == 1) | (ahead_V < top_p) | (ahead_V == 0))


@pytest.mark.parametrize("spread", [1e-3, 3.0, 30.0])
def test_what_is_left_is_what_sorting_leaves(spread):
    logits_RV = np.random.default_rng(0).normal(-1.0, spread, (9, 70)).astype(np.float32)
    logits_RV[:, 60:] = -INF  # beyond the vocabulary
    logits_RV[0] = np.abs(logits_RV[0])
    logits_RV[0, 60:] = -INF
    seen = set()
    for temperature, top_p, top_k in itertools.product((0.5, 2.0), (0.05, 0.31, 0.9, 0.999, 1.0), (0, 1, 7, 60, 1000)):
        least_R = np.asarray(LEAST(logits_RV, temperature, top_p=top_p, top_k=top_k))
        for logits_V, least in zip(logits_RV, least_R, strict=True):
            expected_V = may_be_drawn(logits_V.astype(np.float64) / temperature, top_p, top_k)
            assert ((logits_V >= least) & (logits_V > -INF)).tolist() == expected_V.tolist()
            seen.add(int(expected_V.sum()))
    assert {1, 7, 60} < seen


@pytest.mark.parametrize(
    ("logits", "top_p", "top_k", "kept"),
    [
        ([0.0, 1.0, 2.0, 3.0], 1.0, 0, [0, 1, 2, 3]),
        ([0.0, 1.0, 2.0, 3.0], 1.0, 2, [2, 3]),
        ([0.0, 1.0, 2.0, 3.0], 1.0, 9, [0, 1, 2, 3]),
        ([0.0, 1.0, 2.0, 3.0], 0.0, 0, [3]),
        ([-1.0, -1.0, -3.0, -1.0], 1.0, 1, [0, 1, 3]),  # three tie for the first place
        ([-1.0, -1.0, -3.0, -1.0], 0.1, 0, [0, 1, 3]),
        ([np.log(4), np.log(3), np.log(2), 0.0], 0.39, 0, [0]),  # 0.4, 0.3, 0.2, 0.1
        ([np.log(4), np.log(3), np.log(2), 0.0], 0.41, 0, [0, 1]),
        ([np.log(4), np.log(3), np.log(2), 0.0], 0.56, 2, [0]),  # 4 / 7 = 0.571 of the two that are left
        ([np.log(4), np.log(3), np.log(2), 0.0], 0.58, 2, [0, 1]),
        ([0.0, -0.0, -INF, -INF], 0.4, 0, [0, 1]),
        ([3e38, -3e38, 0.0, 1e-30], 1.0, 3, [0, 2, 3]),
        ([3e38, -3e38, 0.0, 1e-30], 1.0, 2, [0, 3]),
        ([-INF, -INF, -2.5, -INF], 0.5, 3, [2]),
    ],
)
def test_by_hand(logits, top_p, top_k, kept):
    logits_RV = jnp.array([logits], jnp.float32)
    stays_RV = logits_RV >= LEAST(logits_RV, 1.0, top_p=top_p, top_k=top_k)[:, None]
    assert np.flatnonzero(stays_RV).tolist() == kept


def test_a_hot_distribution_is_cut_as_it_is_drawn_from():
    logits_RV = jnp.log(jnp.array([[16.0, 4.0, 1.0]]))
    # At temperature 2 the shares are 4/7, 2/7, 1/7; at 1 they are 16/21, 4/21, 1/21.
    assert LEAST(logits_RV, 2.0, top_p=0.7, top_k=0) == logits_RV[0, 1]
    assert LEAST(logits_RV, 1.0, top_p=0.7, top_k=0) == logits_RV[0, 0]


def test_turned_off_the_draws_are_those_without_it_to_the_bit(monkeypatch):
    off_R = DRAW(LOGITS_RV, KEYS_R, 0.7, top_p=1.0, top_k=0)
    monkeypatch.setattr(sampling, "least_drawn", lambda *_, **__: jnp.full(ROWS, -jnp.inf))
    assert off_R.tolist() == jax.jit(lambda: sampling.draw(LOGITS_RV, KEYS_R, 0.7))().tolist()


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(0.0, 0.5, 7), (2.0, 0.0, 0), (2.0, 1.0, 1)])
def test_temperature_zero_and_the_narrowest_knobs_take_the_likeliest(temperature, top_p, top_k):
    drawn_R = DRAW(LOGITS_RV, KEYS_R, temperature, top_p=top_p, top_k=top_k)
    assert drawn_R.tolist() == jnp.argmax(LOGITS_RV, axis=-1).tolist()
