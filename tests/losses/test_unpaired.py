"""kto, apo_zero_unpaired, bco and mismatched_kl: by hand, by law, and at the edges of what they may be given."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dpo_jax.losses.unpaired import apo_zero_unpaired, bco, kto, mismatched_kl

POLICY = jnp.array([-10.0, -10.0, -7.0, -7.0])
REFERENCE = jnp.array([-14.0, -14.0, -5.0, -5.0])  # log-ratios 4, 4, -2, -2
DESIRABLE = jnp.array([True, False, True, False])


def kto_at_one(policy, reference, desirable, **knobs):
    return kto(policy, reference, desirable, 1.0, **knobs)


def bco_at_a_level(policy, reference, desirable, **knobs):
    return bco(policy, reference, desirable, 0.3, **knobs)


LOSSES = [kto_at_one, apo_zero_unpaired, bco_at_a_level]


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def test_kto_by_hand():
    # beta (a - z0) = 0.5 (4 - 1) = 1.5 and 0.5 (-2 - 1) = -1.5; weights 2 and 3
    expected = [2 * (1 - sigmoid(1.5)), 3 * (1 - sigmoid(-1.5)), 2 * (1 - sigmoid(-1.5)), 3 * (1 - sigmoid(1.5))]
    losses = kto(POLICY, REFERENCE, DESIRABLE, 1.0, beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_apo_zero_unpaired_by_hand():
    # beta a = 2 and -1; weights 2 and 3
    expected = [2 * (1 - sigmoid(2.0)), 3 * sigmoid(2.0), 2 * (1 - sigmoid(-1.0)), 3 * sigmoid(-1.0)]
    losses = apo_zero_unpaired(POLICY, REFERENCE, DESIRABLE, beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_bco_by_hand():
    # beta a - delta = 2 - 0.5 = 1.5 and -1 - 0.5 = -1.5
    expected = [-math.log(sigmoid(x)) for x in (1.5, -1.5, -1.5, 1.5)]
    np.testing.assert_allclose(bco(POLICY, REFERENCE, DESIRABLE, 0.5, beta=0.5), expected, rtol=1e-6)


def test_defaults_are_those_of_the_page():
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0}
    data = (POLICY, REFERENCE, DESIRABLE)
    np.testing.assert_array_equal(kto(*data, 1.0), kto(*data, 1.0, beta=0.1, **weights))
    np.testing.assert_array_equal(apo_zero_unpaired(*data), apo_zero_unpaired(*data, beta=0.1, **weights))
    np.testing.assert_array_equal(bco(*data, 1.0), bco(*data, 1.0, beta=0.1))


def test_where_policy_and_reference_agree():
    same = (POLICY, POLICY, DESIRABLE)
    np.testing.assert_allclose(kto(*same, mismatched_kl(POLICY, POLICY)), [0.5] * 4)
    np.testing.assert_allclose(apo_zero_unpaired(*same, undesirable_weight=3.0), [0.5, 1.5, 0.5, 1.5])
    np.testing.assert_allclose(bco(*same, 0.0), [math.log(2.0)] * 4, rtol=1e-6)


def test_kto_at_level_zero_is_apo_and_a_negative_level_is_zero():
    expected = apo_zero_unpaired(POLICY, REFERENCE, DESIRABLE, beta=0.3)
    for kl in (0.0, -5.0):
        np.testing.assert_array_equal(kto(POLICY, REFERENCE, DESIRABLE, kl, beta=0.3), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_lifts_desirable_completions_and_lowers_the_others(loss):
    gradient = jax.grad(lambda policy: loss(policy, REFERENCE, DESIRABLE).sum())(POLICY)
    np.testing.assert_array_equal(jnp.sign(gradient), [-1.0, 1.0, -1.0, 1.0])


def test_gradient_of_kto_by_hand(x64):
    policy, reference = (jnp.asarray(x, jnp.float64) for x in (POLICY, REFERENCE))
    gradient = jax.grad(lambda p: kto(p, reference, DESIRABLE, 1.0, beta=0.5, undesirable_weight=3.0).sum())(policy)
    slope = 0.5 * sigmoid(1.5) * sigmoid(-1.5)  # beta s (1 - s), the same on both sides
    np.testing.assert_allclose(gradient, [-slope, 3 * slope, -slope, 3 * slope], rtol=1e-12)


@pytest.mark.parametrize("loss", [kto, bco])
def test_the_level_gets_no_gradient(loss):
    good = jnp.full(4, True)  # slopes of both labels might cancel
    slope = jax.grad(lambda level: loss(POLICY, REFERENCE, good, level).sum())(jnp.float32(0.4))
    assert float(slope) == 0.0


@pytest.mark.parametrize("loss", LOSSES)
def test_labels_may_be_numbers(loss):
    for labels in (DESIRABLE.astype(jnp.float32), DESIRABLE.astype(jnp.int32), np.asarray(DESIRABLE)):
        np.testing.assert_array_equal(loss(POLICY, REFERENCE, labels), loss(POLICY, REFERENCE, DESIRABLE))


@pytest.mark.parametrize("loss", LOSSES)
def test_finite_far_out(loss):
    policy = jnp.linspace(-300.0, 300.0, 61)
    graded = jax.jit(jax.value_and_grad(lambda p, good: loss(p, jnp.zeros(61), good, beta=1.0).sum()))
    for good in (True, False):
        value, slope = graded(policy, jnp.full(61, good))
        assert jnp.isfinite(value) and jnp.isfinite(slope).all()


def test_far_out_bco_is_still_the_line_it_tends_to():
    far = jnp.array([-600.0, 600.0])
    losses = bco(far, jnp.zeros(2), jnp.array([True, False]), 0.0, beta=1.0)
    np.testing.assert_allclose(losses, [600.0, 600.0], rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_widths(loss, x64):
    wide, single, narrow = (
        loss(POLICY.astype(dtype), REFERENCE.astype(dtype), DESIRABLE)
        for dtype in (jnp.float64, jnp.float32, jnp.bfloat16)
    )
    assert wide.dtype == jnp.float64 and narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, single, rtol=1e-6)


BETAS = {"beta": [0.1, 0.5, 1.0, 2.0]}
WEIGHTS = {"desirable_weight": [1.0, 2.0, 3.0, 0.0], "undesirable_weight": [4.0, 5.0, 0.0, 7.0]}


@pytest.mark.parametrize(
    ("loss", "knobs"), [(kto_at_one, BETAS | WEIGHTS), (apo_zero_unpaired, BETAS | WEIGHTS), (bco_at_a_level, BETAS)]
)
def test_one_knob_per_completion_and_traced(loss, knobs):
    data = (POLICY, REFERENCE, DESIRABLE)
    alone = [loss(*data, **{name: values[i] for name, values in knobs.items()})[i] for i in range(4)]
    arrays = {name: jnp.array(values) for name, values in knobs.items()}
    np.testing.assert_allclose(loss(*data, **arrays), alone, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda knobs: loss(*data, **knobs))(arrays), alone, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "knob", "value"),
    [
        (bco_at_a_level, "beta", 0.0),
        *((loss, knob, -1.0) for loss in (kto_at_one, apo_zero_unpaired) for knob in BETAS | WEIGHTS),
    ],
)
def test_knobs_out_of_range_are_refused_also_under_jit(loss, knob, value):
    with pytest.raises(ValueError, match=knob):
        loss(POLICY, REFERENCE, DESIRABLE, **{knob: value})
    with pytest.raises(ValueError, match=knob):
        jax.jit(lambda policy: loss(policy, REFERENCE, DESIRABLE, **{knob: value}))(POLICY)


@pytest.mark.parametrize("loss", LOSSES)
def test_other_shapes_are_refused(loss):
    with pytest.raises(AssertionError):
        loss(POLICY, REFERENCE, DESIRABLE[:1])
    with pytest.raises(AssertionError):
        loss(POLICY, REFERENCE[:1], DESIRABLE)


def test_kto_refuses_log_ratios_in_place_of_their_mean():
    with pytest.raises(AssertionError):
        kto(POLICY, REFERENCE, DESIRABLE, POLICY - REFERENCE)


def test_mismatched_kl_by_hand():
    # log-ratios 4, 4, -2, -2, and then 4, -2, -2; it may be negative
    assert float(mismatched_kl(POLICY, REFERENCE)) == 1.0
    assert float(mismatched_kl(POLICY, REFERENCE, where=jnp.array([True, False, True, True]))) == 0.0
    assert float(mismatched_kl(REFERENCE, POLICY)) == -1.0


def test_mismatched_kl_ignores_what_stands_in_rows_that_are_not_real():
    broken = POLICY.at[1].set(jnp.nan)
    assert float(mismatched_kl(broken, REFERENCE, where=jnp.array([True, False, True, True]))) == 0.0


def test_mismatched_kl_is_detached_and_wide(x64):
    np.testing.assert_array_equal(jax.grad(lambda p: mismatched_kl(p, REFERENCE))(POLICY), 0.0)
    np.testing.assert_array_equal(jax.grad(lambda r: mismatched_kl(POLICY, r))(REFERENCE), 0.0)
    assert mismatched_kl(POLICY.astype(jnp.bfloat16), REFERENCE).dtype == jnp.float32
    assert mismatched_kl(POLICY.astype(jnp.float64), REFERENCE).dtype == jnp.float64


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_mismatched_kl_is_that_of_the_whole_batch_on_a_mesh(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    where = jnp.array([True, True, True, False])  # (4 + 4 - 2) / 3
    with jax.set_mesh(mesh):
        arrays = jax.device_put((POLICY, REFERENCE, where), NamedSharding(mesh, P("data")))
        np.testing.assert_allclose(jax.jit(lambda p, r, w: mismatched_kl(p, r, where=w))(*arrays), 2.0)
        per_shard = jax.shard_map(
            lambda p, r, w: mismatched_kl(p, r, where=w, axis_name="data"), in_specs=P("data"), out_specs=P()
        )
        np.testing.assert_allclose(jax.jit(per_shard)(*arrays), 2.0)
