"""Sums over the batch, by hand; over a mesh they are tried with every loss that uses them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.losses.statistics import count, gathered, mean, mean_and_std, own, present, total

VALUES = jnp.array([1.0, 5.0, jnp.nan, 9.0])
REAL = jnp.array([True, True, False, True])


def test_by_hand():
    np.testing.assert_allclose(total(VALUES, REAL, None), 15.0)
    np.testing.assert_allclose(count(VALUES, REAL, None), 3.0)
    np.testing.assert_allclose(mean(VALUES, where=REAL), 5.0)
    # deviations -4, 0, 4: 32 / (3 - 1)
    np.testing.assert_allclose(mean_and_std(VALUES, where=REAL), [5.0, 4.0])
    np.testing.assert_allclose(mean_and_std(jnp.array([2.0, 4.0])), [3.0, np.sqrt(2.0)], rtol=1e-6)


def test_of_one_pair_and_of_none():
    np.testing.assert_array_equal(mean_and_std(jnp.array([7.0])), [7.0, 0.0])
    np.testing.assert_array_equal(mean_and_std(VALUES, where=jnp.zeros(4, bool)), [0.0, 0.0])


def test_a_large_common_value_does_not_swallow_the_deviation():
    # mean(x^2) - mean(x)^2 would be 0 or NaN in float32
    centre, deviation = mean_and_std(jnp.array([1e5 - 1, 1e5, 1e5 + 1]))
    np.testing.assert_allclose([centre, deviation], [1e5, 1.0], rtol=1e-5)


def test_a_weight_of_zero_or_one_is_a_mask():
    mask = present(VALUES, jnp.array([1.0, 0.0, 1.0, 1.0]))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, [True, False, True, True])
    np.testing.assert_array_equal(present(VALUES, None), [True] * 4)


def test_without_a_mesh_nothing_is_moved():
    assert gathered(VALUES, None) is VALUES and own(VALUES, VALUES, None) is VALUES


def test_a_shard_that_names_no_axis_stays_with_its_own():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("data")
    with jax.set_mesh(mesh):
        sums = jax.jit(jax.shard_map(lambda part: gathered(part, None).sum()[None], in_specs=split, out_specs=split))
        np.testing.assert_array_equal(sums(jnp.arange(16.0)), [4 * i + 1 for i in range(8)])


def test_shards_come_in_order_and_get_their_own_back():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    axes = ("data", "fsdp")
    split = jax.sharding.PartitionSpec(axes)
    values = jnp.arange(16.0)

    def of_shard(part):
        whole = gathered(part, axes)
        return own(2 * whole, part, axes), mean(part, axis_name=axes)[None], whole[:2]

    doubled, means, first = jax.jit(jax.shard_map(of_shard, mesh=mesh, in_specs=split, out_specs=split))(values)
    np.testing.assert_array_equal(doubled, 2 * values)
    np.testing.assert_array_equal(means, [7.5] * 8)
    np.testing.assert_array_equal(first.reshape(8, 2), [[0.0, 1.0]] * 8)
