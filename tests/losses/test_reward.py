"""bradley_terry, preference_score by law, plackett_luce by hand, and the edges of what they may be given."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dpo_jax.losses.reward import bradley_terry, plackett_luce, preference_score

CHOSEN, REJECTED = jnp.array([1.5, -1.0]), jnp.array([0.5, 2.0])
RANKED = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 3.0]])
SCORERS = [bradley_terry, preference_score]


def by_definition(rewards: list[float]) -> float:
    return sum(math.log(sum(math.exp(r) for r in rewards[k:])) - rewards[k] for k in range(len(rewards)))


def test_a_shift_of_all_rewards_changes_nothing_but_the_centring():
    np.testing.assert_allclose(bradley_terry(CHOSEN + 7, REJECTED + 7), bradley_terry(CHOSEN, REJECTED), rtol=1e-6)
    np.testing.assert_allclose(plackett_luce(RANKED + 7), plackett_luce(RANKED), rtol=1e-5)


@pytest.mark.parametrize("loss", SCORERS)
def test_scorers_far_out(loss):
    far = jnp.linspace(-300.0, 300.0, 61)
    value, slopes = jax.jit(jax.value_and_grad(lambda *scores: loss(*scores).sum(), (0, 1)))(far, -far)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((value, slopes)))
    np.testing.assert_allclose(loss(jnp.array([-300.0]), jnp.array([300.0])), [600.0], rtol=1e-6)


@pytest.mark.parametrize("loss", SCORERS)
def test_scorers_refuse_other_shapes(loss):
    with pytest.raises(AssertionError):
        loss(CHOSEN, REJECTED[:1])


def test_plackett_luce_by_hand():
    # the best first: log(e^2 + 1 + e^-1) - 2 + log(1 + e^-1) - 0 + 0, and likewise
    np.testing.assert_allclose(plackett_luce(RANKED), [by_definition(row) for row in RANKED.tolist()], rtol=1e-6)
    np.testing.assert_allclose(plackett_luce(jnp.zeros((1, 5))), [math.log(120.0)], rtol=1e-6)


def test_plackett_luce_of_two_is_bradley_terry():
    np.testing.assert_allclose(
        plackett_luce(jnp.stack([CHOSEN, REJECTED], axis=1)), bradley_terry(CHOSEN, REJECTED), rtol=1e-6
    )


def test_probabilities_of_all_rankings_sum_to_one():
    rewards = jnp.array([0.3, -1.2, 2.0])
    orders = jnp.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    np.testing.assert_allclose(jnp.exp(-plackett_luce(rewards[orders])).sum(), 1.0, rtol=1e-6)


@jax.jit
def value_and_slope(rewards: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array]:
    total = lambda rewards: (plackett_luce(rewards, where).sum(), plackett_luce(rewards, where))  # noqa: E731
    slope, value = jax.grad(total, has_aux=True)(rewards)
    return value, slope


@pytest.mark.parametrize("rubbish", [0.0, 1e30, -1e30, jnp.inf, -jnp.inf, jnp.nan])
def test_absent_responses_neither_count_nor_compete(rubbish: float):
    where = jnp.array(
        [[True, True, False], [False, True, True], [True, False, True], [False, True, False], [False] * 3]
    )
    rewards = jnp.where(where, jnp.array([[2.0, 0.5, -1.0]]).repeat(5, axis=0), rubbish)
    value, slope = value_and_slope(rewards, where)
    expected = [by_definition([2.0, 0.5]), by_definition([0.5, -1.0]), by_definition([2.0, -1.0]), 0.0, 0.0]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    # row 0: d/dr_0 = s(2 - 0.5) - 1, and the opposite for r_1
    push = 1 / (1 + math.exp(1.5))
    np.testing.assert_allclose(slope[0], [-push, push, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(jnp.where(where, 0.0, slope), 0.0)
    np.testing.assert_array_equal(slope[3:], 0.0)


def test_absent_responses_do_not_trip_the_search_for_nans():
    where = jnp.array([[True, True, False], [False] * 3])
    with jax.debug_nans(True):
        assert jnp.isfinite(plackett_luce(RANKED, where)).all()


def test_plackett_luce_far_out():
    rewards = jnp.array([[-300.0, 0.0, 300.0], [300.0, 0.0, -300.0], [-300.0, -300.0, -300.0]])
    value, slope = value_and_slope(rewards, jnp.ones((3, 3), bool))
    np.testing.assert_allclose(value, [900.0, 0.0, math.log(6.0)], rtol=1e-5)
    np.testing.assert_allclose(slope[0], [-1.0, -1.0, 2.0])  # two choices, both against the last one


def test_gradient_of_plackett_luce_equals_central_differences(x64):
    rewards, where = jnp.asarray(RANKED, jnp.float64), jnp.array([[True, True, True], [True, False, True]])
    _, gradient = value_and_slope(rewards, where)
    for i in np.ndindex(2, 3):
        up, down = (value_and_slope(rewards.at[i].add(step), where)[0].sum() for step in (1e-5, -1e-5))
        np.testing.assert_allclose(gradient[i], (up - down) / 2e-5, atol=1e-9)


def test_width_and_shape_of_plackett_luce(x64):
    assert plackett_luce(RANKED.astype(jnp.float64)).dtype == jnp.float64
    narrow = plackett_luce(RANKED.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.float32 and narrow.shape == (2,)
    np.testing.assert_allclose(narrow, plackett_luce(RANKED), rtol=1e-6)
    with pytest.raises(AssertionError):
        plackett_luce(RANKED[0])
    with pytest.raises(AssertionError):
        plackett_luce(RANKED, jnp.ones((2, 2), bool))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_plackett_luce_on_a_mesh(kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(RANKED, NamedSharding(mesh, P("data")))
        np.testing.assert_allclose(jax.jit(plackett_luce)(sharded), plackett_luce(RANKED), rtol=1e-6)
