"""Pictures and clips that are decoded when they are called, and the shape that each is brought to.

Dimension key: F frames, H height, W width, C channels.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from dpo_jax.data.decoders import decoded
from dpo_jax.data.decoding import Shape, Undecodable, brought
from dpo_jax.errors import BadRow

Cell = bytes | Path | Callable[[], np.ndarray]
"""A file's bytes, the file, or what makes the pixels, uint8 [F, H, W, C]."""


class Sample(NamedTuple):
    """A picture or a clip; calling it gives its pixels in the shape, uint8 [H, W, C] or [F, H, W, C].

    `where` is the row that it is of, and `what` which part of that row.
    """

    cell: Cell
    shape: Shape
    where: str
    what: str

    def __call__(self) -> np.ndarray:
        """Read and decode; raises BadRow where that fails."""
        try:
            return brought(self.cell(), self.shape) if callable(self.cell) else decoded(self._bytes(), self.shape)
        except Undecodable as bad:
            raise BadRow(self.where, bad.reason, f"{self.what}: {bad}") from bad

    def _bytes(self) -> bytes:
        assert not callable(self.cell)
        try:
            return self.cell.read_bytes() if isinstance(self.cell, Path) else self.cell
        except OSError as error:
            raise Undecodable("unreadable file", f"it cannot be read: {error.strerror or error}.") from error


def sample_of(value: object, column: str, where: str, *, shape: Shape, root: Path | None) -> Sample:
    """Sample of a cell: a path below `root`, bytes, Hugging Face's {bytes, path}, or what makes pixels.

    Raises:
        BadRow: it holds nothing of these, or a path that leaves `root`.
    """
    what = f"column {column!r}"
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes) or callable(value):
        return Sample(cast(Cell, value), shape, where, what)
    if not isinstance(value, str) or not value:
        detail = f"{what} is {reprlib.repr(value)}, neither a path nor bytes nor {{bytes, path}}."
        raise BadRow(where, "no picture", detail)
    return Sample(_inside(value, root, what, where), shape, where, f"{what}, file {value}")


def _inside(name: str, root: Path | None, what: str, where: str) -> Path:
    """The file of this name; data from elsewhere could name any file of this machine."""
    if root is None:
        detail = f"{what} is the path {name!r}, but the source has no folder: set root to the one that paths start at."
        raise BadRow(where, "path without root", detail)
    try:
        path = (root / name).resolve()
        inside = path.is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # a null byte, a circle of links
        inside = False
    if not inside:
        detail = f"{what} is the path {name!r}, which is not below {root}. Set root to the folder that holds the files."
        raise BadRow(where, "path outside of the folder", detail)
    return path
