"""Pictures and clips that come with packages or are made by code: samples of ten classes each.

- `{package: fashion-mnist, split: train | test, limit: N}`: clothes, 28 x 28 grey, from `launch/fashion_mnist.sh`.
- `{package: digits, split: train | test, limit: N}`: scikit-learn's handwritten digits, 8 x 8 grey; 1,400 and 397.
- `{package: moving-digits, split: train | test, limit: N, jitter: 0.0, seed: 0}`: clips of one that bounces inside the
  frame; with `pairs: smooth` pairs of the same digit on the same path, smooth chosen and jittered (2 pixels, unless it
  says) rejected. `jitter` displaces each frame by up to so many pixels and dims it by up to a half; 0 does neither.
  Clip i is of digit i of the split, over and over, and everything about it is a function of (seed, split, i): the
  source's own seed, so that it is the same data for every seed of an experiment, and in every version of numpy.

Dimension key: N pictures, F frames, H height, W width.
"""

from __future__ import annotations

import functools
import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpo_jax.data.pictures.samples import Shape
from dpo_jax.data.sources.record import Kind, Record, Records, Spec, limited, number_of, option, text_of
from dpo_jax.errors import UserError, nearest

FASHION_MNIST = (Path(".data/fashion-mnist"), Path("/usr/share/datasets/fashion-mnist"))
"""Where its files may lie: where the script puts them, and where the Debian package does."""

_FETCH = "Fetch it: bash launch/fashion_mnist.sh (Debian's package; elsewhere {package: digits} may serve)."
_SPLITS = ("train", "test")
_TRAIN = 1400  # of the digits, the first; the others are test
_SIDE = 8  # of a digit, pixels
_SLOWEST, _FASTEST = 0.5, 1.5  # along each axis, pixels a frame where a digit is as large as it is stored
_DIMMEST = 0.5
_MOST = 1 << 32  # clips of a split


def package_of(spec: Spec) -> Kind:
    """Return the package that a source names; raises UserError where there is none of that name."""
    name = text_of(spec, "package", "")
    if name not in PACKAGES:
        raise UserError(f"data source {dict(spec)}: unknown package {name!r}. {nearest(name, PACKAGES)}")
    return PACKAGES[name]


def read(spec: Spec, shape: Shape) -> Records:
    """The records of a package, whose cells are what makes pixels.

    Raises:
        UserError: it is unknown, not there, or its options are wrong.
    """
    return package_of(spec).read(spec, shape)


def _fashion_mnist(spec: Spec, shape: Shape) -> Records:
    prefix = {"train": "train", "test": "t10k"}[option(spec, "split", _SPLITS)]
    folder = next((folder for folder in FASHION_MNIST if _idx_file(folder, f"{prefix}-images-idx3-ubyte")), None)
    if folder is None:
        looked = " and ".join(map(str, FASHION_MNIST))
        raise UserError(f"data source {dict(spec)}: Fashion-MNIST is not there; looked in {looked}. {_FETCH}")
    arrays = [_read_idx(folder, f"{prefix}-{name}-ubyte") for name in ("images-idx3", "labels-idx1")]
    return _pictures(spec, shape, f"fashion-mnist {prefix}", *arrays)


def _digits(spec: Spec, shape: Shape) -> Records:
    split = option(spec, "split", _SPLITS)
    return _pictures(spec, shape, f"digits {split}", *_read_digits(split))


def _pictures(spec: Spec, shape: Shape, name: str, pixels_NHW: np.ndarray, classes_N: np.ndarray) -> Records:
    if shape.frames is not None:
        raise UserError(f"data source {dict(spec)} is of pictures, but clips of {shape.frames} frames are wanted.")
    for number in limited(spec, range(len(pixels_NHW))):
        values = {"image": functools.partial(_picture, pixels_NHW, number), "class": int(classes_N[number])}
        yield Record(f"{name} row {number + 1}", values)


def _picture(pixels_NHW: np.ndarray, number: int) -> np.ndarray:
    return pixels_NHW[number][None, ..., None]


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """An array of unsigned bytes in the format IDX: its rank, its sizes as big-endian words, its bytes."""
    path = _idx_file(folder, name)
    if path is None:
        raise UserError(f"Fashion-MNIST: {folder / name}, or the same with .gz, is missing. {_FETCH}")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"Fashion-MNIST: {path} cannot be read: {error}. {_FETCH}") from error
    rank = int(name[name.index("idx") + 3])
    sizes = tuple(map(int, np.frombuffer(data[4 : 4 + 4 * rank], ">u4")))
    if data[:4] != bytes([0, 0, 8, rank]) or len(data) != 4 + 4 * rank + math.prod(sizes):
        raise UserError(f"Fashion-MNIST: {path} is damaged: not IDX of bytes with {rank} axes. {_FETCH}")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sizes)


