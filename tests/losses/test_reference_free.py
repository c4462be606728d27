"""simpo, cpo, orpo, slic_hf, alpha_po: by law, and at the edges of what they may be given."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses.pairs import smoothed
from dpo_jax.losses.reference_free import alpha_po, cpo, log1mexp, orpo, simpo, slic_hf
from dpo_jax.types import PairLogps

# Per token: p = -10/5 = -2 and -3/4 = -0.75; q = -14/4 = -3.5 and -1/2 = -0.5.
PAIRS = PairLogps(jnp.array([-10.0, -3.0]), jnp.array([-14.0, -1.0]), jnp.array([5.0, 4.0]), jnp.array([4.0, 2.0]))
AVERAGED = [simpo, orpo, alpha_po]
LOSSES = [*AVERAGED, cpo, slic_hf]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_alpha_po_at_zero_is_simpo_in_value_and_gradient(x64):
    pairs = PairLogps(*(jnp.asarray(x, jnp.float64) for x in PAIRS))
    bent, straight = (
        jax.jit(jax.value_and_grad(lambda p, f=f: f(p).sum()))(pairs) for f in (lambda p: alpha_po(p, alpha=0.0), simpo)
    )
    for ours, theirs in zip(jax.tree.leaves(bent), jax.tree.leaves(straight), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    np.testing.assert_allclose(alpha_po(pairs, alpha=1e-7), simpo(pairs), rtol=1e-6)


def test_swapped_pairs_smooth_alpha_po_as_they_do_simpo():
    # -ls(-x) is the loss of the swapped pair with the opposite target
    swapped = PairLogps(PAIRS.rejected, PAIRS.chosen, PAIRS.rejected_tokens, PAIRS.chosen_tokens)
    x = -jnp.log(jnp.expm1(alpha_po(PAIRS)))  # softplus(-x) = loss
    mixed = 0.9 * alpha_po(PAIRS) + 0.1 * alpha_po(swapped, gamma=-1.375)
    np.testing.assert_allclose(mixed, smoothed(x, 0.1), rtol=1e-5)


def test_slic_hf_at_the_kink_has_no_slope():
    at = PairLogps(jnp.array([-1.0]), jnp.array([-2.0]))
    assert float(slic_hf(at)[0]) == 0.0
    np.testing.assert_array_equal(jax.grad(lambda p: slic_hf(p).sum())(at).chosen, [0.0])


@pytest.mark.parametrize("x", [-1e-9, -1e-6, -1e-3, -0.5, -0.7, -3.0, -20.0, -80.0, -300.0])
def test_log1mexp_keeps_its_digits(x: float):
    expected = math.log(-math.expm1(x)) if x > -0.6 else math.log1p(-math.exp(x))
    value, slope = jax.value_and_grad(log1mexp)(jnp.float32(x))
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-37)  # float32 holds nothing below 1e-38
    np.testing.assert_allclose(slope, -1.0 / math.expm1(-x), rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("certain", [0.0, 1e-7, 1e-3])
def test_orpo_of_a_certain_response(certain: float):
    """Log-prob 0, or a little above it by rounding: as if it cost 1e-6 nats per token, and no slope."""
    pair = PairLogps(jnp.array([certain]), jnp.array([-2.0]), jnp.ones(1), jnp.ones(1))
    value, gradient = jax.value_and_grad(lambda p: orpo(p).sum())(pair)
    # odds(-1e-6) = 1e6; odds(-2) = 1 / (e^2 - 1)
    np.testing.assert_allclose(value, math.log1p(1e-6 / math.expm1(2.0)), rtol=1e-5)
    np.testing.assert_array_equal(gradient.chosen, [0.0])
    swapped = PairLogps(pair.rejected, pair.chosen, jnp.ones(1), jnp.ones(1))
    np.testing.assert_allclose(orpo(swapped), [math.log1p(math.expm1(2.0) * 1e6)], rtol=1e-5)


def test_far_out_the_logistic_losses_are_still_the_line_they_tend_to():
    far = PairLogps(jnp.array([-600.0]), jnp.array([0.0]), jnp.ones(1), jnp.ones(1))
    np.testing.assert_allclose(simpo(far, beta=1.0, gamma=1.0), [601.0], rtol=1e-6)
    np.testing.assert_allclose(cpo(far, beta=1.0), [600.0], rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_other_shapes_are_refused(loss):
    with pytest.raises(AssertionError):
        loss(PAIRS._replace(rejected=jnp.zeros(1)))
    with pytest.raises(AssertionError):
        loss(PairLogps(*(x[:, None] for x in PAIRS)))
