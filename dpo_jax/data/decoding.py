"""Bytes of pictures and clips to pixels: what Pillow reads, arrays of numpy, and MP4 by PyAV. `decoders` runs it.

Nothing here trusts a file: no pickles, no more pixels than fit, and every failure is an `Undecodable`.

Dimension key: F frames, H height, W width, C channels (1 or 3; of arrays also 4, the last one alpha).
"""

from __future__ import annotations

import io
import itertools
import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple, cast

import numpy as np
from PIL import Image, ImageOps

from dpo_jax.errors import UserError

MOST_PIXELS = 1 << 26
"""Of one picture or frame; a small file may claim to hold any number."""

_STILL = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # not all that Pillow knows: some run other programs
_MOVING = ("GIF", "PNG", "TIFF", "WEBP")
PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
CLIPS = (".gif", ".mp4", ".npy", ".npz")


_MODES = {1: "L", 3: "RGB"}


class Shape(NamedTuple):
    """Sizes of every sample, in pixels; channels are 1 (grey) or 3 (red, green, blue). Without frames: of pictures."""

    frames: int | None
    height: int
    width: int
    channels: int


class Undecodable(Exception):
    """A picture or a clip that cannot be used. `reason` is short and the same for all of its kind."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def _other_sizes() -> Undecodable:
    return Undecodable("frames of different sizes", "its frames have different sizes.")


def picture(data: bytes) -> np.ndarray:
    """The only frame of a picture, uint8 [1, H, W, C]."""
    with _opened(data, _STILL) as opened:
        frames = getattr(opened, "n_frames", 1)
        if frames > 1 and opened.format in _MOVING:
            says = f"it has {frames} frames: read it as videos, or keep one of them."
            raise Undecodable("a clip, not a picture", says)
        return _pixels(ImageOps.exif_transpose(opened))[None]


def clip(data: bytes, *, frames: int) -> np.ndarray:
    """The first frames of a clip, uint8 [F, H, W, C]; fewer where it has fewer."""
    for begins, decode in _CLIPS.items():
        if data[begins[0] :].startswith(begins[1]):
            taken = list(itertools.islice(decode(data), frames))
            if len({frame.shape for frame in taken}) > 1:
                raise _other_sizes()
            return np.stack(taken) if taken else np.empty((0, 1, 1, 1), np.uint8)
    raise Undecodable("not a clip", f"it is none of {', '.join(CLIPS)}, whatever it is called.")


@contextmanager
def _or_refused(reason: str, says: str) -> Iterator[None]:
    """Turn whatever is raised in the block into an `Undecodable`: of spoiled bytes libraries raise what they like."""
    try:
        yield
    except Undecodable:
        raise
    except MemoryError as error:
        raise Undecodable("too much memory", "to decode it takes more memory than a decoder may have.") from error
    except Exception as error:
        raise Undecodable(reason, f"{says}: {error}") from error


@contextmanager
def _opened(data: bytes, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """A picture as Pillow opens it; whatever Pillow raises, also in the block, becomes an `Undecodable`."""
    try:
        opened = Image.open(io.BytesIO(data), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Undecodable("too many pixels", f"it claims more than {MOST_PIXELS} pixels: {error}") from error
    except Exception as error:
        raise Undecodable("not a picture", f"it is none of {', '.join(formats)}, or its head is damaged.") from error
    _check_size(opened.height, opened.width)
    with _or_refused("damaged picture", "it cannot be decoded"):
        yield opened


def _check_size(height: int, width: int) -> None:
    if height * width > MOST_PIXELS:
        claim = f"it claims to be {height} x {width} pixels; at most {MOST_PIXELS} are read."
        raise Undecodable("too many pixels", claim)


def _pixels(opened: Image.Image) -> np.ndarray:
    """Pixels of an opened picture, uint8 [H, W, C]; 16 bits of grey become 8."""
    if opened.mode.startswith("I;16"):
        grey = np.asarray(opened).astype(np.float32) / 257.0
        return np.rint(grey).astype(np.uint8)[..., None]
    if opened.mode in ("I", "F"):
        raise Undecodable("unknown pixels", f"its pixels are of Pillow's mode {opened.mode}, whose white is unknown.")
    pixels = np.asarray(over_white(opened))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def over_white(picture: Image.Image) -> Image.Image:
    """The picture laid over white where it has transparent parts; grey or RGB, whatever it was."""
    if picture.has_transparency_data:
        opaque = picture.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return picture if picture.mode in ("L", "RGB") else picture.convert("L" if picture.mode == "1" else "RGB")


def _gif(data: bytes) -> Iterator[np.ndarray]:
    with _opened(data, ("GIF",)) as opened:
        size = opened.size
        for number in range(getattr(opened, "n_frames", 1)):
            opened.seek(number)
            if opened.size != size:  # a frame beyond the picture enlarges it, to whatever it claims
                raise _other_sizes()
            pixels = _pixels(opened)
            yield np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def _npy(data: bytes) -> Iterator[np.ndarray]:
    """The frames of an array, [F, H, W] or [F, H, W, C]; read by hand, because numpy allocates before it looks."""
    file = io.BytesIO(data)
    with _or_refused("damaged array", "the head of the array cannot be read"):
        version = np.lib.format.read_magic(file)
        shape, by_columns, dtype = _HEADERS[version](file)
    if dtype != np.uint8:
        raise Undecodable("array not of uint8", f"it is an array of {dtype}; only uint8 is read, and never a pickle.")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)) or 0 in shape[1:]:
        raise Undecodable("array of another shape", f"its shape is {list(shape)}, not [F, H, W] or [F, H, W, C].")
    if math.prod(shape) != len(data) - file.tell():
        held = len(data) - file.tell()
        raise Undecodable("damaged array", f"its shape {list(shape)} does not fit its {held} bytes.")
    _check_size(shape[1], shape[2])
    frames = np.frombuffer(data, np.uint8, offset=file.tell()).reshape(shape, order="F" if by_columns else "C")
    yield from np.ascontiguousarray(frames[..., None] if frames.ndim == 3 else frames)


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _npz(data: bytes) -> Iterator[np.ndarray]:
    with _or_refused("damaged array", "the archive cannot be read"), zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) != 1:
            raise Undecodable("not one array", f"it holds {len(members)} arrays; one is wanted.")
        if members[0].file_size > 4 * MOST_PIXELS:
            raise Undecodable("too many pixels", f"its array claims {members[0].file_size} bytes.")
        held = archive.read(members[0])
    yield from _npy(held)


def _mp4(data: bytes) -> Iterator[np.ndarray]:
    try:
        import av  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("MP4 needs PyAV, which is not installed. Install it: pip install 'dpo-jax[video]'") from error
    with (
        _or_refused("damaged video", "it cannot be decoded"),
        # A title in another code than UTF-8 is no reason to refuse what is seen.
        av.open(cast(IO[bytes], io.BytesIO(data)), "r", metadata_errors="replace") as container,
    ):
        if not container.streams.video:
            raise Undecodable("no video", "the file holds no pictures.")
        stream = container.streams.video[0]
        if stream.codec_context is None:  # PyAV would end the process
            raise Undecodable("unknown codec", "its pictures are in a code that FFmpeg does not know.")
        for frame in container.decode(stream):
            _check_size(frame.height, frame.width)
            yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


_CLIPS: dict[tuple[int, bytes], Callable[[bytes], Iterator[np.ndarray]]] = {
    (0, b"\x93NUMPY"): _npy,
    (0, b"PK\x03\x04"): _npz,
    (0, b"GIF8"): _gif,
    (4, b"ftyp"): _mp4,
}
"""Where a file of a kind begins how -> its frames, uint8 [H, W, C], one after the other."""


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
