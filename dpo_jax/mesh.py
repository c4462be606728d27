"""The device mesh: logical axis names, which mesh axes they use, and placing arrays on it.

A dimension that a mesh axis does not divide stays whole on every device (9 heads over 2 tensor shards, say).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

MESH_AXES = ("slice", "data", "fsdp", "tensor", "sequence")

# A slice is what one fast network joins; slices hold all parameters each, so that only gradients cross the slow one.
LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    "rows": ("slice", "data", "fsdp"),
    "length": ("sequence",),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "whole_rows_heads": ("tensor", "sequence"),  # inside attention, where length is not split
    "mlp": ("tensor",),
    "layers": (),
    "qkv": (),
    "positions": (),
    "head_size": (),
    "rank": (),
}

BLOCK_BYTES = 4 * 2**20
"""Size of the part of a large array that is on a host at a time while it is placed, for all its devices together."""

Names = Sequence[str | None]
Read = Callable[[tuple[slice, ...]], np.ndarray]


def mesh_sizes(
    devices: int, *, slice: int = 1, data: int = 1, fsdp: int = -1, tensor: int = 1, sequence: int = 1
) -> tuple[int, ...]:
    """Return the number of devices along each mesh axis; one axis may be -1 and takes what the others leave.

    Raises:
        ValueError: the axes do not multiply to the number of devices, which the message states.
    """
    sizes = [slice, data, fsdp, tensor, sequence]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh axes are positive, and one may be -1: {dict(zip(MESH_AXES, sizes, strict=True))}")
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, devices // math.prod(size for size in sizes if size != -1))
    if math.prod(sizes) != devices:
        shape = " x ".join(f"{name} {size}" for name, size in zip(MESH_AXES, sizes, strict=True) if size != 1)
        raise ValueError(f"the mesh {shape} wants {math.prod(sizes)} devices, this machine has {devices}")
    return tuple(sizes)


def make_mesh(*, devices: Sequence[object] | None = None, **axes: int) -> Mesh:
    """Make a mesh of all devices, or of those given; the axes as in `mesh_sizes`.

    Raises:
        ValueError: as there, or the devices are in several slices and the axis of that name does not say how many.
    """
    devices = jax.devices() if devices is None else devices
    sizes, types = mesh_sizes(len(devices), **axes), (AxisType.Auto,) * len(MESH_AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:  # one network joins all
        return jax.make_mesh(sizes, MESH_AXES, axis_types=types, devices=devices)
    if sizes[0] != slices:
        raise ValueError(f"the devices are in {slices} slices, and the axis slice is {sizes[0]}")
    ones = (1,) * (len(sizes) - 1)
    return Mesh(create_hybrid_device_mesh((1, *sizes[1:]), (slices, *ones), devices=devices), MESH_AXES, types)


def partition_spec(names: Names, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The mesh axes of each dimension; a dimension its axes do not divide is not split."""
    entries: list[tuple[str, ...] | None] = []
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
    """Ask XLA to lay an intermediate out by its logical names; does nothing where no Auto mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return array
    return jax.lax.with_sharding_constraint(array, partition_spec(names, array.shape, mesh))


def by_shards(
    function: Callable[..., jax.Array], *arrays: object, names: Sequence[Names], out: Names, out_shape: Sequence[int]
) -> jax.Array:
    """`function(*arrays)` of each device on its own parts, by logical names; of the whole where no Auto mesh is set.

    An argument may be a tree, all of whose arrays have these names, and dimensions behind them that are not split.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or any(kind != AxisType.Auto for kind in mesh.axis_types):
        return function(*arrays)
    specs = tuple(
        jax.tree.map(lambda array, of=of: partition_spec(of, array.shape[: len(of)], mesh), tree)
        for tree, of in zip(arrays, names, strict=True)
    )
    out_spec = partition_spec(out, out_shape, mesh)
    return jax.shard_map(function, in_specs=specs, out_specs=out_spec, check_vma=False)(*arrays)


