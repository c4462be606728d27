"""diffusion_dpo and diffusion_kto by law, diffusion_baseline by hand, and the edges of what they may be given."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dpo_jax.losses.diffusion import diffusion_baseline, diffusion_dpo, diffusion_kto
from dpo_jax.losses.pairwise import dpo
from dpo_jax.types import PairLogps

POLICY_PAIRS, REFERENCE_PAIRS = jnp.array([[0.2, 0.9], [0.5, 0.4]]), jnp.array([[0.4, 0.8], [0.3, 0.7]])
POLICY, REFERENCE = jnp.array([0.2, 0.2, 0.6, 0.6]), jnp.array([0.7, 0.7, 0.5, 0.5])  # gains 0.5, 0.5, -0.1, -0.1
DESIRABLE = jnp.array([True, False, True, False])


def test_diffusion_dpo_is_dpo_of_minus_half_the_error():
    policy, reference = (PairLogps(*(-0.5 * errors.T)) for errors in (POLICY_PAIRS, REFERENCE_PAIRS))
    np.testing.assert_allclose(
        diffusion_dpo(POLICY_PAIRS, REFERENCE_PAIRS, beta=7.0), dpo(policy, reference, beta=7.0), rtol=1e-5
    )


def test_defaults_are_those_of_the_page():
    small = 1e-4 * POLICY_PAIRS, 1e-4 * REFERENCE_PAIRS
    np.testing.assert_array_equal(diffusion_dpo(*small), diffusion_dpo(*small, beta=5000.0))
    small = 1e-4 * POLICY, 1e-4 * REFERENCE, DESIRABLE, 0.0
    np.testing.assert_array_equal(diffusion_kto(*small), diffusion_kto(*small, beta=5000.0))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int32])
def test_labels_may_be_numbers(dtype):
    ours = diffusion_kto(POLICY, REFERENCE, DESIRABLE.astype(dtype), 0.2, beta=5.0)
    np.testing.assert_array_equal(ours, diffusion_kto(POLICY, REFERENCE, DESIRABLE, 0.2, beta=5.0))


def test_baseline_by_hand():
    # gains 0.5, 0.5, -0.1, -0.1; a negative mean gives 0
    np.testing.assert_allclose(diffusion_baseline(POLICY, REFERENCE), 0.2, rtol=1e-6)
    where = jnp.array([True, False, False, True])
    np.testing.assert_allclose(diffusion_baseline(POLICY.at[1].set(jnp.nan), REFERENCE, where=where), 0.2, rtol=1e-6)
    assert float(diffusion_baseline(REFERENCE, POLICY)) == 0.0


def test_baseline_gets_no_gradient_on_either_side():
    np.testing.assert_array_equal(jax.grad(lambda e: diffusion_baseline(e, REFERENCE))(POLICY), 0.0)
    np.testing.assert_array_equal(jax.grad(lambda e: diffusion_baseline(POLICY, e))(REFERENCE), 0.0)
    good = jnp.full(4, True)  # slopes of both labels might cancel
    slope = jax.grad(lambda level: diffusion_kto(POLICY, REFERENCE, good, level, beta=1.0).sum())(0.2)
    assert float(slope) == 0.0


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_the_baseline_is_that_of_the_whole_batch(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, P("data"))
        arrays = jax.device_put((POLICY, REFERENCE), sharding)
        np.testing.assert_allclose(jax.jit(diffusion_baseline)(*arrays), 0.2, rtol=1e-6)
        per_shard = jax.shard_map(
            lambda p, r: diffusion_baseline(p, r, axis_name="data"), in_specs=P("data"), out_specs=P()
        )
        np.testing.assert_allclose(jax.jit(per_shard)(*arrays), 0.2, rtol=1e-6)
        pairs = jax.device_put([x.repeat(2, axis=0) for x in (POLICY_PAIRS, REFERENCE_PAIRS)], sharding)
        expected = diffusion_dpo(POLICY_PAIRS, REFERENCE_PAIRS, beta=4.0).repeat(2)
        np.testing.assert_allclose(jax.jit(lambda p, r: diffusion_dpo(p, r, beta=4.0))(*pairs), expected, rtol=1e-5)


def test_finite_far_out():
    errors = jnp.linspace(0.0, 100.0, 21)
    pairs = jnp.stack([errors, errors[::-1]], axis=1)
    value, slope = jax.jit(jax.value_and_grad(lambda e: diffusion_dpo(e, jnp.zeros((21, 2))).sum()))(pairs)
    assert jnp.isfinite(value) and jnp.isfinite(slope).all()
    # 0.5 * 5000 * (100 - 0), as a line
    np.testing.assert_allclose(diffusion_dpo(pairs[-1:], jnp.zeros((1, 2))), [250_000.0], rtol=1e-6)
    graded = jax.jit(jax.value_and_grad(lambda e, good: diffusion_kto(e, errors[::-1], good, 0.0).sum()))
    for good in (True, False):
        value, slope = graded(errors, jnp.full(21, good))
        assert jnp.isfinite(value) and jnp.isfinite(slope).all()


def test_widths(x64):
    for dtype, expected in ((jnp.float64, jnp.float64), (jnp.bfloat16, jnp.float32)):
        assert diffusion_dpo(POLICY_PAIRS.astype(dtype), REFERENCE_PAIRS.astype(dtype)).dtype == expected
        policy, reference = POLICY.astype(dtype), REFERENCE.astype(dtype)
        baseline = diffusion_baseline(policy, reference)
        assert baseline.dtype == expected
        assert diffusion_kto(policy, reference, DESIRABLE, baseline).dtype == expected


def test_other_shapes_are_refused():
    for policy, reference in (
        (POLICY_PAIRS.T[:, :1], REFERENCE_PAIRS),
        (POLICY, REFERENCE),
        (POLICY_PAIRS[:1], REFERENCE_PAIRS),
    ):
        with pytest.raises(AssertionError):
            diffusion_dpo(policy, reference)
    with pytest.raises(AssertionError):
        diffusion_kto(POLICY, REFERENCE, DESIRABLE[:1], 0.0)
    with pytest.raises(AssertionError):
        diffusion_kto(POLICY, REFERENCE, DESIRABLE, POLICY)
