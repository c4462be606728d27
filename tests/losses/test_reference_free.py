"""simpo, cpo, orpo, slic_hf, alpha_po: by hand, by law, and at the edges of what they may be given."""

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


def test_simpo_by_hand():
    # x = 2 (-2 + 3.5) - 1 = 2 and 2 (-0.75 + 0.5) - 1 = -1.5
    np.testing.assert_allclose(simpo(PAIRS, beta=2.0, gamma=1.0), [softplus(-2.0), softplus(1.5)], rtol=1e-6)


def test_simpo_by_hand_with_label_smoothing():
    # 0.8 of the flipped loss goes to the label, 0.2 to its opposite
    expected = [0.8 * softplus(-2.0) + 0.2 * softplus(2.0), 0.8 * softplus(1.5) + 0.2 * softplus(-1.5)]
    np.testing.assert_allclose(simpo(PAIRS, beta=2.0, gamma=1.0, label_smoothing=0.2), expected, rtol=1e-6)


def test_cpo_by_hand():
    # x = 0.5 (-10 + 14) = 2 and 0.5 (-3 + 1) = -1; e = 0.1
    expected = [0.9 * softplus(-2.0) + 0.1 * softplus(2.0), 0.9 * softplus(1.0) + 0.1 * softplus(-1.0)]
    np.testing.assert_allclose(cpo(PAIRS, beta=0.5, label_smoothing=0.1), expected, rtol=1e-6)
    np.testing.assert_allclose(cpo(PAIRS, beta=0.5), [softplus(-2.0), softplus(1.0)], rtol=1e-6)


def test_orpo_by_hand():
    # odds(u) = e^u / (1 - e^u); the loss is log(1 + odds(q) / odds(p))
    odds = [[math.exp(u) / (1 - math.exp(u)) for u in pair] for pair in ((-2.0, -3.5), (-0.75, -0.5))]
    np.testing.assert_allclose(orpo(PAIRS), [math.log1p(q / p) for p, q in odds], rtol=1e-6)


def test_slic_hf_by_hand():
    # 1 + 10 - 14 = -3 gives 0; 1 + 3 - 1 = 3
    np.testing.assert_allclose(slic_hf(PAIRS), [0.0, 3.0])
    np.testing.assert_allclose(slic_hf(PAIRS, delta=4.5), [0.5, 6.5])


def test_alpha_po_by_hand():
    # r(u) = (1 - e^(-u / 2)) / 0.5; x = 2 (r(p) - r(q)) - 1
    r = [[2 * (1 - math.exp(-u / 2)) for u in pair] for pair in ((-2.0, -3.5), (-0.75, -0.5))]
    expected = [softplus(1.0 - 2.0 * (p - q)) for p, q in r]
    np.testing.assert_allclose(alpha_po(PAIRS, beta=2.0, gamma=1.0, alpha=0.5), expected, rtol=1e-5)


def test_defaults_are_those_of_the_page():
    np.testing.assert_allclose(simpo(PAIRS), simpo(PAIRS, beta=2.5, gamma=1.375, label_smoothing=0.0))
    np.testing.assert_allclose(cpo(PAIRS), cpo(PAIRS, beta=0.1, label_smoothing=0.0))
    np.testing.assert_allclose(slic_hf(PAIRS), slic_hf(PAIRS, delta=1.0))
    np.testing.assert_allclose(alpha_po(PAIRS), alpha_po(PAIRS, beta=2.5, gamma=1.375, alpha=0.25))


def test_simpo_without_target_on_single_tokens_is_cpo():
    one = PAIRS._replace(chosen_tokens=jnp.ones(2), rejected_tokens=jnp.ones(2))
    np.testing.assert_allclose(simpo(one, beta=0.3, gamma=0.0), cpo(PAIRS, beta=0.3), rtol=1e-6)


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


def test_gradient_of_simpo_is_shared_out_over_tokens(x64):
    pairs = PairLogps(*(jnp.asarray(x, jnp.float64) for x in PAIRS))
    gradient = jax.grad(lambda p: simpo(p, beta=2.0, gamma=1.0).sum())(pairs)
    push = 2.0 / (1.0 + np.exp([2.0, -1.5]))  # beta s(-x)
    np.testing.assert_allclose(gradient.chosen, -push / [5.0, 4.0], rtol=1e-12)
    np.testing.assert_allclose(gradient.rejected, push / [4.0, 2.0], rtol=1e-12)


