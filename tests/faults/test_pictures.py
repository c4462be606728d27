"""Pictures and clips spoiled at random: each is read, or refused in one sentence; nothing else is raised."""

from __future__ import annotations

import io
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dpo_jax.data.decoding import Undecodable, clip, picture
from dpo_jax.errors import BadRow
from tests.data.pictures.conftest import array, encoded
from tests.data.pictures.test_decoding import mp4
from tests.faults.within import within

NOISE = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


def npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, clip=NOISE)
    return file.getvalue()


def gif() -> bytes:
    first, *others = (Image.fromarray(frame) for frame in NOISE)
    return encoded(first, "GIF", save_all=True, append_images=others)


STILL = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOVING = {"GIF": gif, "npy": lambda: array(NOISE), "npz": npz, "MP4": lambda: mp4(0, 120, 240)}


def spoiled(whole: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, most of them in the head; now and then the end cut off, or a piece there twice."""
    data = bytearray(whole)
    for _ in range(draw.randint(1, 6)):
        place = min(int(draw.expovariate(6 / len(data))), len(data) - 1)
        data[place] = draw.choice((0, 1, 127, 128, 255, draw.randrange(256)))
    start, end = sorted(draw.randrange(len(data)) for _ in range(2))
    match draw.randrange(6):
        case 0:
            del data[end:]
        case 1:
            data[end:end] = data[start:end]
        case 2:
            del data[start:end]
    return bytes(data)


@pytest.mark.fault("pictures and clips, spoiled at random")
@pytest.mark.parametrize("kind", [*STILL, *MOVING])
def test_spoiled(kind: str, trials, held):
    draw, count, found = random.Random(kind), trials(60, 1000), Counter[str]()
    whole = MOVING[kind]() if kind in MOVING else encoded(Image.fromarray(NOISE[0]), kind)
    for _ in range(count):
        data = spoiled(whole, draw)
        with within(10, 1000):
            try:
                pixels = clip(data, frames=3) if kind in MOVING else picture(data)
            except Undecodable as bad:
                shown = str(BadRow("clips.jsonl:1", bad.reason, str(bad)))  # as a user sees it
                assert len(shown) < 1000 and shown.isprintable(), shown
                found["refused"] += 1
                continue
        assert pixels.dtype == np.uint8 and pixels.ndim == 4
        found["read"] += 1
    assert found["refused"] > count / 20, found
    held(count, "read, or refused in a sentence; no other exception")
