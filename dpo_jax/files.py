"""Digests and atomic writes: a file is there whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import xxhash

_BLOCK_BYTES = 1 << 24
_writes = True


def leave_to_the_first() -> None:
    """From now on nothing is written here: the first process of the run holds the same and writes it."""
    global _writes
    _writes = False


def digest(data: bytes) -> str:
    """128-bit content digest, 32 hex digits (xxh3: finds accidents, not attackers)."""
    return xxhash.xxh3_128_hexdigest(data)


def digest_file(path: Path) -> str:
    """Content digest of one file, read in blocks."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()


def digest_folder(folder: Path) -> dict[str, str]:
    """Relative path -> digest, for every file below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in files}


def write_atomic(path: Path, data: bytes | str) -> None:
    """Writes a whole file: a reader, and a crash, see the old content or the new, never a part.

    Of the processes of a run only the first one does.
    """
    if not _writes:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically; NaN is written as NaN, never hidden."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads one JSON file."""
    return json.loads(path.read_text(encoding="utf8"))
