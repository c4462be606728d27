"""Pictures and clips that come with packages or are made by code: samples of ten classes each.

- `{package: fashion-mnist, split: train | test, limit: N}`: clothes, 28 x 28 grey, from `launch/fashion_mnist.sh`.
- `{package: digits, split: train | test, limit: N}`: scikit-learn's handwritten digits, 8 x 8 grey; 1,400 and 397.
- `{package: moving-digits, ...}`: clips, see `digits`.
"""

from __future__ import annotations

import functools
import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dpo_jax.data.pictures import digits
from dpo_jax.data.pictures.samples import Held, Shape
from dpo_jax.data.sources.record import Record, Spec, option
from dpo_jax.errors import UserError, nearest

FASHION_MNIST = (Path(".data/fashion-mnist"), Path("/usr/share/datasets/fashion-mnist"))
"""Where its files may lie: where the script puts them, and where the Debian package does."""

_FETCH = "Fetch it: bash launch/fashion_mnist.sh (Debian's package; elsewhere {package: digits} may serve)."
_SPLITS = ("train", "test")


class Package(NamedTuple):
    """One package: what reads its records, and the keys that it knows."""

    read: Callable[[Spec, Shape], Iterator[Held]]
    keys: tuple[str, ...]


def read(spec: Spec, shape: Shape) -> Iterator[Held]:
    """The records of a package, whose cells are what makes pixels.

    Raises:
        UserError: it is unknown, not there, or its options are wrong.
    """
    package = PACKAGES[named(spec)]
    yield from package.read(spec, shape)


def named(spec: Spec) -> str:
    """Return the name of the package, checked."""
    if spec["package"] not in PACKAGES:
        name = str(spec["package"])
        raise UserError(f"data source {dict(spec)}: unknown package {name!r}. {nearest(name, PACKAGES)}")
    return spec["package"]


def limit_of(spec: Spec, count: int) -> int:
    """Return how many of `count` records are wanted."""
    limit = spec.get("limit", count)
    if type(limit) is not int or not 0 < limit <= count:
        raise UserError(f"data source {dict(spec)}: limit is {limit!r}. Allowed: 1 to {count}, the split's size.")
    return limit


def _fashion_mnist(spec: Spec, shape: Shape) -> Iterator[Held]:
    prefix = {"train": "train", "test": "t10k"}[option(spec, "split", _SPLITS)]
    folder = next((folder for folder in FASHION_MNIST if _idx_file(folder, f"{prefix}-images-idx3-ubyte")), None)
    if folder is None:
        looked = " and ".join(map(str, FASHION_MNIST))
        raise UserError(f"data source {dict(spec)}: Fashion-MNIST is not there; looked in {looked}. {_FETCH}")
    arrays = [_read_idx(folder, f"{prefix}-{name}-ubyte") for name in ("images-idx3", "labels-idx1")]
    yield from _pictures(spec, shape, f"fashion-mnist {prefix}", *arrays)


def _digits(spec: Spec, shape: Shape) -> Iterator[Held]:
    split = option(spec, "split", _SPLITS)
    yield from _pictures(spec, shape, f"digits {split}", *digits.read_digits(split))


def _pictures(spec: Spec, shape: Shape, name: str, pixels_NHW: np.ndarray, classes_N: np.ndarray) -> Iterator[Held]:
    if shape.frames is not None:
        raise UserError(f"data source {dict(spec)} is of pictures, but clips of {shape.frames} frames are wanted.")
    for number in range(limit_of(spec, len(pixels_NHW))):
        cell = functools.partial(_picture, pixels_NHW, number)
        yield Held(Record(f"{name} row {number + 1}", {"image": cell, "class": int(classes_N[number])}), None)


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


PACKAGES: Mapping[str, Package] = {
    "fashion-mnist": Package(_fashion_mnist, ("split", "limit")),
    "digits": Package(_digits, ("split", "limit")),
    "moving-digits": Package(digits.read, digits.KEYS),
}