def test_gradient_of_orpo_by_hand(x64):
    pairs = PairLogps(*(jnp.asarray(x, jnp.float64) for x in PAIRS))
    gradient = jax.grad(lambda p: orpo(p).sum())(pairs)
    # d lo / dp = 1 + e^p / (1 - e^p) = 1 / (1 - e^p), and d loss / d lo = -s(-lo) = -(1 - e^-loss)
    push = 1.0 - np.exp(-np.asarray(orpo(pairs)))
    np.testing.assert_allclose(gradient.chosen, -push / (1 - np.exp([-2.0, -0.75])) / [5.0, 4.0], rtol=1e-12)
    np.testing.assert_allclose(gradient.rejected, push / (1 - np.exp([-3.5, -0.5])) / [4.0, 2.0], rtol=1e-12)


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


@pytest.mark.parametrize("loss", LOSSES)
def test_finite_far_out(loss):
    ends = jnp.array([1e-4, 0.0, -1e-7, -1e-5, -0.3, -30.0, -300.0, -3e4])
    chosen, rejected = (x.ravel() for x in jnp.meshgrid(ends, ends))
    graded = jax.jit(jax.value_and_grad(lambda p: loss(p).sum()))
    for tokens in (0.0, 1.0, 100.0):
        value, gradient = graded(PairLogps(chosen, rejected, jnp.full(64, tokens), jnp.full(64, tokens)))
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((value, gradient)))


def test_far_out_the_logistic_losses_are_still_the_line_they_tend_to():
    far = PairLogps(jnp.array([-600.0]), jnp.array([0.0]), jnp.ones(1), jnp.ones(1))
    np.testing.assert_allclose(simpo(far, beta=1.0, gamma=1.0), [601.0], rtol=1e-6)
    np.testing.assert_allclose(cpo(far, beta=1.0), [600.0], rtol=1e-6)


@pytest.mark.parametrize("loss", AVERAGED)
def test_pairs_without_token_counts_are_refused(loss):
    with pytest.raises(ValueError, match="token"):
        loss(PairLogps(PAIRS.chosen, PAIRS.rejected))


@pytest.mark.parametrize("loss", AVERAGED)
def test_an_empty_response_counts_as_one_token(loss):
    none, one = (PAIRS._replace(chosen_tokens=n, rejected_tokens=n) for n in (jnp.zeros(2), jnp.ones(2)))
    np.testing.assert_array_equal(loss(none), loss(one))


@pytest.mark.parametrize("loss", LOSSES)
def test_widths(loss, x64):
    assert loss(PairLogps(*(jnp.asarray(x, jnp.float64) for x in PAIRS))).dtype == jnp.float64
    narrow = PairLogps(*(jnp.asarray(x, jnp.bfloat16) for x in PAIRS))  # exact: few digits
    assert loss(narrow).dtype == jnp.float32
    np.testing.assert_allclose(loss(narrow), loss(PairLogps(*(jnp.asarray(x, jnp.float32) for x in PAIRS))), rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "knobs"),
    [
        (simpo, {"beta": [0.5, 2.0], "gamma": [0.0, -1.0], "label_smoothing": [0.5, 0.0]}),
        (cpo, {"beta": [0.5, 2.0], "label_smoothing": [0.5, 0.0]}),
        (slic_hf, {"delta": [9.0, 0.0]}),
        (alpha_po, {"beta": [0.5, 2.0], "gamma": [0.0, -1.0], "alpha": [0.0, -0.5]}),
    ],
)
def test_one_knob_per_pair_and_traced(loss, knobs):
    alone = [loss(PAIRS, **{name: values[i] for name, values in knobs.items()})[i] for i in range(2)]
    arrays = {name: jnp.array(values) for name, values in knobs.items()}
    np.testing.assert_allclose(loss(PAIRS, **arrays), alone, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda knobs: loss(PAIRS, **knobs))(arrays), alone, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "knob", "value"),
    [
        (simpo, "beta", 0.0),
        (simpo, "gamma", math.nan),
        (simpo, "label_smoothing", 0.6),
        (cpo, "beta", -0.1),
        (cpo, "label_smoothing", -0.1),
        (slic_hf, "delta", -1.0),
        (alpha_po, "beta", 0.0),
        (alpha_po, "gamma", math.nan),
        (alpha_po, "alpha", math.nan),
    ],
)
def test_knobs_out_of_range_are_refused_also_under_jit(loss, knob, value):
    with pytest.raises(ValueError, match=knob):
        loss(PAIRS, **{knob: value})
    with pytest.raises(ValueError, match=knob):
        jax.jit(lambda pairs: loss(pairs, **{knob: value}))(PAIRS)


@pytest.mark.parametrize("loss", LOSSES)
def test_other_shapes_are_refused(loss):
    with pytest.raises(AssertionError):
        loss(PAIRS._replace(rejected=jnp.zeros(1)))
    with pytest.raises(AssertionError):
        loss(PairLogps(*(x[:, None] for x in PAIRS)))
