"""The dense form by hand: all others are tested against it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.models.attention import AttentionMask, attend
from dpo_jax.models.attention.dense import cache_mask, row_mask

POSITIONS = jnp.array([[0, 1, 2, 1, 0, 0]])
SEGMENTS = jnp.array([[1, 1, 2, 3, 4, 0]])  # a prompt of two tokens, two responses of one, another segment, padding


@pytest.mark.parametrize("backend", ["dense", "blocks"])
@pytest.mark.parametrize(("soft_cap", "wanted"), [(None, 5.0), (np.log(3.0), 4 + 4 / (1 + 3 ** np.tanh(1.0)))])
def test_attention_by_hand(backend: str, soft_cap: float | None, wanted: float):
    # The second query over two keys with scores 0 and log 3 (head size 1): weights 1/4 and 3/4 over the values 8 and 4.
    # Bent below log 3, the second score is log(3) tanh(1).
    query, key = jnp.ones((1, 2, 1, 1)), jnp.array([0.0, np.log(3.0)]).reshape(1, 2, 1, 1)
    value = jnp.array([8.0, 4.0]).reshape(1, 2, 1, 1)
    mask = AttentionMask(jnp.array([[0, 1]]), jnp.ones((1, 2), jnp.int32), backend)
    mixed = attend(query, key, value, mask, soft_cap=soft_cap).ravel()
    np.testing.assert_allclose(mixed, [8.0, wanted], rtol=1e-6)


def test_who_sees_whom():
    wanted = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],  # not the other response
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    np.testing.assert_array_equal(row_mask(AttentionMask(POSITIONS, SEGMENTS, "dense"))[0], wanted)


def test_a_window_goes_by_position():
    positions = jnp.array([[0, 1, 2, 2, 0, 0]])
    mask = row_mask(AttentionMask(positions, SEGMENTS, "dense", windows=(None, 2), kind=1))[0]
    np.testing.assert_array_equal(mask[2], [0, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(mask[3], [0, 1, 0, 1, 0, 0])  # two places behind the prompt, one position
    mask = row_mask(AttentionMask(positions, SEGMENTS, "dense", windows=(None, 2), kind=0))[0]
    np.testing.assert_array_equal(mask[3], [1, 1, 0, 1, 0, 0])


@pytest.mark.parametrize(("windows", "wanted"), [((None,), [1, 1, 1, 0]), ((2,), [0, 1, 1, 0])])
def test_a_cache_is_seen_up_to_the_own_position(windows: tuple, wanted: list[int]):
    np.testing.assert_array_equal(cache_mask(AttentionMask(jnp.array([[2]]), None, "blocks", windows), 4)[0, 0], wanted)
