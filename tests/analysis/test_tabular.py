"""One table of logits: which half of a pair moves, and where DPO and IPO end over a whole population of preferences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.analysis.field import pair_loss
from dpo_jax.analysis.tabular import one_step, population_minimiser

pytestmark = pytest.mark.usefixtures("x64")

REFERENCE = np.log([0.4, 0.1, 0.2, 0.25, 0.05])


def certain(actions: int) -> np.ndarray:
    """A total order: each action always beats those behind it."""
    return np.triu(np.ones((actions, actions)), 1)


@pytest.mark.parametrize(("name", "options"), [("dpo", {}), ("ipo", {"beta": 0.05}), ("hinge", {})])
def test_a_small_step_moves_log_probs_as_the_formula_says(name: str, options: dict[str, float]):
    logits, p = jnp.asarray([0.3, -0.2, 0.9, 0.0, -1.0]), np.array(jax.nn.softmax(jnp.asarray([0.3, -0.2, 0.9, 0, -1])))
    rate = 1e-6
    found = one_step(pair_loss(name, **options), logits, REFERENCE, chosen=2, rejected=1, learning_rate=rate)
    margin = (np.log(p[2]) - REFERENCE[2]) - (np.log(p[1]) - REFERENCE[1])
    slope = {"dpo": 0.1 / (1 + np.exp(0.1 * margin)), "ipo": 2 * (10 - margin), "hinge": 0.1}[name]
    others = np.full(5, -(p[2] - p[1]))
    others[[2, 1]] = 1 - p[2] + p[1], -(1 + p[2] - p[1])
    np.testing.assert_allclose(found.first_order_A, rate * slope * others, rtol=1e-9)
    np.testing.assert_allclose(found.happened_A, found.first_order_A, rtol=1e-3)


def test_rejected_falls_faster_exactly_when_chosen_is_likelier():
    """In log-probs; in probabilities chosen gains more than rejected loses, in just the same cases."""
    random, seen = np.random.default_rng(0), set()
    for _ in range(40):
        logits = jnp.asarray(random.normal(0, 1.5, 5))
        move = one_step(pair_loss("dpo"), logits, REFERENCE, chosen=0, rejected=1, learning_rate=1e-3).first_order_A
        p = np.array(jax.nn.softmax(logits))
        likelier = bool(p[0] > p[1])
        assert move[0] > 0 > move[1]
        assert bool(-move[1] > move[0]) == likelier
        assert bool(p[0] * move[0] > -p[1] * move[1]) == likelier
        seen.add(likelier)
    assert seen == {True, False}


def test_a_large_step_moves_the_border():
    """With d the change of the logits: faster exactly when pi_w e^d > pi_l, so also for likelihoods that are equal."""
    for log_ratio, faster in ((0.01, True), (0.0, True), (-0.04, True), (-0.06, False)):
        logits = jnp.asarray([log_ratio, 0.0, 0.5])
        reference = jax.nn.log_softmax(logits)  # margin 0: the slope is 0.1 / 2, and d = 0.05
        found = one_step(pair_loss("dpo"), logits, reference, chosen=0, rejected=1, learning_rate=1.0).happened_A
        assert bool(-found[1] > found[0]) == faster


@pytest.mark.parametrize("beta", [0.3, 4.0])
def test_dpo_over_all_pairs_is_the_tilted_reference(beta: float):
    rewards = np.array([0.5, -1.0, 1.2, 0.0, 0.7])
    wins = 1 / (1 + np.exp(rewards[None] - rewards[:, None]))  # Bradley-Terry
    found = population_minimiser(pair_loss("dpo", beta=beta), wins, jnp.asarray(REFERENCE))
    tilted = np.exp(REFERENCE + rewards / beta)
    np.testing.assert_allclose(np.exp(found), tilted / tilted.sum(), atol=1e-6)


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_ipo_stays_near_the_reference_where_dpo_goes_to_a_corner(tau: float):
    """Three actions in a total order that is always observed: Azar et al. 2023, arXiv:2310.12036."""
    uniform = jnp.full(3, -jnp.log(3.0))
    ipo = population_minimiser(pair_loss("ipo", beta=tau), certain(3), uniform)
    np.testing.assert_allclose(-np.diff(ipo), [1 / (3 * tau)] * 2, rtol=1e-6)
    fewer, more = (
        np.asarray(population_minimiser(pair_loss("dpo", beta=tau), certain(3), uniform, steps=steps))
        for steps in (10, 40)
    )
    assert (-np.diff(more) > 1.5 * -np.diff(fewer)).all() and np.exp(more[0]) > 1 - 1e-6


def test_counts_weigh_as_shares_do():
    wins = np.array([[0.0, 3.0], [1.0, 0.0]])
    uniform = jnp.log(jnp.full(2, 0.5))
    found = population_minimiser(pair_loss("dpo", beta=0.5), wins, uniform)
    assert found[0] - found[1] == pytest.approx(2 * np.log(3), rel=1e-6)


def test_an_action_is_not_compared_with_itself():
    """It would matter to a loss that reads more than the margin."""
    wins, uniform = certain(3) + 0.2, jnp.full(3, -jnp.log(3.0))
    found = [population_minimiser(pair_loss("nca_pair"), wins + more * np.eye(3), uniform) for more in (0, 9)]
    np.testing.assert_array_equal(*found)
