"""Hugging Face folders: safetensors files mapped into memory. Pickled weights are never opened."""

from __future__ import annotations

import json
import math
import reprlib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import ml_dtypes
import numpy as np

from dpo_jax.errors import UserError, each_once, nearest
from dpo_jax.files import digest_folder, read_json, read_sealed
from dpo_jax.weights.source import JsonObject, WeightsSource, no_tensor, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DIGESTS_FILE = "digests.json"

_MOST_JSON = 100_000_000  # bytes; an index of a thousand files has fewer


def open_folder(folder: Path, *, stem: str = "model") -> WeightsSource:
    """Open a folder with config.json, safetensors (one file, or several and an index) and a tokenizer.

    `stem` is how the names of its safetensors files begin.

    Raises:
        UserError: a file is missing, damaged, or differs from the folder's own digests.
    """
    if (path := folder / DIGESTS_FILE).exists():  # safetensors itself does not notice a flipped byte
        try:
            expected, actual = read_sealed(path), digest_folder(folder)
        except UserError as error:
            raise UserError(f"{error} Export again, or delete {DIGESTS_FILE} if you edited on purpose.") from None
        if wrong := sorted(name for name in expected if actual.get(name) != expected[name]):
            raise UserError(
                f"{folder}: {', '.join(wrong)}: missing, damaged or edited since {DIGESTS_FILE} was written. "
                f"Export again, or delete {DIGESTS_FILE} if you edited on purpose."
            )
    source, tensors = open_without_tensors(folder), _map_tensors(folder, stem)

    def read(name: str, rows: slice = slice(None), /) -> np.ndarray:
        tensor = tensors[name]
        return tensor.data.view(tensor.dtype).reshape(tensor.shape)[rows]

    return source._replace(shapes={name: tensor.shape for name, tensor in tensors.items()}, read=read)


def open_without_tensors(folder: Path) -> WeightsSource:
    """Open a folder without its tensors, which need not be there."""
    config = _read_object(folder / "config.json")
    generation = folder / "generation_config.json"
    return WeightsSource(
        where=str(folder),
        config=config,
        generation_config=_read_object(generation) if generation.exists() else token_ids(config),
        shapes={},
        read=no_tensor,
        tokenizer=lambda: _open_tokenizer(folder),
    )


def _read_object(path: Path) -> JsonObject:
    try:
        if (size := path.stat().st_size) > _MOST_JSON:
            raise UserError(f"{path}: {size / 1e6:,.0f} MB long, which no such file is. Fetch it again.")
        value = read_json(path)
    except FileNotFoundError:
        if path.with_name("adapter_config.json").exists():
            raise UserError(
                f"{path.parent}: an adapter without its base. Merge the two, and give that folder."
            ) from None
        raise UserError(f"{path}: missing. A Hugging Face folder holds config.json and {SINGLE_FILE}.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: want a JSON object, found {type(value).__name__}")
    return value


def _map_tensors(folder: Path, stem: str) -> dict[str, Tensor]:
    single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if not (folder / index).exists():
        if not (folder / single).exists():
            raise UserError(f"{folder}: neither {single} nor {index}. Only safetensors, never pickled weights.")
        return map_file(folder / single)
    weight_map = _read_object(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{folder / index}: no weight_map, which says in which file each tensor is. Fetch it again.")
    for file in weight_map.values():  # a file of the folder may be a link: in the hub's cache all are
        if not isinstance(file, str) or "\0" in file or Path(file).name != file or not file.endswith(".safetensors"):
            says = f"{reprlib.repr(file)} is none of the names of files that this folder may hold."
            raise UserError(f"{folder / index}: {says}")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        listed = {name for name, at in weight_map.items() if at == file}
        held = map_file(folder / file)
        if listed != held.keys():
            names = ", ".join(sorted(listed ^ held.keys())[:5])
            raise UserError(f"{folder / file}: does not hold the tensors that {index} says, see {names}")
        tensors |= held
    return tensors


def _open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder}: no tokenizer.json; only fast tokenizers are read")
    for name in ("tokenizer_config.json", "config.json"):  # transformers would ask on the terminal whether to run it
        if (folder / name).exists() and "AutoTokenizer" in str(_read_object(folder / name).get("auto_map")):
            raise UserError(
                f"{folder / name}: auto_map: the tokenizer wants to run code that came with it. dpo_jax never does; "
                "remove the key if the plain tokenizer.json is what you want."
            )
    try:
        # Code of the folder is never run, nor is the user asked whether it may be.
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # it raises what it likes
        says = str(error).partition("\n")[0][:300]
        raise UserError(
            f"{folder}: tokenizer.json or tokenizer_config.json cannot be read ({type(error).__name__}): {says}"
        ) from error


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
        header = json.loads(mapped[8 : 8 + size].tobytes(), object_pairs_hook=each_once)
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
