"""Hugging Face folders: safetensors files mapped into memory. Pickled weights are never opened."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_dtypes
import numpy as np

from dpo_jax.errors import UserError, nearest
from dpo_jax.files import digest_folder, read_json
from dpo_jax.weights.source import WeightsSource, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DIGESTS_FILE = "digests.json"

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


class _Tensor(NamedTuple):
    """Where one tensor lies: a view of its mapped file, its dtype and its shape."""

    data: np.ndarray
    dtype: np.dtype
    shape: tuple[int, ...]


def open_folder(folder: Path, *, stem: str = "model") -> WeightsSource:
    """Opens a folder with config.json, safetensors (one file, or several and an index) and a tokenizer.

    `stem` is how the names of its safetensors files begin.

    Raises:
        UserError: a file is missing, damaged, or differs from the folder's own digests.
    """
    _check_digests(folder)
    source, tensors = open_without_tensors(folder), _map_tensors(folder, stem)

    def read(name: str, rows: slice = slice(None), /) -> np.ndarray:
        tensor = tensors[name]
        return tensor.data.view(tensor.dtype).reshape(tensor.shape)[rows]

    return source._replace(shapes={name: tensor.shape for name, tensor in tensors.items()}, read=read)


def open_without_tensors(folder: Path) -> WeightsSource:
    """The same without its tensors, which need not be there."""
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


def no_tensor(name: str, rows: slice = slice(None), /) -> np.ndarray:
    """How tensors are read where only the config is known."""
    raise UserError(f"tensor {name!r}: only the config of the model was opened, not its tensors.")


def _check_digests(folder: Path) -> None:
    """Compares a folder that carries digests with them: safetensors itself does not notice a flipped byte."""
    path = folder / DIGESTS_FILE
    if not path.exists():
        return
    expected, found = _read_object(path), digest_folder(folder)
    wrong = sorted(name for name in expected if found.get(name) != expected[name])
    if wrong:
        raise UserError(
            f"{folder}: {', '.join(wrong)}: missing, damaged or edited since {DIGESTS_FILE} was written. "
            f"Export again, or delete {DIGESTS_FILE} if you edited on purpose."
        )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: missing. A Hugging Face folder holds config.json and {SINGLE_FILE}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: want a JSON object, found {type(value).__name__}")
    return value


def _map_tensors(folder: Path, stem: str) -> dict[str, _Tensor]:
    single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if not (folder / index).exists():
        if not (folder / single).exists():
            raise UserError(
                f"{folder}: neither {single} nor {index}. Only safetensors are read, never pickled weights."
            )
        return _map_file(folder / single)
    weight_map = _read_object(folder / index).get("weight_map", {})
    tensors: dict[str, _Tensor] = {}
    for file in sorted(set(weight_map.values())):
        listed = {name for name, at in weight_map.items() if at == file}
        held = _map_file(folder / file)
        if listed != held.keys():
            names = ", ".join(sorted(listed ^ held.keys())[:5])
            raise UserError(f"{folder / file}: does not hold the tensors that {index} says, see {names}")
        tensors |= held
    return tensors


def _map_file(path: Path) -> dict[str, _Tensor]:
    """Maps one safetensors file: 8 bytes of header length, a JSON header with offsets, then the data."""
    try:
        mapped = np.memmap(path, np.uint8, mode="r")
        start = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
        header = json.loads(mapped[8:start].tobytes())
        header.pop("__metadata__", None)
        data = mapped[start:]
        tensors = {name: _locate(path, name, entry, data) for name, entry in header.items()}
    except FileNotFoundError:
        raise UserError(f"{path}: missing") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not a safetensors file, or a damaged one. Fetch it again.") from None
    if sum(tensor.data.nbytes for tensor in tensors.values()) != data.nbytes:
        raise UserError(f"{path}: truncated or damaged, its length is not what its header says. Fetch it again.")
    return tensors


def _locate(path: Path, name: str, entry: dict[str, Any], data: np.ndarray) -> _Tensor:
    if entry["dtype"] not in _DTYPES:
        raise UserError(f"{path}: tensor {name!r} has dtype {entry['dtype']}. {nearest(entry['dtype'], _DTYPES)}")
    tensor = _Tensor(data[slice(*entry["data_offsets"])], np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"]))
    if tensor.data.nbytes != math.prod(tensor.shape) * tensor.dtype.itemsize:
        raise UserError(f"{path}: truncated or damaged at tensor {name!r}. Fetch it again.")
    return tensor


def _open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder}: no tokenizer.json; only fast tokenizers are read")
    for name in ("tokenizer_config.json", "config.json"):  # transformers would ask on the terminal whether to run it
        if (folder / name).exists() and "AutoTokenizer" in (_read_object(folder / name).get("auto_map") or {}):
            raise UserError(
                f"{folder / name}: auto_map: the tokenizer wants to run code that came with it. dpo_jax never does; "
                "remove the key if the plain tokenizer.json is what you want."
            )
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
