"""Every kind of file to its pixels, and files that are not what they say."""

from __future__ import annotations

import base64
import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpo_jax.data.decoding import MOST_PIXELS
from dpo_jax.data.pictures.samples import Shape
from dpo_jax.errors import UserError
from tests.data.pictures.conftest import CLIP, COLOUR, GREY, array, encoded, moving, plain, read, write


def test_a_picture_of_the_shape_is_not_touched(pixels):
    values = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values)), COLOUR), values)


def test_channels(pixels):
    red = Image.new("RGB", (4, 4), (200, 0, 0))
    assert (pixels(encoded(red), GREY) == 60).all()  # 0.299 * 200
    assert (pixels(plain(77), COLOUR) == 77).all() and pixels(plain(77), COLOUR).shape == (4, 4, 3)
    assert (pixels(encoded(red.quantize(2)), COLOUR) == (200, 0, 0)).all()
    assert (pixels(encoded(Image.new("1", (4, 4), 1)), GREY) == 255).all()
    for sixteen_bits, eight in ((33096, 129), (65535, 255)):  # 128.8 and 255 times 257
        assert (pixels(encoded(Image.fromarray(np.full((4, 4), sixteen_bits, np.uint16))), GREY) == eight).all()
    assert (pixels(encoded(Image.new("CMYK", (4, 4), (0, 0, 0, 255)), "TIFF"), COLOUR, "a.tif") == 0).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(pixels, mode: str):
    colour = (100, 100, 100, 0) if mode == "RGBA" else (100, 0)
    assert (pixels(encoded(Image.new(mode, (4, 4), colour)), COLOUR) == 255).all()
    half = (0, 0, 0, 51) if mode == "RGBA" else (0, 51)
    assert (pixels(encoded(Image.new(mode, (4, 4), half)), GREY) == 204).all()  # 255 * (1 - 51 / 255)


def test_the_transparent_colour_of_a_palette_is_white(pixels):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    assert (pixels(encoded(picture, transparency=1), COLOUR) == 255).all()
    assert (pixels(encoded(picture, transparency=0), COLOUR) == (40, 50, 60)).all()


def test_exif_orientation_is_applied(pixels):
    upright = np.zeros((4, 4), np.uint8)
    upright[0] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise to be seen upright: the first row becomes the last column
    seen = pixels(encoded(Image.fromarray(upright), exif=exif))[..., 0]
    np.testing.assert_array_equal(seen, np.rot90(upright, -1))


def test_the_middle_is_cut_and_resized_with_antialiasing(pixels):
    wide = np.zeros((8, 24), np.uint8)
    wide[:, 8:16] = 90  # the middle square; what is beside it is left out
    assert (pixels(encoded(Image.fromarray(wide)))[..., 0] == 90).all()
    tall = wide.T.copy()
    assert (pixels(encoded(Image.fromarray(tall)))[..., 0] == 90).all()
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    assert abs(pixels(encoded(Image.fromarray(stripes))).astype(int) - 127.5).max() < 16  # one of them without


def test_arrays_and_gif(pixels):
    assert pixels(moving(1, 2, 3, 4), CLIP, "a.npy")[:, 0, 0, 0].tolist() == [1, 2, 3]  # the first three
    grey = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    for stored in (grey, grey[..., None], np.asfortranarray(grey)):
        np.testing.assert_array_equal(pixels(array(stored), CLIP, "a.npy"), grey[..., None])
    file = io.BytesIO()
    np.savez_compressed(file, clip=grey)
    np.testing.assert_array_equal(pixels(file.getvalue(), CLIP, "a.npz"), grey[..., None])
    frames = [Image.new("L", (4, 4), value) for value in (10, 120, 240)]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    for channels in (1, 3):
        assert pixels(gif, CLIP._replace(channels=channels), "a.gif")[:, 0, 0, 0].tolist() == [10, 120, 240]
    colour = np.zeros((3, 8, 8, 4), np.uint8)  # transparent
    assert (pixels(array(colour), CLIP, "a.npy") == 255).all()


def mp4(*values: int) -> bytes:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for value in values:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def test_mp4(pixels):
    seen = pixels(mp4(0, 60, 120, 180, 240), Shape(4, 8, 8, 3), "a.mp4")
    assert seen.shape == (4, 8, 8, 3) and np.ptp(seen, axis=(1, 2, 3)).max() <= 4
    assert abs(seen.mean(axis=(1, 2, 3)) - [0, 60, 120, 180]).max() < 6  # its codec loses some
    with pytest.raises(UserError, match=r"b\.mp4: it cannot be decoded"):
        pixels(mp4(0, 60, 120)[:-200], Shape(3, 8, 8, 3), "b.mp4")
    unknown = bytearray(mp4(0, 60).replace(b"mp4v", b"none"))
    unknown[unknown.index(b"\x04\x80\x80\x80", unknown.index(b"esds")) + 5] = 0xFF  # its code stands here again
    with pytest.raises(UserError, match=r"c\.mp4: its pictures are in a code that FFmpeg does not know"):
        pixels(bytes(unknown), Shape(2, 8, 8, 3), "c.mp4")
    titled = mp4(0, 60, 120).replace(b"Lavf", b"\xff\xfe\xff\xfe")  # the name of what wrote it, not in UTF-8
    assert pixels(titled, Shape(3, 8, 8, 3), "d.mp4").shape == (3, 8, 8, 3)


