"""What every picture or clip is brought to: one size, one number of channels, of clips one number of frames.

Dimension key: F frames, H height, W width, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

_MODES = {1: "L", 3: "RGB"}


class Undecodable(Exception):
    """A picture or a clip that cannot be used. `reason` is short and the same for all of its kind."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


class Shape(NamedTuple):
    """Sizes in pixels; channels are 1 (grey) or 3 (red, green, blue). Without frames it is that of pictures."""

    frames: int | None
    height: int
    width: int
    channels: int


def brought(pixels_FHWC: np.ndarray, shape: Shape) -> np.ndarray:
    """Frames of uint8 to the shape, uint8 [H, W, C] or [F, H, W, C].

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


def over_white(picture: Image.Image) -> Image.Image:
    """The picture laid over white where it has transparent parts; grey or RGB, whatever it was."""
    if picture.has_transparency_data:
        opaque = picture.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return picture if picture.mode in _MODES.values() else picture.convert("L" if picture.mode == "1" else "RGB")
