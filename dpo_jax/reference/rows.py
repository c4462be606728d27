"""Rows by their ids, which are 128-bit digests of what they hold: sixteen bytes each, found by bisection.

Dimension key: n rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RowIds = Sequence[str] | np.ndarray
"""Ids as hexadecimal texts, or as uint8 [n, 16], which ten million rows can afford."""


def as_ids(row_ids: RowIds) -> np.ndarray:
    """Ids as uint8 [n, 16]."""
    if isinstance(row_ids, np.ndarray):
        return row_ids
    return np.frombuffer(bytes.fromhex("".join(row_ids)), np.uint8).reshape(len(row_ids), 16)


class RowIndex:
    """Where each different id of `ids`, uint8 [n, 16], stands for the first time."""

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
