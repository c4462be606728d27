"""A picture or a clip that is decoded when it is called, and what a cell of a table may hold to be one."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from dpo_jax.data.pictures import decoding
from dpo_jax.data.pictures.shape import Shape, Undecodable, brought
from dpo_jax.data.sources.record import BadRow

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
        """Reads and decodes; raises BadRow where that fails."""
        try:
            return brought(self._frames(), self.shape)
        except Undecodable as bad:
            raise BadRow(self.where, bad.reason, f"{self.what}: {bad}") from bad

    def _frames(self) -> np.ndarray:
        if callable(self.cell):
            return self.cell()
        try:
            data = self.cell.read_bytes() if isinstance(self.cell, Path) else self.cell
        except OSError as error:
            raise Undecodable("unreadable file", f"it cannot be read: {error.strerror or error}.") from error
        if self.shape.frames is None:
            return decoding.picture(data)
        return decoding.clip(data, frames=self.shape.frames)


def sample_of(value: Any, column: str, where: str, *, shape: Shape, root: Path | None) -> Sample:
    """What a cell holds: a path below `root`, bytes, Hugging Face's {bytes, path}, or what makes pixels.

    Raises:
        BadRow: it holds nothing of these, or a path that leaves `root`.
    """
    what = f"column {column!r}"
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, bytes) or callable(value):
        return Sample(cast(Cell, value), shape, where, what)
    if not isinstance(value, str) or not value:
        found = f"{what} is {reprlib.repr(value)}, neither a path nor bytes nor {{bytes, path}}."
        raise BadRow(where, "no picture", found)
    return Sample(_inside(value, root, what, where), shape, where, f"{what}, file {value}")


def _inside(name: str, root: Path | None, what: str, where: str) -> Path:
    """The file of this name; data from elsewhere could name any file of this machine."""
    if root is None:
        found = f"{what} is the path {name!r}, but the source has no folder: set root to the one that paths start at."
        raise BadRow(where, "path without root", found)
    try:
        path = (root / name).resolve()
        inside = path.is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # a null byte, a circle of links
        inside = False
    if not inside:
        found = f"{what} is the path {name!r}, which is not below {root}. Set root to the folder that holds the files."
        raise BadRow(where, "path outside of the folder", found)
    return path