def bomb(side: int) -> bytes:
    """A PNG that claims so many pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def head(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    """The head of an array, without it."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
BAD_PICTURES = {
    "text": (b"hello", "not a picture"),
    "empty": (b"", "not a picture"),
    "cut png": (encoded(Image.fromarray(NOISE))[:2000], "damaged picture"),
    "cut jpeg": (encoded(Image.fromarray(NOISE), "JPEG")[:1500], "damaged picture"),
    "bomb": (bomb(9000), "too many pixels"),  # 81 M, below Pillow's own limits
    "warned bomb": (bomb(12000), "too many pixels"),
    "refused bomb": (bomb(40000), "too many pixels"),
    "animated": (
        encoded(Image.new("L", (4, 4), 1), "GIF", save_all=True, append_images=[Image.new("L", (4, 4), 200)]),
        "a clip, not a picture",
    ),
    "floats": (encoded(Image.new("F", (4, 4), 0.5), "TIFF"), "unknown pixels"),
}
BAD_CLIPS = {
    "text": (b"hello there", "not a clip"),
    "pickle": (head((1,), "|O") + pickle.dumps([1]), "array not of uint8"),
    "short": (moving(1, 2), "too few frames"),
    "floats": (array(np.zeros((3, 4, 4))), "array not of uint8"),
    "flat": (array(np.zeros((4, 4), np.uint8)), "array of another shape"),
    "two channels": (array(np.zeros((3, 4, 4, 2), np.uint8)), "array of another shape"),
    "cut": (moving(1, 2, 3)[:-1], "damaged array"),
    "claims much": (head((1 << 40, 4, 4)), "damaged array"),
    "cut head": (moving(1, 2, 3)[:20], "damaged array"),
    "zip": (b"PK\x03\x04 no archive", "damaged array"),
    "cut gif": (
        encoded(Image.fromarray(NOISE), "GIF", save_all=True, append_images=[Image.fromarray(255 - NOISE)] * 2)[:3000],
        "damaged picture",
    ),
    "gif that grows": (  # its second frame claims 127 million pixels; a fuzzer made it
        base64.b64decode(
            "R0lGODdhBAAEAIMAAC0uLyorLCcoKSQlJiEiIx4fIBscHRgZGhUWFxITFA8QEQwNDgkKCwYHCAMEBQABAiwAAAAABAAEAAAIFQAfOGjA"
            "YIGCBAgOGChAYICAAAACAgAh+QQBAAAQACwAAAAALS4vKissJygpJCUmISIjHh8gGxwdGBkaFRYXEhMUDxARDA0OCQoBAAsGBwgDBAUA"
            "AQIsAAAAAASCBAgOGChggYIECA4YKEBggIAAAAICADs="
        ),
        "frames of different sizes",
    ),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_pictures_are_named_and_counted(tmp_path: Path, name: str):
    data, reason = BAD_PICTURES[name]
    folder = write(tmp_path, {"a.png": plain(1), "b.png": data})
    with pytest.raises(UserError, match=r"b\.png: column 'image', file b\.png: ") as caught:
        read(folder)
    assert caught.value.reason == reason  # type: ignore[attr-defined]
    found = read(folder, on_error="skip")
    assert (len(found.rows), found.skipped) == (1, {reason: 1})


@pytest.mark.parametrize("name", BAD_CLIPS)
def test_bad_clips_are_named_and_counted(tmp_path: Path, name: str):
    data, reason = BAD_CLIPS[name]
    folder = write(tmp_path, {"a.npy": moving(1, 2, 3), "b.npy": data})
    with pytest.raises(UserError, match=r"b\.npy: column 'image', file b\.npy: "):
        read({"videos": str(folder)}, shape=CLIP)
    found = read({"videos": str(folder)}, shape=CLIP, on_error="skip")
    assert (len(found.rows), found.skipped) == (1, {reason: 1})


def test_a_pickle_is_never_loaded(tmp_path: Path):
    file = io.BytesIO()
    np.save(file, np.array([Trap(str(tmp_path / "sprung"))], object), allow_pickle=True)
    folder = write(tmp_path / "clips", {"a.npy": file.getvalue()})
    with pytest.raises(UserError, match="never a pickle"):
        read({"videos": str(folder)}, shape=CLIP)
    assert not (tmp_path / "sprung").exists()


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_an_archive_that_claims_much_is_not_unpacked(tmp_path: Path):
    file = io.BytesIO()
    np.savez_compressed(file, clip=np.zeros((5, 1 << 13, 1 << 13), np.uint8))
    assert len(file.getvalue()) < 1 << 20 < 4 * MOST_PIXELS
    with pytest.raises(UserError, match="its array claims"):
        read({"videos": str(write(tmp_path, {"a.npz": file.getvalue()}))}, shape=CLIP)
