"""tdpo1, tdpo2 by law; wpo_weights and ld_reduce by hand, and at the edges of what they may be given."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses.token_level import ld_reduce, tdpo1, tdpo2, wpo_weights
from dpo_jax.types import PairLogps

POLICY = PairLogps(jnp.array([-10.0, -30.0]), jnp.array([-14.0, -25.0]))
REFERENCE = PairLogps(jnp.array([-11.0, -28.0]), jnp.array([-12.0, -29.0]))  # h = 3 and -6
CHOSEN_KL, REJECTED_KL = jnp.array([0.5, 2.0]), jnp.array([1.5, 1.0])
DATA = (POLICY, REFERENCE, CHOSEN_KL, REJECTED_KL)
LOSSES = [tdpo1, tdpo2]

LOGPS = jnp.array([[[-1.0, -2.0, -4.0, -8.0], [-0.5, -0.25, -0.125, -16.0]]])
MASK = jnp.array([[[1, 1, 1, 1], [0, 1, 1, 0]]])  # 4 and 2 tokens


def test_only_tdpo2_detaches_the_kl_of_the_chosen_response():
    push = np.array([0.5 / (1 + math.exp(1.0)), 0.5 / (1 + math.exp(-2.5))])  # beta s(-x)
    one = jax.grad(lambda *kl: tdpo1(POLICY, REFERENCE, *kl, beta=0.5).sum(), (0, 1))
    chosen, rejected = one(CHOSEN_KL, REJECTED_KL)
    np.testing.assert_allclose(chosen, -push, rtol=1e-6)
    np.testing.assert_allclose(rejected, push, rtol=1e-6)
    push = np.array([0.5 / (1 + math.exp(0.5)), 0.5 / (1 + math.exp(-2.0))])
    two = jax.grad(lambda *kl: tdpo2(POLICY, REFERENCE, *kl, beta=0.5, alpha=2.0).sum(), (0, 1))
    chosen, rejected = two(CHOSEN_KL, REJECTED_KL)
    np.testing.assert_array_equal(chosen, 0.0)
    np.testing.assert_allclose(rejected, 2.0 * push, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "data", "knob", "value"),
    [
        (tdpo1, DATA, "beta", 0.0),
        (tdpo2, DATA, "beta", -1.0),
        (tdpo2, DATA, "alpha", -0.5),
        (wpo_weights, (LOGPS, LOGPS, MASK), "clamp", 0.0),
        (ld_reduce, (LOGPS, MASK), "alpha", 1.5),
        (ld_reduce, (LOGPS, MASK), "alpha", -0.5),
    ],
)
def test_knobs_out_of_range_are_refused_also_under_jit(function, data, knob, value):
    with pytest.raises(ValueError, match=knob):
        function(*data, **{knob: value})
    with pytest.raises(ValueError, match=knob):
        jax.jit(lambda *data: function(*data, **{knob: value}))(*data)


def test_other_shapes_are_refused():
    for loss in LOSSES:
        with pytest.raises(AssertionError):
            loss(POLICY, REFERENCE, CHOSEN_KL, REJECTED_KL[:1])
        with pytest.raises(AssertionError):
            loss(POLICY, REFERENCE, CHOSEN_KL[:1], REJECTED_KL[:1])
    with pytest.raises(AssertionError):
        wpo_weights(LOGPS, LOGPS[:, :1], MASK)
    with pytest.raises(AssertionError):
        ld_reduce(LOGPS, MASK[..., 1:], alpha=1.0)
    with pytest.raises(AssertionError):
        ld_reduce(LOGPS[0], MASK[0], alpha=1.0)


def test_wpo_weights_by_hand():
    # mean(-1, -2, -4, -8) + 4 = 0.25, and (-0.25 - 0.125) / 2 + 0.0875 = -0.1: the masked tokens do not count
    sums = jnp.array([[[-4.0] * 4, [9.0, -0.0875, -0.0875, 9.0]]])
    np.testing.assert_allclose(wpo_weights(LOGPS, sums, MASK), [[1.0, math.exp(-0.1)]], rtol=1e-6)
    np.testing.assert_allclose(
        wpo_weights(LOGPS, sums, MASK, clamp=jnp.inf), [[math.exp(0.25), math.exp(-0.1)]], rtol=1e-6
    )
    np.testing.assert_allclose(wpo_weights(LOGPS, sums, MASK, clamp=1.1), [[1.1, math.exp(-0.1)]], rtol=1e-6)


def test_wpo_weights_are_detached():
    gradients = jax.grad(lambda x, y: wpo_weights(x, y, MASK, clamp=jnp.inf).sum(), (0, 1))(LOGPS, LOGPS - 0.1)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)


def test_wpo_weights_of_uniform_distributions_are_one():
    # every token of a uniform distribution over V has log p = log sum p^2 = -log V
    uniform = jnp.full((3, 5), -math.log(7.0))
    np.testing.assert_allclose(wpo_weights(uniform, uniform, jnp.ones((3, 5), bool)), jnp.ones(3))


def test_wpo_weights_without_tokens_and_with_rubbish_outside_the_mask():
    rubbish = jnp.full((2, 3), jnp.nan)
    mask = jnp.array([[False, False, False], [False, True, False]])
    weights = wpo_weights(rubbish.at[1, 1].set(-2.0), rubbish.at[1, 1].set(-1.0), mask)
    np.testing.assert_allclose(weights, [1.0, math.exp(-1.0)], rtol=1e-6)
    assert jnp.isfinite(wpo_weights(jnp.zeros(2), jnp.full(2, -300.0), jnp.ones(2), clamp=jnp.inf))


def test_widths_of_weights_and_sums(x64):
    for dtype, expected in ((jnp.float64, jnp.float64), (jnp.bfloat16, jnp.float32)):
        logps = LOGPS.astype(dtype)
        assert wpo_weights(logps, logps, MASK).dtype == expected
        assert ld_reduce(logps, MASK, alpha=0.5).dtype == expected
        assert ld_reduce(logps, MASK, alpha=jnp.array([0.5])).dtype == expected


def test_ld_reduce_by_hand():
    # m = 2: -1 - 2 + 0.5 (-4 - 8) = -9; the shorter one whole, wherever it starts: -0.25 - 0.125
    np.testing.assert_allclose(ld_reduce(LOGPS, MASK, alpha=0.5), [[-9.0, -0.375]])
    np.testing.assert_allclose(ld_reduce(LOGPS, MASK, alpha=0.0), [[-3.0, -0.375]])
    np.testing.assert_allclose(ld_reduce(LOGPS[:, ::-1], MASK[:, ::-1], alpha=0.5), [[-0.375, -9.0]])


def test_ld_reduce_one_alpha_per_pair_traced_and_its_gradient():
    logps, mask = LOGPS.repeat(2, axis=0), MASK.repeat(2, axis=0)
    reduced = jax.jit(lambda alpha: ld_reduce(logps, mask, alpha=alpha))(jnp.array([0.5, 0.25]))
    np.testing.assert_allclose(reduced, [[-9.0, -0.375], [-6.0, -0.375]])
    gradient = jax.grad(lambda x: ld_reduce(x, MASK, alpha=0.5).sum())(LOGPS)
    np.testing.assert_array_equal(gradient, [[[1.0, 1.0, 0.5, 0.5], [0.0, 1.0, 1.0, 0.0]]])


def test_ld_reduce_ignores_rubbish_outside_the_mask_also_in_the_gradient():
    broken = LOGPS.at[0, 1, 0].set(jnp.nan)
    np.testing.assert_allclose(ld_reduce(broken, MASK, alpha=0.5), [[-9.0, -0.375]])
    found = jax.grad(lambda x, alpha: ld_reduce(x, MASK, alpha=alpha).sum(), (0, 1))(broken, 0.5)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(found))
