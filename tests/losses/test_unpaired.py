"""kto, apo_zero_unpaired, bco and mismatched_kl: by law, and at the edges of what they may be given."""

from __future__ import annotations

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


def test_kto_at_level_zero_is_apo_and_a_negative_level_is_zero():
    expected = apo_zero_unpaired(POLICY, REFERENCE, DESIRABLE, beta=0.3)
    for kl in (0.0, -5.0):
        np.testing.assert_array_equal(kto(POLICY, REFERENCE, DESIRABLE, kl, beta=0.3), expected)


@pytest.mark.parametrize("loss", [kto, bco])
def test_the_level_gets_no_gradient(loss):
    good = jnp.full(4, True)  # slopes of both labels might cancel
    slope = jax.grad(lambda level: loss(POLICY, REFERENCE, good, level).sum())(jnp.float32(0.4))
    assert float(slope) == 0.0


@pytest.mark.parametrize("loss", LOSSES)
def test_labels_may_be_numbers(loss):
    for labels in (DESIRABLE.astype(jnp.float32), DESIRABLE.astype(jnp.int32), np.asarray(DESIRABLE)):
        np.testing.assert_array_equal(loss(POLICY, REFERENCE, labels), loss(POLICY, REFERENCE, DESIRABLE))


def test_far_out_bco_is_still_the_line_it_tends_to():
    far = jnp.array([-600.0, 600.0])
    losses = bco(far, jnp.zeros(2), jnp.array([True, False]), 0.0, beta=1.0)
    np.testing.assert_allclose(losses, [600.0, 600.0], rtol=1e-6)


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
