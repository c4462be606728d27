"""Rows that Python holds, as a source of an experiment."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dpo_jax.errors import UserError
from dpo_jax.files import write_atomic
from dpo_jax.meeting import meet
from dpo_jax.runtime.hosts import alike

Rows = str | os.PathLike[str] | Mapping[str, Any] | Iterable[Any]
"""A path, a source as in a configuration ({"hub": "org/name"}), or the rows: dicts, a datasets.Dataset, an iterator."""


def source_of(rows: Rows, folder: Path, name: str) -> dict[str, Any]:
    """The source of these rows; those in memory are written to a file in `folder` that is named by their digest.

    Raises:
        UserError: a row is no mapping or holds what JSON cannot, or processes of a run hold different rows.
    """
    if isinstance(rows, str | os.PathLike):
        return {"path": os.fspath(rows)}
    if isinstance(rows, Mapping):
        return dict(rows)
    text = "".join(_line(row, f"{name}[{number}]") for number, row in enumerate(rows)).encode()
    if not text:
        raise UserError(f"{name}: there are no rows.")
    digest = hashlib.sha256(text).hexdigest()
    if not alike(int(digest[:7], 16)):
        raise UserError(f"{name}: the processes of this run hold different rows; each must be given all of them.")
    path = folder / f"{name}-{digest[:12]}.jsonl"
    if jax.process_index() == 0 and not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    meet(f"{path} is written", sees=folder)
    return {"path": str(path)}


def _line(row: object, where: str) -> str:
    if not isinstance(row, Mapping):
        raise UserError(
            f"{where}: a {type(row).__name__}, not a dict such as {{'prompt': .., 'chosen': .., 'rejected': ..}}."
        )
    try:
        return json.dumps(dict(row), default=_plain, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}. A row holds text, numbers, lists and dicts.") from None


def _plain(value: Any) -> Any:
    """A value as JSON has it: numpy's numbers and arrays, and mappings of other kinds."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"it holds a {type(value).__name__}")
