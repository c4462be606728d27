"""Sums over the whole batch, wherever its pairs lie.

A batch sharded over a mesh is one array to JAX, and its mean is the mean of all. Inside `shard_map` a function sees its
own pairs only: there `axis_name` names the mesh axes over which the rest lies.

Dimension key: B pairs (of this shard), G pairs of all shards.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

AxisName = str | tuple[str, ...] | None


def replicated(array: jax.Array) -> jax.Array:
    """The array whole on every device of the mesh in use, for what compares pairs with each other (a sort, a rank)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or AxisType.Manual in mesh.axis_types:
        return array
    if all(kind == AxisType.Explicit for kind in mesh.axis_types):
        return jax.sharding.reshard(array, PartitionSpec())
    return jax.lax.with_sharding_constraint(array, PartitionSpec())


def gathered(array_B: jax.Array, axis_name: AxisName) -> jax.Array:
    """The pairs of all shards, [G], in the order of the shards."""
    if axis_name is None:
        return replicated(array_B)
    return jax.lax.all_gather(array_B, axis_name, tiled=True)


def own(array_G: jax.Array, like_B: jax.Array, axis_name: AxisName) -> jax.Array:
    """The pairs of this shard out of those of all, [B]."""
    if axis_name is None:
        return array_G
    start = jax.lax.axis_index(axis_name) * like_B.shape[0]
    return jax.lax.dynamic_slice_in_dim(array_G, start, like_B.shape[0])


def present(values_B: jax.Array, where: jax.Array | None) -> jax.Array:
    """Mask of the real pairs, bool [B]; all of them without `where`."""
    return jnp.ones(values_B.shape, bool) if where is None else jnp.asarray(where, bool)


def total(values_B: jax.Array, where: jax.Array | None, axis_name: AxisName) -> jax.Array:
    """The sum over all real pairs, []. A value that is not finite counts only where its pair is real."""
    summed = jnp.where(present(values_B, where), values_B, 0).sum()
    return summed if axis_name is None else jax.lax.psum(summed, axis_name)


def count(values_B: jax.Array, where: jax.Array | None, axis_name: AxisName) -> jax.Array:
    """Number of real pairs, [], of the type of the values."""
    return total(jnp.ones_like(values_B), where, axis_name)


def mean(values_B: jax.Array, *, where: jax.Array | None = None, axis_name: AxisName = None) -> jax.Array:
    """The mean over all real pairs, []; 0 of none."""
    return total(values_B, where, axis_name) / jnp.maximum(count(values_B, where, axis_name), 1)


def mean_and_std(
    values_B: jax.Array, *, where: jax.Array | None = None, axis_name: AxisName = None
) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation (over n - 1) of all real pairs, [] each; the deviation of one pair is 0."""
    centre = mean(values_B, where=where, axis_name=axis_name)
    squares = total((values_B - centre) ** 2, where, axis_name)
    return centre, jnp.sqrt(squares / jnp.maximum(count(values_B, where, axis_name) - 1, 1))
