"""simpo, cpo, orpo, slic_hf, alpha_po: by law, and at the edges of what they may be given."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.losses import PairLogps, sft
from dpo_jax.losses.pairs import smoothed
from dpo_jax.losses.reference_free import alpha_po, cpo, log1mexp, orpo, simpo, slic_hf
from tests.losses.by_hand import random_pairs

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


# 2, 9 and 1 nats over 1, 3 and 2 tokens; the rejected ones do not matter.
ANSWERS = PairLogps(jnp.array([-2.0, -9.0, -1.0]), jnp.full(3, -50.0), jnp.array([1.0, 3.0, 2.0]), jnp.full(3, 9.0))


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [("token", [1.0, 4.5, 0.5]), ("sequence", [2.0, 3.0, 0.5]), ("sum", [2.0, 9.0, 1.0])],  # mean(n_w) = 2
)
def test_reductions_by_hand(reduction: str, expected: list[float]):
    np.testing.assert_allclose(sft(ANSWERS, nll_reduction=reduction), expected)


def test_the_token_form_is_a_mean_over_tokens():
    np.testing.assert_allclose(sft(ANSWERS).mean(), 12.0 / 6)


def test_a_zero_length_counts_as_one_token():
    empty = PairLogps(jnp.array([0.0, -4.0]), jnp.zeros(2), jnp.array([0.0, 3.0]), jnp.ones(2))
    np.testing.assert_allclose(sft(empty), [0.0, 2.0])


def test_what_is_not_real_does_not_count_in_the_mean_length():
    found = sft(ANSWERS, where=jnp.array([True, False, True]))
    np.testing.assert_allclose(found[jnp.array([0, 2])], [2.0 / 1.5, 1.0 / 1.5], rtol=1e-6)


def test_micro_batches_of_unequal_tokens_add_up_to_the_whole(x64):
    policy, _ = random_pairs(0)
    assert policy.chosen_tokens[:4].sum() != policy.chosen_tokens[4:].sum()
    tokens = policy.chosen_tokens.mean()
    parts = [PairLogps(*(x[part] for x in policy)) for part in (slice(4), slice(4, 8))]
    halves = [sft(part, mean_tokens=tokens).mean() for part in parts]
    np.testing.assert_allclose(np.mean(halves), sft(policy).mean(), rtol=1e-12)
    np.testing.assert_allclose(sft(policy).mean(), -policy.chosen.sum() / policy.chosen_tokens.sum(), rtol=1e-12)
    alone = [sft(part).mean() for part in parts]
    assert abs(np.mean(alone) / sft(policy).mean() - 1) > 1e-3  # each over its own tokens: not the same
