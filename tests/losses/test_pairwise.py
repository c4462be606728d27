"""dpo, robust_dpo, ipo, hinge, exo_pair, dpop, discopop: by hand, by law, and where floats end."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses import PairLogps, discopop, dpo, dpop, exo_pair, hinge, ipo, robust_dpo
from tests.losses.by_hand import POLICY, REFERENCE, random_pairs, sigmoid, softplus, zeros


def pair_with_margin(*h: float) -> PairLogps:
    return PairLogps(jnp.array(h), jnp.zeros(len(h)))


def test_dpo_by_hand():
    # h = 3 and -6
    np.testing.assert_allclose(dpo(POLICY, REFERENCE, beta=0.5), [softplus(-1.5), softplus(3.0)], rtol=1e-6)


def test_label_smoothing_by_hand():
    # e of the weight goes to the flipped pair
    expected = [0.8 * softplus(-1.5) + 0.2 * softplus(1.5), 0.8 * softplus(3.0) + 0.2 * softplus(-3.0)]
    np.testing.assert_allclose(dpo(POLICY, REFERENCE, beta=0.5, label_smoothing=0.2), expected, rtol=1e-6)


def test_a_soft_label_is_a_smoothing_per_pair():
    # The chosen response wins with probability p: the expected loss, p = 0.9 and 0.6.
    soft = dpo(POLICY, REFERENCE, beta=0.5, label_smoothing=1.0 - jnp.array([0.9, 0.6]))
    expected = [0.9 * softplus(-1.5) + 0.1 * softplus(1.5), 0.6 * softplus(3.0) + 0.4 * softplus(-3.0)]
    np.testing.assert_allclose(soft, expected, rtol=1e-6)


def test_gradient_of_dpo_is_minus_beta_sigmoid_of_minus_beta_h(x64):
    policy, reference = random_pairs(0)
    h = np.asarray((policy.chosen - reference.chosen) - (policy.rejected - reference.rejected))
    gradient = jax.grad(lambda p: dpo(p, reference, beta=0.3).sum())(policy)
    expected = -0.3 / (1 + np.exp(0.3 * h))
    np.testing.assert_allclose(gradient.chosen, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient.rejected, -expected, rtol=1e-12)


def test_far_out_the_loss_is_still_the_line_it_tends_to():
    # log(sigmoid(-600)) is -inf in float32; the loss is 600. At the other end it is 0, and not below.
    np.testing.assert_array_equal(dpo(pair_with_margin(-600.0, 600.0), zeros(2), beta=1.0), [600.0, 0.0])


def test_robust_dpo_by_hand():
    # (0.8 L(h) - 0.2 L(-h)) / 0.6
    expected = [
        (0.8 * softplus(-1.5) - 0.2 * softplus(1.5)) / 0.6,
        (0.8 * softplus(3.0) - 0.2 * softplus(-3.0)) / 0.6,
    ]
    np.testing.assert_allclose(robust_dpo(POLICY, REFERENCE, beta=0.5, label_smoothing=0.2), expected, rtol=1e-6)


def test_robust_dpo_is_unbiased_under_flipped_labels(x64):
    """Its mean over labels that are flipped with probability e is the DPO loss of the true labels."""
    policy, reference = random_pairs(1)
    flipped_policy, flipped_reference = (PairLogps(p.rejected, p.chosen) for p in (policy, reference))
    e = 0.3
    right = robust_dpo(policy, reference, label_smoothing=e)
    wrong = robust_dpo(flipped_policy, flipped_reference, label_smoothing=e)
    np.testing.assert_allclose((1 - e) * right + e * wrong, dpo(policy, reference), rtol=1e-12)


def test_robust_dpo_is_unbounded_below():
    assert robust_dpo(pair_with_margin(1e4), zeros(), label_smoothing=0.1)[0] < -100


def test_ipo_by_hand():
    # a/n_w - b/n_l = 1/5 + 2/4 = 0.7 and -2/4 - 4/2 = -2.5; the target is 1/(2 * 0.5) = 1
    np.testing.assert_allclose(ipo(POLICY, REFERENCE, beta=0.5), [0.3**2, 3.5**2], rtol=1e-6)
    np.testing.assert_allclose(ipo(POLICY, REFERENCE, beta=0.5, average=False), [2.0**2, 7.0**2], rtol=1e-6)


def test_ipo_counts_tokens_of_the_policy_even_where_log_ratios_are_zero():
    policy = PairLogps(jnp.array([-3.0]), jnp.array([-4.0]), jnp.array([3.0]), jnp.array([4.0]))
    np.testing.assert_allclose(ipo(policy, policy, beta=0.5), [1.0])


def test_hinge_by_hand():
    np.testing.assert_allclose(hinge(POLICY, REFERENCE, beta=0.25), [0.25, 2.5])
    np.testing.assert_allclose(hinge(POLICY, REFERENCE, beta=0.5), [0.0, 4.0])


def test_exo_pair_by_hand():
    def expected(x: float, e: float) -> float:
        return sigmoid(x) * (-softplus(-x) - math.log(1 - e)) + sigmoid(-x) * (-softplus(x) - math.log(e))

    found = exo_pair(POLICY, REFERENCE, beta=0.5, label_smoothing=0.1)
    np.testing.assert_allclose(found, [expected(1.5, 0.1), expected(-3.0, 0.1)], rtol=1e-5)


def test_exo_pair_is_least_where_the_policy_has_learnt_the_smoothed_label(x64):
    # It is a KL divergence: 0 where sigmoid(x) = 1 - e, and nowhere negative.
    best = math.log(0.9 / 0.1)
    margins = jnp.linspace(best - 5, best + 5, 101)
    found = exo_pair(PairLogps(margins, jnp.zeros(101)), zeros(101), beta=1.0, label_smoothing=0.1)
    np.testing.assert_allclose(found[50], 0.0, atol=1e-12)
    assert (np.delete(found, 50) > 0).all()


def test_dpop_by_hand():
    # The chosen response fell only in the second pair, by 2 nats: h = 3, and -6 - 3 * 2 = -12.
    np.testing.assert_allclose(
        dpop(POLICY, REFERENCE, beta=0.1, penalty=3.0), [softplus(-0.3), softplus(1.2)], rtol=1e-6
    )


def test_dpop_has_the_slope_of_dpo_where_policy_and_reference_agree():
    for gradient in jax.grad(lambda p: dpop(p, zeros(), beta=0.1, penalty=3.0).sum())(zeros())[:2]:
        np.testing.assert_allclose(np.abs(gradient), [0.05], rtol=1e-6)


def test_dpop_lifts_a_fallen_chosen_response_harder_than_it_presses_the_rejected_one():
    gradient = jax.grad(lambda p: dpop(p, REFERENCE, beta=0.1, penalty=3.0).sum())(POLICY)
    np.testing.assert_allclose(gradient.chosen / -gradient.rejected, [1.0, 4.0], rtol=1e-5)


def test_discopop_by_hand():
    def expected(x: float, t: float) -> float:
        m = sigmoid(x / t)
        return (1 - m) * softplus(-x) + m * math.exp(-x)

    found = discopop(POLICY, REFERENCE, beta=0.1, temperature=0.5)
    np.testing.assert_allclose(found, [expected(0.3, 0.5), expected(-0.6, 0.5)], rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_discopop_has_no_overflow_times_zero(temperature: float):
    # exp(100) alone is infinite in float32. At t = 1, s(x) exp(-x) = s(-x), and the loss tends to -x + 1.
    found = discopop(pair_with_margin(-100.0), zeros(), beta=1.0, temperature=temperature)
    np.testing.assert_allclose(found, [101.0 if temperature == 1.0 else 100.0], rtol=1e-6)
