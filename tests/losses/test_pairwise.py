"""dpo, robust_dpo, ipo, exo_pair, dpop, discopop: by law, and where floats end."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses import PairLogps, discopop, dpo, dpop, exo_pair, ipo, length_normalized_dpo, r_dpo, robust_dpo
from tests.losses.by_hand import POLICY, REFERENCE, random_pairs, zeros


def pair_with_margin(*h: float) -> PairLogps:
    return PairLogps(jnp.array(h), jnp.zeros(len(h)))


def test_far_out_the_loss_is_still_the_line_it_tends_to():
    # log(sigmoid(-600)) is -inf in float32; the loss is 600. At the other end it is 0, and not below.
    np.testing.assert_array_equal(dpo(pair_with_margin(-600.0, 600.0), zeros(2), beta=1.0), [600.0, 0.0])


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


def test_ipo_counts_tokens_of_the_policy_even_where_log_ratios_are_zero():
    policy = PairLogps(jnp.array([-3.0]), jnp.array([-4.0]), jnp.array([3.0]), jnp.array([4.0]))
    np.testing.assert_allclose(ipo(policy, policy, beta=0.5), [1.0])


def test_exo_pair_is_least_where_the_policy_has_learnt_the_smoothed_label(x64):
    # It is a KL divergence: 0 where sigmoid(x) = 1 - e, and nowhere negative.
    best = math.log(0.9 / 0.1)
    margins = jnp.linspace(best - 5, best + 5, 101)
    found = exo_pair(PairLogps(margins, jnp.zeros(101)), zeros(101), beta=1.0, label_smoothing=0.1)
    np.testing.assert_allclose(found[50], 0.0, atol=1e-12)
    assert (np.delete(found, 50) > 0).all()


def test_dpop_has_the_slope_of_dpo_where_policy_and_reference_agree():
    for gradient in jax.grad(lambda p: dpop(p, zeros(), beta=0.1, penalty=3.0).sum())(zeros())[:2]:
        np.testing.assert_allclose(np.abs(gradient), [0.05], rtol=1e-6)


def test_dpop_lifts_a_fallen_chosen_response_harder_than_it_presses_the_rejected_one():
    gradient = jax.grad(lambda p: dpop(p, REFERENCE, beta=0.1, penalty=3.0).sum())(POLICY)
    np.testing.assert_allclose(gradient.chosen / -gradient.rejected, [1.0, 4.0], rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_discopop_has_no_overflow_times_zero(temperature: float):
    # exp(100) alone is infinite in float32. At t = 1, s(x) exp(-x) = s(-x), and the loss tends to -x + 1.
    found = discopop(pair_with_margin(-100.0), zeros(), beta=1.0, temperature=temperature)
    np.testing.assert_allclose(found, [101.0 if temperature == 1.0 else 100.0], rtol=1e-6)


def test_length_normalized_dpo_of_responses_repeated_is_that_of_one():
    """All sums and counts three times as large: the same averages."""
    tripled = [
        pairs._replace(**{k: 3 * v for k, v in pairs._asdict().items() if v is not None})
        for pairs in (POLICY, REFERENCE)
    ]
    np.testing.assert_allclose(length_normalized_dpo(*tripled), length_normalized_dpo(POLICY, REFERENCE), rtol=1e-5)


def test_r_dpo_asks_less_of_a_longer_chosen_response():
    policy, reference = random_pairs(0)
    longer = policy._replace(chosen_tokens=policy.chosen_tokens + 10)
    assert (r_dpo(longer, reference, penalty=0.05) < r_dpo(policy, reference, penalty=0.05)).all()
    whole = policy._replace(chosen_tokens=jnp.asarray(policy.chosen_tokens, jnp.int32))
    np.testing.assert_array_equal(r_dpo(whole, reference), r_dpo(policy, reference))