@functools.cache
def _read_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels, uint8 [N, 8, 8], 0 to 255, and classes [N] of split train or test."""
    from sklearn.datasets import load_digits

    flat, classes_N = map(np.asarray, load_digits(return_X_y=True))
    part = slice(None, _TRAIN) if split == "train" else slice(_TRAIN, None)
    pixels_NHW = np.rint(flat[part].reshape(-1, _SIDE, _SIDE) * (255.0 / 16.0)).astype(np.uint8)
    return pixels_NHW, classes_N[part]


class _Clip(NamedTuple):
    """All that decides a clip: the digit, uint8 [8, 8], the key of its random numbers, and how much it jitters."""

    digit_HW: np.ndarray
    seed: int
    number: int
    jitter: float
    shape: Shape

    def frames(self) -> np.ndarray:
        """The clip, uint8 [F, H, W, 1]."""
        frames, height, width, _ = self.shape
        assert frames is not None
        scale = min(height, width) // (2 * _SIDE) or 1
        digit_HW = np.kron(self.digit_HW, np.ones((scale, scale)))
        room_2 = np.array([height, width]) - _SIDE * scale
        start_2, speed_2, sign_2, *jitter = np.split(_uniform(self.seed, self.number, 6 + 3 * frames), [2, 4, 6])
        steps_2 = (_SLOWEST + (_FASTEST - _SLOWEST) * speed_2) * np.where(sign_2 < 0.5, -scale, scale)
        places_F2 = _bounced(start_2 * room_2 + np.arange(frames)[:, None] * steps_2, room_2)
        jitter_F3 = jitter[0].reshape(frames, 3)
        bright_F = np.ones(frames)
        if self.jitter:
            places_F2 = np.clip(places_F2 + (2.0 * jitter_F3[:, :2] - 1.0) * self.jitter, 0.0, room_2)
            bright_F = 1.0 - (1.0 - _DIMMEST) * jitter_F3[:, 2]
        size, each = (height, width), zip(bright_F, places_F2, strict=True)
        drawn = [_drawn(digit_HW * bright, place_2, size) for bright, place_2 in each]
        return np.rint(np.stack(drawn)).astype(np.uint8)[..., None]


def _moving_digits(spec: Spec, shape: Shape) -> Records:
    """Samples, or with `pairs` pairs."""
    split, pairs = option(spec, "split", _SPLITS), option(spec, "pairs", (None, "smooth"))
    if shape.frames is None or min(shape.height, shape.width) < _SIDE:
        asked = f"{shape.frames} frames of {shape.height} x {shape.width}"
        raise UserError(f"data source {dict(spec)} makes clips of {_SIDE} x {_SIDE} pixels or more, not {asked}.")
    otherwise, fits = 2.0 if pairs else 0.0, f"pixels, 0 to {_MOST}"
    jitter = number_of(spec, "jitter", otherwise, lambda pixels: 0 <= pixels <= _MOST, fits)
    if pairs and not jitter:
        raise UserError(f"data source {dict(spec)}: without jitter both members of a pair are the same clip.")
    digits, classes = _read_digits(split)
    limit, seed = _whole(spec, "limit", len(digits), low=1), _whole(spec, "seed", 0, low=0)
    for index in range(limit):
        number = index + (split == "test") * _MOST
        clip = _Clip(digits[index % len(digits)], seed, number, jitter, shape)
        smooth = clip._replace(jitter=0.0)
        cells = {"chosen": smooth.frames, "rejected": clip.frames} if pairs else {"image": clip.frames}
        yield Record(f"moving-digits {split} row {index + 1}", {**cells, "class": int(classes[index % len(digits)])})


def _whole(spec: Spec, key: str, default: int, *, low: int) -> int:
    fits = f"a whole number, {low} or more"
    return int(number_of(spec, key, default, lambda value: isinstance(value, int) and low <= value <= _MOST, fits))


def _uniform(seed: int, number: int, count: int) -> np.ndarray:
    """Numbers in [0, 1), float64 [count], from raw words, which no version of numpy changes."""
    words = np.random.Philox(key=np.array([seed, number], np.uint64)).random_raw(count)
    return (words >> np.uint64(11)) * 2.0**-53


def _bounced(places_F2: np.ndarray, room_2: np.ndarray) -> np.ndarray:
    """Places on a straight line, reflected into 0 to `room_2`."""
    span_2 = np.maximum(2.0 * room_2, 1.0)  # without room every place is 0
    turned_F2 = np.mod(places_F2, span_2)
    return np.minimum(np.minimum(turned_F2, span_2 - turned_F2), room_2)


def _drawn(digit_HW: np.ndarray, place_2: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The digit at a place between pixels, shared out among the four around it; float64 [H, W]."""
    (top, left), (down, right) = np.floor(place_2).astype(int), np.mod(place_2, 1.0)
    height, width = digit_HW.shape
    canvas_HW = np.zeros((size[0] + 1, size[1] + 1))
    for below, share_y in ((0, 1.0 - down), (1, down)):
        for beside, share_x in ((0, 1.0 - right), (1, right)):
            part = canvas_HW[top + below : top + below + height, left + beside : left + beside + width]
            part += share_y * share_x * digit_HW
    return canvas_HW[:-1, :-1]


PACKAGES: dict[str, Kind] = {
    "fashion-mnist": Kind(_fashion_mnist, ("split",)),
    "digits": Kind(_digits, ("split",)),
    "moving-digits": Kind(_moving_digits, ("split", "jitter", "pairs", "seed")),
}
