"""aot and aot_unpaired: ties, the order of the pairs, and pairs that are not real."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses import PairLogps, aot, aot_unpaired
from tests.losses.by_hand import random_pairs, softplus

# C - R = 5, -1, 2; c - r = 0, 4, -3; a = 1, -2, 6; b = -4, 3, 1.
POLICY = PairLogps(jnp.array([-1.0, -6.0, -2.0]), jnp.array([-6.0, -5.0, -4.0]))
REFERENCE = PairLogps(jnp.array([-2.0, -4.0, -8.0]), jnp.array([-2.0, -8.0, -5.0]))


def test_what_is_not_real_takes_no_rank():
    # Without the second pair: C - R = [2, 5], c - r = [-3, 0]: u = 5, 5. The ranks stand at the real pairs.
    real = jnp.array([True, False, True])
    found = aot(POLICY, REFERENCE, beta=0.5, where=real)
    np.testing.assert_allclose(found, [softplus(-2.5), 0.0, softplus(-2.5)], rtol=1e-6)
    # Without the first: a = [-2, 6], b = [1, 3]: u = -3, 3, smallest first.
    found = aot_unpaired(POLICY, REFERENCE, beta=0.5, where=jnp.array([False, True, True]))
    np.testing.assert_allclose(found, [0.0, softplus(1.5), softplus(-1.5)], rtol=1e-6)


@pytest.mark.parametrize("loss", [aot, aot_unpaired])
def test_no_order_of_the_pairs_changes_the_losses(loss, x64):
    policy, reference = random_pairs(0)
    order = np.random.default_rng(0).permutation(8)
    shuffled = (jax.tree.map(lambda x: x[order], pairs) for pairs in (policy, reference))
    np.testing.assert_allclose(loss(*shuffled), loss(policy, reference), rtol=1e-12)


@pytest.mark.parametrize("loss", [aot, aot_unpaired])
def test_ties_are_no_trouble(loss):
    same = PairLogps(jnp.full(4, -3.0), jnp.full(4, -5.0))
    value, slope = jax.value_and_grad(lambda p: loss(p, same).sum())(same)
    np.testing.assert_allclose(value, 4 * softplus(0.0), rtol=1e-6)
    np.testing.assert_allclose(slope.chosen, [-0.05] * 4, rtol=1e-6)


def test_an_infinite_log_prob_that_is_not_real_stays_behind_one_that_is():
    policy = POLICY._replace(chosen=jnp.array([-1.0, jnp.inf, -2.0]))
    found = aot(policy, REFERENCE, beta=0.5, where=jnp.array([True, False, True]))
    np.testing.assert_allclose(found, [softplus(-2.5), 0.0, softplus(-2.5)], rtol=1e-6)


@pytest.mark.parametrize("junk", [jnp.inf, -jnp.inf, jnp.nan])
@pytest.mark.parametrize("loss", [aot, aot_unpaired])
def test_what_is_not_real_gets_a_gradient_of_exactly_zero(loss, junk: float):
    real = jnp.array([True, False, True])
    policy, reference = (pairs._replace(chosen=jnp.where(real, pairs.chosen, junk)) for pairs in (POLICY, REFERENCE))
    slope = jax.grad(lambda p: loss(p, reference, where=real).sum())(policy)
    for gradient in slope[:2]:
        assert gradient[1] == 0 and (gradient[real] != 0).all()
