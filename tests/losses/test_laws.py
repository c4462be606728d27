"""Identities between losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dpo_jax import losses
from dpo_jax.losses import PairLogps
from tests.losses.by_hand import random_pairs

LOG_2 = 0.6931471805599453


@given(seed=st.integers(0, 1000), beta=st.floats(0.01, 2.0))
def test_losses_that_are_dpo_at_the_end_of_a_knob(seed: int, beta: float):
    with jax.enable_x64(True):
        policy, reference = random_pairs(seed)
        zero = jnp.zeros_like(policy.chosen)
        expected = losses.dpo(policy, reference, beta=beta)
        others = [
            losses.dpo(policy, reference, beta=beta, label_smoothing=0.0),
            losses.robust_dpo(policy, reference, beta=beta, label_smoothing=0.0),
            losses.f_dpo(policy, reference, beta=beta, divergence="reverse_kl"),
            losses.f_dpo(policy, reference, beta=beta, divergence="alpha", alpha=0.0),
            losses.dpop(policy, reference, beta=beta, penalty=0.0),
            losses.r_dpo(policy, reference, beta=beta, penalty=0.0),
            losses.tdpo1(policy, reference, zero, zero, beta=beta),
            losses.tdpo2(policy, reference, zero + 1, zero + 2, beta=beta, alpha=0.0),
        ]
        for other in others:
            np.testing.assert_allclose(other, expected, rtol=1e-12)


@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50))
def test_a_function_of_the_prompt_alone_changes_nothing(seed: int, shift: float):
    """Adding c(x) to both rewards, by policy or by reference."""
    with jax.enable_x64(True):
        policy, reference = random_pairs(seed)
        moved = policy._replace(chosen=policy.chosen + shift, rejected=policy.rejected + shift)
        frozen = PairLogps(reference.chosen + shift, reference.rejected + shift)
        for loss in (losses.dpo, losses.robust_dpo, losses.hinge, losses.exo_pair, losses.discopop):
            expected = loss(policy, reference)
            np.testing.assert_allclose(loss(moved, reference), expected, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(loss(policy, frozen), expected, rtol=1e-9, atol=1e-12)


def test_ld_with_alpha_one_is_dpo(x64):
    random = np.random.default_rng(0)
    mask = jnp.asarray(np.arange(7) < random.integers(1, 8, (4, 2, 1)))
    policy, reference = (jnp.asarray(random.normal(-2, 1, (4, 2, 7))) for _ in range(2))
    plain, reduced = (
        losses.dpo(*(PairLogps(*reduce(logps).T) for logps in (policy, reference)))
        for reduce in (
            lambda logps: jnp.where(mask, logps, 0).sum(axis=2),
            lambda logps: losses.ld_reduce(logps, mask, alpha=1.0),
        )
    )
    np.testing.assert_allclose(reduced, plain, rtol=1e-12)


def test_simpo_of_one_token_without_a_target_is_cpo(x64):
    policy, _ = random_pairs(1)
    one = jnp.ones_like(policy.chosen)
    single = policy._replace(chosen_tokens=one, rejected_tokens=one)
    np.testing.assert_allclose(
        losses.simpo(single, beta=0.7, gamma=0.0, label_smoothing=0.1),
        losses.cpo(policy, beta=0.7, label_smoothing=0.1),
        rtol=1e-12,
    )


def test_without_a_reference_is_with_one_of_zeros(x64):
    policy, _ = random_pairs(2)
    zero = PairLogps(jnp.zeros_like(policy.chosen), jnp.zeros_like(policy.chosen))
    np.testing.assert_allclose(losses.cpo(policy, beta=0.3), losses.dpo(policy, zero, beta=0.3), rtol=1e-12)
    np.testing.assert_allclose(losses.slic_hf(policy, delta=1.0), losses.hinge(policy, zero, beta=1.0), rtol=1e-12)
    np.testing.assert_allclose(
        losses.simpo(policy, beta=2.0, gamma=0.0), losses.length_normalized_dpo(policy, zero, beta=2.0), rtol=1e-12
    )


def test_a_pair_is_two_completions_with_labels(x64):
    """apo_zero and bco_pair are their unpaired forms of the chosen response as good and the rejected one as bad."""
    policy, reference = random_pairs(3)
    good = jnp.ones(policy.chosen.shape, bool)
    for pair, single in (
        (losses.apo_zero(policy, reference, beta=0.3), lambda *x: losses.apo_zero_unpaired(*x, beta=0.3)),
        (losses.bco_pair(policy, reference, beta=0.3, delta=0.2), lambda *x: losses.bco(*x, 0.2, beta=0.3)),
    ):
        apart = single(policy.chosen, reference.chosen, good) + single(policy.rejected, reference.rejected, ~good)
        np.testing.assert_allclose(pair, apart, rtol=1e-12)


def test_over_a_population_dpo_ends_at_the_tilted_reference_and_ipo_near_the_reference(x64):
    """Rafailov et al. 2023, eq. 4; Azar et al. 2023, eq. 10. Both are convex in the margins: one place has slope 0."""
    random = np.random.default_rng(0)
    reference_V, rewards_V, beta = jax.nn.log_softmax(random.normal(size=5)), jnp.asarray(random.normal(size=5)), 0.3
    i, j = np.triu_indices(5, 1)
    preferred = jax.nn.sigmoid(rewards_V[i] - rewards_V[j])  # Bradley and Terry: how often i is chosen

    def population(loss, logps_V):
        ways = ((preferred, i, j), (1 - preferred, j, i))
        pairs = lambda logps_V, better, worse: PairLogps(logps_V[better], logps_V[worse])  # noqa: E731
        each = [share * loss(pairs(logps_V, *way), pairs(reference_V, *way), beta=beta) for share, *way in ways]
        return jnp.stack(each).sum()

    tilted_V = jax.nn.log_softmax(reference_V + rewards_V / beta)
    np.testing.assert_allclose(jax.grad(population, argnums=1)(losses.dpo, tilted_V), 0.0, atol=1e-12)
    assert jnp.abs(jax.grad(population, argnums=1)(losses.dpo, reference_V)).max() > 1e-2
    # With a preference that is certain, DPO has no end; IPO stops 1 / (2 beta) from the reference.
    certain = PairLogps(jnp.array([-2.0 + 0.5 / beta]), jnp.array([-3.0]), jnp.ones(1), jnp.ones(1))
    frozen = PairLogps(jnp.array([-2.0]), jnp.array([-3.0]))
    assert jnp.abs(jax.grad(lambda policy: losses.ipo(policy, frozen, beta=beta).sum())(certain).chosen).max() < 1e-12
    assert jax.grad(lambda policy: losses.dpo(policy, frozen, beta=beta).sum())(certain).chosen[0] < -1e-2
