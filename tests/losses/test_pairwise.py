"""The losses by hand, by law and by contract over the table."""

from __future__ import annotations

import doctest
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_jax.losses import PAIRWISE, PairLogps, dpo, implicit_rewards, preference_metrics

POLICY = PairLogps(jnp.array([-10.0, -30.0]), jnp.array([-14.0, -25.0]))
REFERENCE = PairLogps(jnp.array([-11.0, -28.0]), jnp.array([-12.0, -29.0]))


def test_dpo_by_hand():
    # pair 0: h = (-10 + 11) - (-14 + 12) = 3;  pair 1: h = (-30 + 28) - (-25 + 29) = -6
    expected = [math.log1p(math.exp(-0.5 * 3)), math.log1p(math.exp(0.5 * 6))]
    np.testing.assert_allclose(dpo(POLICY, REFERENCE, beta=0.5), expected, rtol=1e-6)


def test_label_smoothing_by_hand():
    # e of the weight goes to the flipped pair: 0.8 softplus(-x) + 0.2 softplus(x), x = 0.5 * 3
    expected = 0.8 * math.log1p(math.exp(-1.5)) + 0.2 * math.log1p(math.exp(1.5))
    np.testing.assert_allclose(dpo(POLICY, REFERENCE, beta=0.5, label_smoothing=0.2)[0], expected, rtol=1e-6)


def test_knobs_may_be_one_number_per_pair():
    both = dpo(POLICY, REFERENCE, beta=jnp.array([0.1, 0.5]), label_smoothing=jnp.array([0.0, 0.3]))
    one_by_one = [dpo(POLICY, REFERENCE, beta=0.1)[0], dpo(POLICY, REFERENCE, beta=0.5, label_smoothing=0.3)[1]]
    np.testing.assert_allclose(both, one_by_one, rtol=1e-6)


def test_gradient_of_dpo_is_minus_beta_sigmoid_of_minus_beta_h():
    with jax.enable_x64(True):
        policy, reference = (PairLogps(*(jnp.asarray(x, jnp.float64) for x in p[:2])) for p in (POLICY, REFERENCE))
        chosen, rejected, *_ = jax.grad(lambda p: dpo(p, reference, beta=0.3).sum())(policy)
        h = np.array([3.0, -6.0])
        expected = -0.3 / (1 + np.exp(0.3 * h))
        np.testing.assert_allclose(chosen, expected, rtol=1e-12)
        np.testing.assert_allclose(rejected, -expected, rtol=1e-12)


@given(shift=st.floats(-50, 50), beta=st.floats(0.01, 1.0))
@settings(max_examples=25, deadline=None)
def test_a_function_of_the_prompt_alone_changes_nothing(shift: float, beta: float):
    moved = PairLogps(POLICY.chosen + shift, POLICY.rejected + shift)
    np.testing.assert_allclose(dpo(moved, REFERENCE, beta=beta), dpo(POLICY, REFERENCE, beta=beta), rtol=2e-4)


@pytest.mark.parametrize("knobs", [{"beta": 0.0}, {"beta": -1.0}, {"label_smoothing": 0.6}, {"label_smoothing": -0.1}])
def test_knobs_out_of_range_are_refused(knobs: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(knobs))):
        dpo(POLICY, REFERENCE, **knobs)


@pytest.fixture(params=PAIRWISE)
def entry(request: pytest.FixtureRequest):
    return PAIRWISE[request.param]


def test_the_table_lists_the_keywords_and_defaults(entry):
    parameters = inspect.signature(entry.function).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert keywords == entry.knobs and entry.ranges.keys() == entry.knobs.keys()


def test_value_where_policy_and_reference_agree(entry):
    value = entry.function(REFERENCE, REFERENCE)
    np.testing.assert_allclose(value, entry.at_reference(entry.knobs), rtol=1e-6)


