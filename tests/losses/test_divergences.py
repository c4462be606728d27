"""f_scores by hand; f_dpo and chi_po at the ends of alpha, and beyond the largest exponent."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses import PairLogps, chi_po, dpo, f_dpo, f_scores, hinge
from dpo_jax.losses.divergences import LARGEST_EXPONENT
from tests.losses.by_hand import POLICY, REFERENCE, random_pairs, sigmoid, softplus, zeros

SCORES = {
    "reverse_kl": lambda u: u,
    "forward_kl": lambda u: 1 - math.exp(-u),
    "js": lambda u: math.log(2) - softplus(-u),
    "alpha": lambda u: (1 - math.exp(-0.25 * u)) / 0.25,
}


@pytest.mark.parametrize("divergence", SCORES)
def test_scores_by_hand(divergence: str):
    # a = 1 and -2, b = -2 and 4
    g = SCORES[divergence]
    found = f_scores(POLICY, REFERENCE, divergence=divergence, alpha=0.25)
    np.testing.assert_allclose(found.chosen, [g(1), g(-2)], rtol=1e-5)
    np.testing.assert_allclose(found.rejected, [g(-2), g(4)], rtol=1e-5)
    np.testing.assert_array_equal(found.chosen_tokens, POLICY.chosen_tokens)
    np.testing.assert_array_equal(found.rejected_tokens, POLICY.rejected_tokens)


def test_a_small_alpha_loses_nothing_to_rounding():
    # (1 - e^-x) / alpha with x = alpha u is u (1 - x / 2 + ...): in float32 1 - e^-x would keep three digits of 1e-4
    found = f_scores(POLICY, REFERENCE, divergence="alpha", alpha=1e-4)
    np.testing.assert_allclose(found.chosen, [1 - 0.5e-4, -2 - 2e-4], rtol=1e-6)


@pytest.mark.parametrize("knobs", [{"alpha": 1.5}, {"alpha": -0.1}, {"divergence": "jsd"}])
def test_scores_refuse_knobs_out_of_range(knobs: dict):
    with pytest.raises(ValueError, match="f_scores: "):
        f_scores(POLICY, REFERENCE, **knobs)


@pytest.mark.parametrize("divergence", SCORES)
def test_the_score_is_the_derivative_of_the_divergence_up_to_a_constant(divergence: str, x64):
    """g(u) = f'(e^u) + constant, for the f that the paper's table 1 gives."""
    f = {
        "reverse_kl": lambda t: t * jnp.log(t),
        "forward_kl": lambda t: -jnp.log(t),
        "js": lambda t: t * jnp.log(t) - (t + 1) * jnp.log((t + 1) / 2),
        "alpha": lambda t: (t**0.75 - 0.75 * t - 0.25) / (0.75 * -0.25),
    }[divergence]
    u = jnp.linspace(-3.0, 3.0, 13)
    scores = f_scores(PairLogps(u, u), zeros(13), divergence=divergence, alpha=0.25).chosen
    difference = scores - jax.vmap(jax.grad(f))(jnp.exp(u))
    np.testing.assert_allclose(difference, difference[0], atol=1e-12)


def test_alpha_zero_is_dpo_and_one_is_the_forward_kl(x64):
    policy, reference = random_pairs(0)
    nothing = f_dpo(policy, reference, divergence="alpha", alpha=0.0)
    np.testing.assert_array_equal(nothing, dpo(policy, reference))
    np.testing.assert_allclose(f_dpo(policy, reference, divergence="alpha", alpha=1e-9), nothing, rtol=1e-7)
    one = f_dpo(policy, reference, divergence="alpha", alpha=1.0)
    np.testing.assert_allclose(one, f_dpo(policy, reference, divergence="forward_kl"), rtol=1e-12)
    np.testing.assert_array_equal(f_dpo(policy, reference, divergence="reverse_kl"), dpo(policy, reference))


def test_alpha_may_be_zero_for_some_pairs_and_traced():
    alpha = jnp.array([0.0, 0.5])
    value, slope = jax.jit(
        jax.value_and_grad(lambda p, alpha: f_dpo(p, REFERENCE, divergence="alpha", alpha=alpha).sum())
    )(POLICY, alpha)
    expected = [dpo(POLICY, REFERENCE)[0], f_dpo(POLICY, REFERENCE, divergence="alpha", alpha=0.5)[1]]
    np.testing.assert_allclose(value, sum(expected), rtol=1e-6)
    assert jnp.isfinite(slope.chosen).all()
    np.testing.assert_allclose(slope.chosen[0], jax.grad(lambda p: dpo(p, REFERENCE)[0])(POLICY).chosen[0], rtol=1e-6)


def test_scores_serve_any_loss_on_margins():
    # 1 - e^-1 - (1 - e^2) = e^2 - e^-1; 1 - beta times that
    scores = f_scores(POLICY, REFERENCE, divergence="forward_kl")
    expected = 1 - 0.1 * (math.exp(2) - math.exp(-1))
    np.testing.assert_allclose(hinge(scores, zeros(2), beta=0.1)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha"])
def test_the_exponent_stops_at_eighty_with_no_gradient_beyond(divergence: str):
    far = PairLogps(jnp.array([-79.0, -81.0, -1e5]), jnp.zeros(3))
    chosen, gradient = jax.vmap(
        jax.value_and_grad(
            lambda C: f_scores(PairLogps(C[None], C[None]), zeros(), divergence=divergence, alpha=1.0)[0][0]
        )
    )(far.chosen)
    np.testing.assert_allclose(chosen, -np.exp([79.0, LARGEST_EXPONENT, LARGEST_EXPONENT]), rtol=1e-5)
    np.testing.assert_allclose(gradient, [np.exp(79.0), 0.0, 0.0], rtol=1e-5)


def test_chi_po_gets_no_gradient_where_it_is_clipped_and_the_usual_one_inside():
    slope = jax.grad(lambda p: chi_po(p, REFERENCE, beta=0.3, clip=0.5).sum())(POLICY)
    np.testing.assert_array_equal(slope.chosen, 0.0)
    loose, free = (jax.grad(lambda p, c=c: chi_po(p, REFERENCE, beta=0.3, clip=c).sum())(POLICY) for c in (50.0, None))
    np.testing.assert_allclose(loose.chosen, free.chosen, rtol=1e-6)


def test_chi_po_far_out_goes_on_with_the_log_ratios():
    # Both exponents are held at 80: they cancel, and 0.01 (200 - 100) is left, with its slope.
    pair = PairLogps(jnp.array([200.0]), jnp.array([100.0]))
    value, slope = jax.value_and_grad(lambda p: chi_po(p, zeros(), beta=0.01).sum())(pair)
    np.testing.assert_allclose(value, softplus(-1.0), rtol=1e-5)
    np.testing.assert_allclose(
        [slope.chosen[0], slope.rejected[0]], [-0.01 * sigmoid(-1), 0.01 * sigmoid(-1)], rtol=1e-5
    )
