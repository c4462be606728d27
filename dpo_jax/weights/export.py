"""Export of parameters to a Hugging Face folder, which is whole or absent."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import ml_dtypes
import numpy as np
from jax.experimental import multihost_utils
from safetensors.numpy import save_file

from dpo_jax import locks
from dpo_jax.errors import UserError, nearest
from dpo_jax.files import digest_folder, read_json, write_atomic, write_json, write_sealed
from dpo_jax.meeting import meet
from dpo_jax.models.families import TensorRule
from dpo_jax.models.heads import RewardModel
from dpo_jax.models.model import Model
from dpo_jax.types import Params
from dpo_jax.weights.folder import DIGESTS_FILE, INDEX_FILE, SINGLE_FILE
from dpo_jax.weights.load import is_finite, is_stacked, leaf, tensor_names
from dpo_jax.weights.source import JsonObject, WeightsSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EXPORT_FILE = "export.json"
EXPORT_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


class _Tensor(NamedTuple):
    """One tensor to write: the rules of what is in it, and which slice of their parameters; without any, as it came."""

    name: str
    rules: tuple[TensorRule, ...]
    layer: int | None
    size: int  # elements


class Made(NamedTuple):
    """The origin of an export, which it keeps as export.json: two that differ in it never take each other's place."""

    form: str  # merged, adapter, base, ...
    step: int | None = None
    dtype: str = "float32"
    checkpoint: str = ""  # a digest of what was exported

    def __str__(self) -> str:
        at = "" if self.step is None else f" of step {self.step}"
        return f"an export ({self.form}{at}, {self.dtype})"


def free_place(folder: Path, made: Made) -> Path:
    """`folder`, or one beside it where that holds another export, which stays.

    Raises:
        UserError: both hold another.
    """
    step = "" if made.step is None else f"-step-{made.step}"
    other = folder.with_name(f"{folder.name}-{made.form.replace(' ', '-')}{step}-{made.dtype}")
    for place in (folder, other):
        held = _held(place)
        if held is None or held == made:
            return place
    raise UserError(
        f"{folder}: holds {_held(folder)}, and {other} {_held(other)} of "
        "another run. Neither is replaced by what was asked for: move or delete one of them."
    )


_UNKNOWN = Made("of an earlier version, which does not say of what", dtype="of a dtype it does not name")


def _held(folder: Path) -> Made | None:
    """The origin of the export in a folder; None where there is none."""
    if not (folder / DIGESTS_FILE).exists():
        return None
    path = folder / EXPORT_FILE
    try:
        return Made(**read_json(path)) if path.exists() else _UNKNOWN
    except TypeError:
        return _UNKNOWN


class Files(NamedTuple):
    """The form of exported weights."""

    dtype: str = "float32"  # a name of `EXPORT_DTYPES`
    max_shard_bytes: int = 5 * 2**30  # of one file
    made: Made | None = None  # written beside them


def export_folder(
    folder: Path,
    params: Params,
    model: Model | RewardModel,
    rules: Sequence[TensorRule],
    source: WeightsSource,
    *,
    skipped: Sequence[str] = (),
    files: Files = Files(),
    card: str | None = None,
) -> None:
    """Write weights, configs, tokenizer, model card and digests; an earlier export at `folder` is replaced.

    Tensors of the source whose names begin with one of `skipped` are copied through as they are. Every process of a run
    calls it and the first one writes. Host memory holds the tensors of one file at a time.

    Raises:
        UserError: an unknown `dtype`, or `folder` holds something that is not an export.
    """
    dtype = export_dtype(files.dtype)
    copied = [
        _Tensor(name, (), None, math.prod(shape))
        for name, shape in source.shapes.items()
        if name.startswith(tuple(skipped))  # which nothing does, where there are none
    ]
    gather = functools.partial(_gather, params, source, dtype)
    tensors = [*_list_tensors(model, rules), *copied]
    with whole_or_absent(folder, files.made) as partial:
        if partial:
            config = {key: value for key, value in source.config.items() if key != "torch_dtype"}
            write_json(partial / "config.json", {**config, "dtype": files.dtype})
            tokenizer = source.tokenizer()
            write_json(partial / "generation_config.json", _generation_config(source, tokenizer))
            tokenizer.save_pretrained(str(partial))
            if card is not None:
                write_atomic(partial / "README.md", card)
        _write_tensors(partial, gather, tensors, dtype, files.max_shard_bytes)


def export_arrays(
    folder: Path, arrays: Mapping[str, jax.Array], *, tokenizer: PreTrainedTokenizerFast, files: Files = Files()
) -> None:
    """Write arrays under their names, which no other program knows, with a tokenizer and digests.

    Raises:
        UserError: as `export_folder` does.
    """
    dtype = export_dtype(files.dtype)

    def gather(tensor: _Tensor) -> np.ndarray:
        with np.errstate(over="ignore"):
            return all_finite(tensor.name, np.ascontiguousarray(on_host(arrays[tensor.name]), dtype))

    tensors = [_Tensor(name, (), None, array.size) for name, array in arrays.items()]
    with whole_or_absent(folder, files.made) as partial:
        if partial:
            write_json(partial / "config.json", {"dtype": files.dtype})
            tokenizer.save_pretrained(str(partial))
        _write_tensors(partial, gather, tensors, dtype, files.max_shard_bytes)


