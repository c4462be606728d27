"""implicit_rewards, preference_metrics, kl_estimates: by hand, and the KL of a known distribution."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses import implicit_rewards, kl_estimates, preference_metrics
from tests.losses.by_hand import POLICY, REFERENCE


def test_rewards_and_metrics_by_hand():
    # a = 1, -2; b = -2, 4
    chosen, rejected = implicit_rewards(POLICY, REFERENCE, beta=0.5)
    np.testing.assert_allclose(chosen, [0.5, -1.0])
    np.testing.assert_allclose(rejected, [-1.0, 2.0])
    expected = {
        "rewards/chosen": [0.5, -1.0],
        "rewards/rejected": [-1.0, 2.0],
        "rewards/margins": [1.5, -3.0],
        "rewards/accuracies": [1.0, 0.0],
        "logps/chosen": [-10.0, -30.0],
        "logps/rejected": [-14.0, -25.0],
        "log_ratios/chosen": [1.0, -2.0],
        "log_ratios/rejected": [-2.0, 4.0],
        "log_ratios/chosen_below_reference": [0.0, 1.0],
    }
    found = preference_metrics(POLICY, REFERENCE, beta=0.5)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, err_msg=name)


def test_metrics_without_a_reference_by_hand():
    # per token -10/5 = -2, -30/4 = -7.5; -14/4 = -3.5, -25/2 = -12.5: the second pair is right only per token
    found = preference_metrics(POLICY, None, beta=2.0)
    np.testing.assert_allclose(found["rewards/chosen"], [-4.0, -15.0])
    np.testing.assert_allclose(found["rewards/margins"], [3.0, 10.0])
    np.testing.assert_array_equal(found["rewards/accuracies"], [1.0, 1.0])
    assert not any(name.startswith("log_ratios") for name in found)
    sums = preference_metrics(POLICY._replace(chosen_tokens=None, rejected_tokens=None), None, beta=2.0)
    np.testing.assert_allclose(sums["rewards/rejected"], [-28.0, -50.0])
    np.testing.assert_array_equal(sums["rewards/accuracies"], [1.0, 0.0])


def test_a_tie_counts_as_wrong_and_equality_is_not_below_the_reference():
    found = preference_metrics(REFERENCE, REFERENCE, beta=0.5)
    np.testing.assert_array_equal(found["rewards/accuracies"], [0.0, 0.0])
    np.testing.assert_array_equal(found["log_ratios/chosen_below_reference"], [0.0, 0.0])


@pytest.mark.parametrize("reference", [REFERENCE, None], ids=["reference", "none"])
def test_metrics_carry_no_gradient(reference):
    def total(policy):
        found = preference_metrics(policy, reference, beta=0.5)
        rewards = implicit_rewards(policy, REFERENCE, beta=0.5)
        return sum(value.sum() for value in [*found.values(), *rewards, *kl_estimates(policy.chosen, policy.rejected)])

    for leaf in jax.tree.leaves(jax.grad(total)(POLICY)):
        np.testing.assert_array_equal(leaf, 0.0)


def test_kl_estimates_by_hand():
    # u = 2, -1, 0
    found = kl_estimates(jnp.array([-3.0, -4.0, -5.0]), jnp.array([-5.0, -3.0, -5.0]))
    np.testing.assert_allclose(found.k1, [2.0, -1.0, 0.0])
    np.testing.assert_allclose(found.k2, [2.0, 0.5, 0.0])
    np.testing.assert_allclose(found.k3, [np.exp(-2) + 1, np.exp(1) - 2, 0.0], rtol=1e-6)


def test_kl_estimates_stay_finite_and_k3_is_never_negative():
    found = kl_estimates(jnp.array([-1e4, 0.0, -3.0]), jnp.array([0.0, -1e4, -3.0 + 1e-4]))
    assert all(jnp.isfinite(estimate).all() for estimate in found)
    assert (found.k3 >= 0).all()


def test_k3_of_a_policy_close_to_the_reference_is_not_lost_to_rounding():
    # u^2 / 2 - u^3 / 6 + ... with u = 0.01; e^-u - 1 would be rounded to 6e-8
    np.testing.assert_allclose(kl_estimates(jnp.array([0.01]), jnp.zeros(1)).k3, [4.98338e-5], rtol=1e-4)


def test_mean_estimates_over_a_known_distribution_are_its_kl(x64):
    """Exactly, by weighing all outcomes; and on samples, within their noise."""
    policy, reference = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.5, 0.3])
    kl = (policy * np.log(policy / reference)).sum()
    estimates = kl_estimates(jnp.log(policy), jnp.log(reference))
    np.testing.assert_allclose((policy * estimates.k1).sum(), kl, rtol=1e-12)
    np.testing.assert_allclose((policy * estimates.k3).sum(), kl, rtol=1e-12)
    samples = jax.random.categorical(jax.random.key(0), jnp.log(policy), shape=(20_000,))
    sampled = kl_estimates(jnp.log(policy)[samples], jnp.log(reference)[samples])
    for estimate in (sampled.k1, sampled.k3):
        assert abs(estimate.mean() - kl) < 4 * estimate.std() / np.sqrt(samples.size)
    assert sampled.k3.std() < sampled.k1.std()
