"""Small pictures and clips as files of every kind."""

from __future__ import annotations

import io
import itertools
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dpo_jax.data.pictures import Pictures, read_pictures
from dpo_jax.data.pictures.samples import Shape

GREY, COLOUR, CLIP = Shape(None, 4, 4, 1), Shape(None, 4, 4, 3), Shape(3, 4, 4, 1)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def plain(value: int, *, side: int = 4) -> bytes:
    """A grey PNG, all of one value."""
    return encoded(Image.fromarray(np.full((side, side), value, np.uint8)))


def array(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def idx(pixels: np.ndarray) -> bytes:
    """The format of Fashion-MNIST's files."""
    return bytes([0, 0, 8, pixels.ndim]) + struct.pack(f">{pixels.ndim}I", *pixels.shape) + pixels.tobytes()


def moving(*values: int) -> bytes:
    """A clip of 4 x 4 grey frames, each of one value, as an array."""
    return array(np.stack([np.full((4, 4), value, np.uint8) for value in values]))


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(spec: Mapping[str, Any] | Path, layout: str = "samples", **options: Any) -> Pictures:
    """One source, without classes, grey pictures of 4 x 4, unless said otherwise."""
    source = {"images": str(spec)} if isinstance(spec, Path) else spec
    return read_pictures([source], layout=layout, **{"shape": GREY, "classes": 0, **options})


@pytest.fixture
def pixels(tmp_path: Path) -> Callable[..., np.ndarray]:
    """pixels(data, shape, "a.png"): what a file of these bytes is read as."""
    number = itertools.count()

    def one(data: bytes, shape: Shape = GREY, name: str = "a.png") -> np.ndarray:
        kind = "images" if shape.frames is None else "videos"
        folder = write(tmp_path / str(next(number)), {name: data})
        return read({kind: str(folder)}, shape=shape).rows[0].samples[0]()

    return one