def _generation_config(source: WeightsSource, tokenizer: PreTrainedTokenizerFast) -> JsonObject:
    """That of the source; other programs then stop at the tokenizer's EOS too, as sampling here does."""
    stops = list(source.stop_tokens(tokenizer))
    named = np.atleast_1d(source.generation_config.get("eos_token_id", [])).tolist()
    if set(stops) <= set(named):
        return source.generation_config
    return {**source.generation_config, "eos_token_id": stops if len(stops) > 1 else stops[0]}


def export_dtype(name: str) -> np.dtype:
    """The dtype of this name in a checkpoint; raises UserError where there is none."""
    if name not in EXPORT_DTYPES:
        raise UserError(f"export dtype {name!r} is not supported. {nearest(name, EXPORT_DTYPES)}")
    return np.dtype(EXPORT_DTYPES[name])


def check_export_place(folder: Path) -> Path:
    """Return a folder to export into; refuse one that holds something that is not an export, as a UserError."""
    if folder.exists() and not (folder / DIGESTS_FILE).exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty, and no earlier export (no {DIGESTS_FILE}). Name another folder.")
    return folder


@contextlib.contextmanager
def whole_or_absent(folder: Path, made: Made | None = None) -> Iterator[Path | None]:
    """An empty folder to fill, which takes the place of an earlier export at the end, with digests of what is in it.

    What it is made of, `made`, is kept in it; `free_place` finds a folder that holds no other export.

    Every process of a run enters; the first one gets the folder, the others None.

    Raises:
        UserError: `folder` holds something that is not an export.
    """
    folder = check_export_place(folder.resolve())
    partial = folder.with_name(f".{folder.name}.partial")
    if jax.process_index():
        yield None
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locks.held(locks.Lock(locks.beside(folder), instead="name another folder")):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            yield partial
            if made:
                write_json(partial / EXPORT_FILE, made._asdict())
            write_sealed(partial / DIGESTS_FILE, digest_folder(partial))
            # The earlier export is moved aside first: a crash in between leaves no folder, never a mixed one.
            old = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
    meet(f"exported {folder}", sees=folder)


def _list_tensors(model: Model | RewardModel, rules: Sequence[TensorRule]) -> list[_Tensor]:
    tensors: list[_Tensor] = []
    for _, parts in itertools.groupby(rules, lambda rule: rule.name):
        held = tuple(parts)
        shapes = [leaf(model.shapes, rule.path).shape for rule in held]
        names = tensor_names(held[0], shapes[0])
        layers = range(len(names)) if is_stacked(held[0]) else (None,)
        size = sum(map(math.prod, shapes)) // len(names)
        tensors += [_Tensor(name, held, layer, size) for name, layer in zip(names, layers, strict=True)]
    return tensors


def _write_tensors(
    partial: Path | None,
    gather: Callable[[_Tensor], np.ndarray],
    tensors: Sequence[_Tensor],
    dtype: np.dtype,
    max_bytes: int,
) -> None:
    """Write the files, and their index if there are several; without a folder it only takes part in gathering."""
    groups: list[list[_Tensor]] = []  # consecutive; a tensor larger than a file is alone in its own
    room = 0
    for tensor in tensors:
        if tensor.size > room:
            groups.append([])
            room = max_bytes // dtype.itemsize
        groups[-1].append(tensor)
        room -= tensor.size
    total = len(groups)
    files = [f"model-{n:05}-of-{total:05}.safetensors" for n in range(1, total + 1)] if total > 1 else [SINGLE_FILE]
    for file, group in zip(files, groups, strict=True):
        # Gathering a sharded array takes every process, writing it only one.
        arrays = {tensor.name: gather(tensor) for tensor in group}
        if partial:
            save_file(arrays, partial / file, metadata={"format": "pt"})
            shutil.copymode(partial / "config.json", partial / file)  # safetensors lets only the owner read
        del arrays
    if partial and total > 1:
        weight_map = {tensor.name: file for file, group in zip(files, groups, strict=True) for tensor in group}
        size = dtype.itemsize * sum(tensor.size for tensor in tensors)
        write_json(partial / INDEX_FILE, {"metadata": {"total_size": size}, "weight_map": weight_map})


def _gather(params: Params, source: WeightsSource, dtype: np.dtype, tensor: _Tensor) -> np.ndarray:
    """The whole tensor on this host, as a checkpoint holds it."""
    if not tensor.rules:
        return np.array(source.read(tensor.name))
    parts = []
    for rule in tensor.rules:
        array = leaf(params, rule.path)
        parts.append(as_stored(array if tensor.layer is None else array[tensor.layer], rule, dtype))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def as_stored(array: jax.Array, rule: TensorRule, dtype: np.dtype) -> np.ndarray:
    """The whole of a parameter (of one layer) on this host, as a checkpoint holds it; every process takes part."""
    host = on_host(array)
    stored = rule.stored_shape(host.shape)
    host = host.reshape(stored[::-1]).T if rule.inputs and rule.transposed else host.reshape(stored)
    with np.errstate(over="ignore"):
        return all_finite(rule.name, np.ascontiguousarray(host, dtype))


def all_finite(name: str, tensor: np.ndarray) -> np.ndarray:
    """The tensor itself, once each of its numbers was looked at.

    Raises:
        UserError: one is NaN or infinite.
    """
    if is_finite(tensor):
        return tensor
    says = f"the tensor {name} holds NaN, or a number that {tensor.dtype} does not: nothing is exported."
    raise UserError(f"{says} Export the step before it.")


def on_host(array: jax.Array) -> np.ndarray:
    """The whole of an array that may be split over hosts; every process takes part."""
    if not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)
