"""Pictures and clips that are decoded when they are called, and the shape that each is brought to.

Dimension key: F frames, H height, W width, C channels.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from PIL import Image

from dpo_jax.data.pictures import decoding
from dpo_jax.data.pictures.decoding import Undecodable, over_white
from dpo_jax.errors import BadRow

Cell = bytes | Path | Callable[[], np.ndarray]
"""A file's bytes, the file, or what makes the pixels, uint8 [F, H, W, C]."""

_MODES = {1: "L", 3: "RGB"}


class Shape(NamedTuple):
    """Sizes of every sample, in pixels; channels are 1 (grey) or 3 (red, green, blue). Without frames: of pictures."""

    frames: int | None
    height: int
    width: int
    channels: int


def brought(pixels_FHWC: np.ndarray, shape: Shape) -> np.ndarray:
    """Bring frames of uint8 to the shape: uint8 [H, W, C] or [F, H, W, C].

    Of a clip the first frames are taken. Each frame is cut to the middle of the wanted aspect ratio and then resized,
    antialiased.

    Raises:
        Undecodable: a clip has fewer frames than are wanted, or none.
    """
    wanted = 1 if shape.frames is None else shape.frames
    if len(pixels_FHWC) < wanted:
        raise Undecodable("too few frames", f"it has {len(pixels_FHWC)} frames; {wanted} are wanted.")
    frames = np.stack([_frame(frame, shape) for frame in pixels_FHWC[:wanted]])
    return frames[0] if shape.frames is None else frames


def _frame(pixels_HWC: np.ndarray, shape: Shape) -> np.ndarray:
    height, width, channels = pixels_HWC.shape
    if (height, width, channels) == shape[1:]:
        return pixels_HWC
    picture = Image.fromarray(pixels_HWC[..., 0] if channels == 1 else pixels_HWC)
    picture = over_white(picture).convert(_MODES[shape.channels])
    if (height, width) != (shape.height, shape.width):
        scale = min(height / shape.height, width / shape.width)
        kept_height, kept_width = max(1, round(scale * shape.height)), max(1, round(scale * shape.width))
        left, top = (width - kept_width) // 2, (height - kept_height) // 2
        # Cut first: with `box`, Pillow would mix in what lies beside it.
        middle = picture.crop((left, top, left + kept_width, top + kept_height))
        picture = middle.resize((shape.width, shape.height), Image.Resampling.BICUBIC)
    return np.asarray(picture).reshape(shape[1:])


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
