"""The fingerprint of a store: a few named digests, compared field by field; and rows by their ids.

An id is a 128-bit digest of what a row holds: sixteen bytes, found by bisection.

Dimension key: n rows.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax.files import digest
from dpo_jax.mesh import constrain
from dpo_jax.types import Params

SCORER_VERSION = "1"
"""Raised when the same inputs would give other log-probs."""

Fingerprint = dict[str, str]
RowIds = Sequence[str] | np.ndarray
"""Ids as hexadecimal texts, or as uint8 [n, 16], which ten million rows can afford."""


def _mixed(leaf: jax.Array) -> jax.Array:
    """Two 32-bit sums over the bits of an array, each element mixed with its index: the same on every mesh."""
    bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32 if leaf.dtype.itemsize == 4 else jnp.uint16).astype(jnp.uint32)
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)

    def mix(x: jax.Array) -> jax.Array:  # the finaliser of MurmurHash3: every input bit reaches every output bit
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    first = mix(bits ^ mix(index))
    second = mix(first ^ jnp.uint32(0x9E3779B9))
    return jnp.stack([first.sum(dtype=jnp.uint32), second.sum(dtype=jnp.uint32)])


@functools.partial(jax.jit, static_argnums=1)
def _sums(leaves: list[jax.Array], dtypes: tuple[np.dtype, ...]) -> jax.Array:
    sums = [_mixed(leaf.astype(dtype)) for leaf, dtype in zip(leaves, dtypes, strict=True)]
    return constrain(jnp.stack(sums), None, None)  # every host reads them


def weights_digest(params: Params, dtypes: Params | None = None) -> str:
    """A digest of the parameters, computed where they lie; it does not depend on the mesh.

    `dtypes` are those in which they are digested, by default their own.
    """
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(params), strict=True)
    wanted = jax.tree.leaves(dtypes) if dtypes else [leaf.dtype for leaf in leaves]
    as_held = tuple(map(jnp.dtype, wanted))
    names = [
        f"{jax.tree_util.keystr(path)} {dtype} {leaf.shape}"
        for path, leaf, dtype in zip(paths, leaves, as_held, strict=True)
    ]
    return digest("\n".join(names).encode() + np.asarray(_sums(leaves, as_held)).tobytes())


def rows_digest(row_ids: RowIds, columns: Sequence[np.ndarray | None] = ()) -> str:
    """A digest of the rows, of their order, and of columns beside their texts, in the order of the rows."""
    beside = (b"none" if column is None else digest(column.tobytes()).encode() for column in columns)
    return digest(b"".join([as_ids(row_ids).tobytes(), *beside]))


def make_fingerprint(
    params: Params, row_ids: RowIds, tokenization: Mapping[str, str], *, model: object, dtype: str
) -> Fingerprint:
    """All that the reference's log-probs depend on.

    Args:
        tokenization: the fields that say how text became tokens (tokenizer, template, truncation).
        model: the model's spec; its text is compared.
        dtype: the compute dtype.
    """
    return {
        "weights": weights_digest(params),
        "model": str(model),
        "dtype": dtype,
        "scorer version": SCORER_VERSION,
        "rows": rows_digest(row_ids),
        **tokenization,
    }


def differences(stored: Fingerprint, wanted: Fingerprint) -> list[str]:
    """One line for each field that differs: its name, what the store has, what this run has."""
    names = sorted(stored.keys() | wanted.keys())
    return [
        f"{name}: the store has {json.dumps(stored.get(name))}, this run has {json.dumps(wanted.get(name))}"
        for name in names
        if stored.get(name) != wanted.get(name)
    ]


def as_ids(row_ids: RowIds) -> np.ndarray:
    """Ids as uint8 [n, 16]."""
    if isinstance(row_ids, np.ndarray):
        return row_ids
    return np.frombuffer(bytes.fromhex("".join(row_ids)), np.uint8).reshape(len(row_ids), 16)


class RowIndex:
    """The place of each different id of `ids`, uint8 [n, 16]: where it stands for the first time."""

    def __init__(self, ids: np.ndarray):
        self._keys, self._places = np.unique(_keys(ids), return_index=True)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def first(self) -> np.ndarray:
        """The places of all different ids, in order."""
        return np.sort(self._places)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """The place of each of these ids, int64 [n]; -1 where it is not there."""
        if not len(self):
            return np.full(len(ids), -1)
        keys = _keys(ids)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self) - 1)
        return np.where(self._keys[at] == keys, self._places[at], -1)


def _keys(ids: np.ndarray) -> np.ndarray:
    """Ids as texts of bytes, which numpy sorts; of a fixed length, those that end in zeros stay apart."""
    return np.ascontiguousarray(ids).view("S16").ravel()