def axis_splits(name: str, mesh: Mesh | None = None) -> int:
    """Number of parts into which a mesh, or the one in use, splits a dimension of this logical name; 1 without one."""
    used = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    return math.prod(used.shape.get(axis, 1) for axis in LOGICAL_AXES[name])


def place(sharding: NamedSharding, array: np.ndarray) -> jax.Array:
    """Put a host array, which every process holds whole, on the mesh; each process copies only its own part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def place_lazily(
    sharding: NamedSharding, shape: Sequence[int], dtype: DTypeLike, read: Read, *, cut: Sequence[int] = ()
) -> jax.Array:
    """Put an array on the mesh part by part, from a function `index -> part`; a host never holds much of it.

    What is larger than `BLOCK_BYTES` is filled block by block, cut along the first dimensions of `cut` (an order of
    all; else as they come) that make it small enough. Every process of a run takes part in each block.
    """
    shape, own = tuple(shape), sharding.shard_shape(tuple(shape))
    most = BLOCK_BYTES // np.dtype(dtype).itemsize // len(sharding.addressable_devices)
    block = _block_shape(own, cut or range(len(shape)), most)
    if block == own:
        return _place_block(sharding, shape, block, (0,) * len(shape), read)
    array = jnp.zeros(shape, dtype, device=sharding)
    steps = [range(0, size, step) for size, step in zip(own, block, strict=True)]
    for corner in itertools.product(*steps):
        # The last block of a row lies over the one before it, so that all have one shape and are compiled once.
        start = tuple(min(at, size - step) for at, size, step in zip(corner, own, block, strict=True))
        part = _place_block(sharding, shape, block, start, read)
        array = _write_block(array, part, np.array(start, np.int32), sharding=sharding).block_until_ready()
    return array


def _block_shape(shape: tuple[int, ...], cut: Sequence[int], most: int) -> tuple[int, ...]:
    """The shape of equal blocks of at most `most` elements that together cover an array."""
    block = list(shape)
    for axis in cut:
        rest = math.prod(block) // max(1, block[axis])
        pieces = -(-shape[axis] // max(1, most // max(1, rest)))
        block[axis] = -(-shape[axis] // max(1, pieces))
    return tuple(block)


def _place_block(
    sharding: NamedSharding, shape: tuple[int, ...], block: tuple[int, ...], start: tuple[int, ...], read: Read
) -> jax.Array:
    """One block of every device's part, which begins at `start` of it; what several devices hold is read once."""
    held: dict[tuple[int, ...], np.ndarray] = {}
    parts = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        corner = tuple(part.indices(size)[0] + at for part, size, at in zip(index, shape, start, strict=True))
        if corner not in held:
            held[corner] = read(tuple(slice(at, at + size) for at, size in zip(corner, block, strict=True)))
        parts.append(jax.device_put(held[corner], device).block_until_ready())
    own = sharding.shard_shape(shape)
    together = tuple(size * of // part for size, of, part in zip(block, shape, own, strict=True))
    return jax.make_array_from_single_device_arrays(together, sharding, parts)


@functools.partial(jax.jit, static_argnames="sharding", donate_argnums=0)
def _write_block(array: jax.Array, part: jax.Array, start: jax.Array, *, sharding: NamedSharding) -> jax.Array:
    """The array with a block of every device's part in it, in place."""
    # Halves as integers: XLA's CPU backend would turn all of the array into float32 and back.
    bits = jnp.uint16 if array.dtype.itemsize == 2 else array.dtype

    def write(own: jax.Array, block: jax.Array, start: jax.Array) -> jax.Array:
        written = jax.lax.dynamic_update_slice(own.view(bits), block.view(bits), list(start))
        return written.view(array.dtype)

    specs = (sharding.spec, sharding.spec, PartitionSpec())
    return jax.shard_map(write, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec)(array, part, start)