def test_finite_value_and_gradient_far_out(entry):
    chosen = jnp.linspace(-300.0, 300.0, 61)
    policy, reference = PairLogps(chosen, -chosen), PairLogps(jnp.zeros(61), jnp.zeros(61))
    value, gradient = jax.value_and_grad(lambda p: entry.function(p, reference, beta=1.0).sum())(policy)
    assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_far_out_the_loss_is_still_the_line_it_tends_to(entry):
    # log(sigmoid(-600)) is -inf in float32; the loss is 600
    policy, reference = PairLogps(jnp.array([-300.0]), jnp.array([300.0])), PairLogps(jnp.zeros(1), jnp.zeros(1))
    np.testing.assert_allclose(entry.function(policy, reference, beta=1.0), [600.0], rtol=1e-6)


def test_jit_equals_eager_and_a_traced_knob_does_not_recompile(entry):
    traces = 0

    @jax.jit
    def traced(policy, reference, beta):
        nonlocal traces
        traces += 1
        return entry.function(policy, reference, beta=beta)

    for beta in (0.05, 0.1, 0.5):
        np.testing.assert_allclose(
            traced(POLICY, REFERENCE, beta), entry.function(POLICY, REFERENCE, beta=beta), rtol=1e-6
        )
    assert traces == 1


def test_pairs_do_not_touch_each_other(entry):
    gradient = jax.jacobian(lambda chosen: entry.function(POLICY._replace(chosen=chosen), REFERENCE))(POLICY.chosen)
    np.testing.assert_array_equal(gradient - jnp.diag(jnp.diag(gradient)), 0.0)


def test_gradients_equal_central_differences(entry):
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        arrays = [jnp.asarray(x) for x in random.normal(-20, 3, (4, 5))]
        policy, reference = PairLogps(*arrays[:2]), PairLogps(*arrays[2:])
        total = lambda c: entry.function(policy._replace(chosen=c), reference).sum()  # noqa: E731
        step = 1e-5
        for i in range(5):
            unit = jnp.zeros(5).at[i].set(step)
            difference = (total(policy.chosen + unit) - total(policy.chosen - unit)) / (2 * step)
            np.testing.assert_allclose(jax.grad(total)(policy.chosen)[i], difference, rtol=1e-7, atol=1e-10)


def test_float64_in_float64_out_and_bfloat16_is_widened(entry):
    with jax.enable_x64(True):
        wide = PairLogps(*(x.astype(jnp.float64) for x in POLICY[:2]))
        assert entry.function(wide, wide).dtype == jnp.float64
    narrow = PairLogps(*(x.astype(jnp.bfloat16) for x in POLICY[:2]))
    assert entry.function(narrow, narrow).dtype == jnp.float32


def test_rewards_and_metrics_by_hand():
    chosen, rejected = implicit_rewards(POLICY, REFERENCE, beta=0.5)
    np.testing.assert_allclose(chosen, [0.5, -1.0])
    np.testing.assert_allclose(rejected, [-1.0, 2.0])
    metrics = preference_metrics(POLICY, REFERENCE, beta=0.5)
    np.testing.assert_allclose(metrics["rewards/margins"], [1.5, -3.0])
    np.testing.assert_allclose(metrics["log_ratios/rejected"], [-2.0, 4.0])
    np.testing.assert_array_equal(metrics["rewards/accuracies"], [1.0, 0.0])


def test_a_tie_counts_as_wrong_and_metrics_carry_no_gradient():
    metrics = preference_metrics(REFERENCE, REFERENCE, beta=0.5)
    np.testing.assert_array_equal(metrics["rewards/accuracies"], [0.0, 0.0])
    total = lambda policy: sum(value.sum() for value in preference_metrics(policy, REFERENCE, beta=0.5).values())  # noqa: E731
    for leaf in jax.tree.leaves(jax.grad(total)(POLICY)):
        np.testing.assert_array_equal(leaf, 0.0)


def test_the_examples_in_the_docstrings_run():
    from dpo_jax.losses import pairwise

    attempted = doctest.testmod(pairwise, extraglobs={"PairLogps": PairLogps})
    assert attempted.failed == 0 and attempted.attempted >= 4
