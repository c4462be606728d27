"""Check of the head of a GGUF file, which believes nothing: the reader of `gguf` would count to 2^60 if told to."""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value -> its bytes."""
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MOST_ITEMS = 5_000_000  # of the metadata: a vocabulary of a million tokens with types and merges has fewer
_MOST_DIMENSIONS = 4
_MOST_ELEMENTS = 2**48


def check_header(path: Path) -> None:
    """Raise ValueError unless all counts, lengths and offsets of the head are within the file."""
    if not path.stat().st_size:
        raise ValueError("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walk = _Walk(data)
        tensors, fields = walk.begin()
        for _ in range(fields):
            walk.string()
            walk.value(walk.number("I"))
        for _ in range(tensors):
            walk.tensor()


class _Walk:
    """A place in a file, moved on by what is read there."""

    def __init__(self, data: mmap.mmap):
        self._data, self._at, self._order, self._items = data, 0, "<", 0

    def begin(self) -> tuple[int, int]:
        """The numbers of tensors and of fields of the metadata."""
        if self._data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self._skip(4)
        version = self.number("I")
        if version & 0xFFFF == 0:  # written on a machine of the other byte order
            self._order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}")
        return self.number("Q"), self.number("Q")

    def number(self, kind: str) -> int:
        start = self._at
        self._skip(struct.calcsize(kind))
        return struct.unpack_from(self._order + kind, self._data, start)[0]

    def string(self) -> None:
        self._skip(self.number("Q"))

    def value(self, kind: int, *, depth: int = 0) -> None:
        self._count(1)
        if kind in _SIZES:
            self._skip(_SIZES[kind])
        elif kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if depth > 1:
                raise ValueError("lists of lists of lists in its metadata")
            if inner in _SIZES:
                self._skip(count * _SIZES[inner])
                self._count(count)
                return
            for _ in range(count):
                self.value(inner, depth=depth + 1)
        else:
            raise ValueError(f"a value of type {kind}")

    def tensor(self) -> None:
        self.string()
        dimensions = self.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        if math.prod(self.number("Q") for _ in range(dimensions)) > _MOST_ELEMENTS:
            raise ValueError("a tensor beyond all memory")
        self.number("I")
        if (offset := self.number("Q")) > len(self._data):
            raise ValueError(f"a tensor at byte {offset}")

    def _count(self, values: int) -> None:
        self._items += values
        if self._items > _MOST_ITEMS:
            raise ValueError(f"more than {_MOST_ITEMS} values in its metadata")

    def _skip(self, size: int) -> None:
        if size > len(self._data) - self._at:
            raise ValueError(f"{size} bytes at byte {self._at}, of {len(self._data)} in all")
        self._at += size
