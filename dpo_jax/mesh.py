"""The device mesh: logical axis names, which mesh axes they use, and placing arrays on it.

A dimension that a mesh axis does not divide stays whole on every device (9 heads over 2 tensor shards, say).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor", "sequence")

LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    "rows": ("data", "fsdp"),
    "length": ("sequence",),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "layers": (),
    "qkv": (),
    "positions": (),
    "head_size": (),
    "rank": (),
}

Names = Sequence[str | None]


def make_mesh(*, data: int = 1, fsdp: int = -1, tensor: int = 1, sequence: int = 1) -> Mesh:
    """A mesh of all devices; one axis may be -1 and takes what the others leave.

    Raises:
        ValueError: the axes do not multiply to the number of devices, which the message states.
    """
    sizes = [data, fsdp, tensor, sequence]
    devices = jax.device_count()
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh axes are positive, and one may be -1: {dict(zip(MESH_AXES, sizes, strict=True))}")
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, devices // math.prod(size for size in sizes if size != -1))
    if math.prod(sizes) != devices:
        shape = " x ".join(f"{name} {size}" for name, size in zip(MESH_AXES, sizes, strict=True))
        raise ValueError(f"the mesh {shape} wants {math.prod(sizes)} devices, this machine has {devices}")
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def partition_spec(names: Names, shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """The mesh axes of each dimension; a dimension its axes do not divide is not split."""
    entries: list[Any] = []
    for name, size in zip(names, shape, strict=True):
        axes = tuple(axis for axis in LOGICAL_AXES[name] if mesh.shape.get(axis, 1) > 1) if name else ()
        splits = math.prod(mesh.shape[axis] for axis in axes)
        entries.append(axes if axes and size % splits == 0 else None)
    return PartitionSpec(*entries)


def named_sharding(mesh: Mesh, names: Names, shape: Sequence[int]) -> NamedSharding:
    """The sharding of an array of this shape whose dimensions have these logical names."""
    return NamedSharding(mesh, partition_spec(names, shape, mesh))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def constrain(array: jax.Array, *names: str | None) -> jax.Array:
    """Asks XLA to lay an intermediate out by its logical names; does nothing where no Auto mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return array
    return jax.lax.with_sharding_constraint(array, partition_spec(names, array.shape, mesh))


def axis_splits(name: str) -> int:
    """Into how many parts the mesh in use splits a dimension with this logical name; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(axis, 1) for axis in LOGICAL_AXES[name])


def place(sharding: NamedSharding, array: np.ndarray) -> jax.Array:
    """Puts a host array, which every process holds whole, on the mesh; each process copies only its own part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def place_lazily(sharding: NamedSharding, shape: Sequence[int], read: Callable[[Any], np.ndarray]) -> jax.Array:
    """The same from a function `index -> part`, one part at a time: a large array is never whole on the host."""
    places = sharding.addressable_devices_indices_map(tuple(shape))
    parts = [jax.device_put(read(index), device).block_until_ready() for device, index in places.items()]
    return jax.make_array_from_single_device_arrays(tuple(shape), sharding, parts)
