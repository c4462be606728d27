"""One safetensors file mapped into memory; nothing that it claims of itself is believed, and nothing of it is run."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from dpo_jax.errors import UserError, nearest
from dpo_jax.weights.source import JsonObject

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_LONGEST_HEADER = 100_000_000  # bytes, as in safetensors itself
_LONGEST_NAME = 1000
_MOST_DIMENSIONS = 32


class Tensor(NamedTuple):
    """One tensor: a view of its mapped file, its dtype and its shape."""

    data: np.ndarray
    dtype: np.dtype
    shape: tuple[int, ...]


def map_file(path: Path) -> dict[str, Tensor]:
    """Map a file: 8 bytes of header length, a JSON header with offsets, then the data, every byte of one tensor.

    Raises:
        UserError: it is missing, damaged, or holds what is no weight.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError  # opened, a pipe would wait for ever
        mapped = np.memmap(path, np.uint8, mode="r")
        size = int.from_bytes(mapped[:8].tobytes(), "little")
        if not 2 <= size <= min(_LONGEST_HEADER, len(mapped) - 8):
            raise ValueError(f"a header of {size} bytes")
        header = json.loads(mapped[8 : 8 + size].tobytes(), object_pairs_hook=_each_once)
        header.pop("__metadata__", None)
        data = mapped[8 + size :]
        _check_offsets([entry["data_offsets"] for entry in header.values()], data.nbytes)
        return {name: _locate(path, name, entry, data) for name, entry in header.items()}
    except FileNotFoundError:
        raise UserError(f"{path}: missing, or no file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: not a safetensors file, or a truncated or damaged one. Fetch it again.") from None


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a name is given twice")
    return members


def _check_offsets(offsets: list[list[int]], size: int) -> None:
    """Raise ValueError unless the tensors lie side by side and fill the data: none shares bytes with another."""
    if any(type(at) is not int for pair in offsets for at in pair) or any(len(pair) != 2 for pair in offsets):
        raise ValueError("an offset is no number")
    ordered = sorted(offsets)
    ends = [0, *(end for _, end in ordered)]
    if any(start != end for (start, _), end in zip(ordered, ends, strict=False)) or ends[-1] != size:
        raise ValueError("the tensors overlap, or do not fill the data")
    if any(a > b for a, b in pairwise(ends)):
        raise ValueError("a tensor ends before it begins")


def _locate(path: Path, name: str, entry: JsonObject, data: np.ndarray) -> Tensor:
    kind, shape = entry["dtype"], tuple(entry["shape"])
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise UserError(f"{path}: tensor {name!r} has dtype {kind}. {nearest(str(kind), _DTYPES)}")
    if len(shape) > _MOST_DIMENSIONS or any(type(size) is not int or size < 0 for size in shape):
        raise ValueError("a size is no number")
    if len(name) > _LONGEST_NAME:
        raise ValueError("a name that nobody gave")
    tensor = Tensor(data[slice(*entry["data_offsets"])], np.dtype(_DTYPES[kind]), shape)
    if tensor.data.nbytes != math.prod(shape) * tensor.dtype.itemsize:
        raise ValueError("a tensor is not as long as its shape")
    return tensor
