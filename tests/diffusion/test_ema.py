"""The moving average by hand, and what it becomes after many steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.diffusion.ema import moved_average


def test_by_hand():
    average, params = {"a": {"w": jnp.array([1.0, 2.0])}}, {"a": {"w": jnp.array([3.0, -2.0])}}
    # d = min(0.9, 12 / 21) = 4/7 after 11 steps: 3/7 of the way.
    found = moved_average(average, params, 11, decay=0.9)["a"]["w"]
    np.testing.assert_allclose(found, [1 + 6 / 7, 2 - 12 / 7], rtol=1e-6)
    late = moved_average(average, params, 10**6, decay=0.9)["a"]["w"]
    np.testing.assert_allclose(late, [1.2, 1.6], rtol=1e-6)
    np.testing.assert_array_equal(moved_average(average, params, 10**6, decay=0.0)["a"]["w"], params["a"]["w"])


def test_what_stands_still_is_reached():
    step = jax.jit(moved_average)
    average = {"w": jnp.array(5.0)}
    for steps in range(1, 200):
        average = step(average, {"w": jnp.array(1.0)}, steps, decay=0.9)
    np.testing.assert_allclose(average["w"], 1.0, rtol=1e-6)


def test_a_small_share_is_not_lost():
    """decay * average + (1 - decay) * params would round twice; the dtype stays that of the average."""
    average = {"w": jnp.array(1.0, jnp.float32)}
    found = moved_average(average, {"w": jnp.array(1.5, jnp.bfloat16)}, 10**7, decay=0.9999)
    assert found["w"].dtype == jnp.float32
    np.testing.assert_allclose(found["w"] - 1.0, 5e-5, rtol=2e-2)
