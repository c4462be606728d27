"""Digests and atomic writes: a file is there whole or not at all, and one that was damaged is not believed."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from dpo_jax.errors import UserError, each_once

_BLOCK_BYTES = 1 << 24
_OWN_DIGEST = "0" * 32  # stands in a sealed file while it is digested
_writes = True

Json = dict[str, Any]
"""A JSON object."""


def leave_to_the_first() -> None:
    """Write nothing here from now on: the first process of the run holds the same and writes it."""
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
    """Write a whole file: a reader, and a crash, see the old content or the new, never a part.

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


def add_to(path: Path, data: bytes) -> None:
    """Add to the end of a file; of the processes of a run only the first one does."""
    if _writes:
        with path.open("ab") as file:
            file.write(data)


def check_place(path: Path, *, folder: bool = False) -> Path:
    """Return a place; refuse, before hours of work, one where no file, or no folder, can be written, as a UserError."""
    above = next(each for each in (path.absolute(), *path.absolute().parents) if os.path.lexists(each))
    if path.exists() and path.is_dir() != folder:
        other = "is a file; name a folder" if folder else "is a directory; name a file"
        raise UserError(f"{path} {other}.")
    if above != path.absolute() and not above.is_dir():
        raise UserError(f"{path} cannot be written: {above} is a file, not a folder.")
    writes_in = above if above.is_dir() else above.parent
    try:
        with tempfile.TemporaryFile(dir=writes_in):  # `os.access` does not know why, nor what a network disk allows
            return path
    except OSError as error:
        raise UserError(f"{path} cannot be written: {writes_in}: {error.strerror}.") from None


def named_output(flag: str, path: str) -> Path:
    """Return the file that a flag of the command line names; refuse one that cannot be written, as a UserError."""
    try:
        return check_place(Path(path))
    except UserError as error:
        raise UserError(f"command line: {flag} {error}") from None


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically; NaN is written as NaN, never hidden."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file; a UserError says where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf8"), object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON (damaged, or edited by hand): {error}.") from None


def read_json_lines(path: Path) -> list[Json]:
    """Read a file of one JSON object a line; a last line that a killed process left half is left out."""
    *whole, last = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate([*whole, last] if last else whole, start=1):
        try:
            rows.append({**json.loads(line, object_pairs_hook=each_once)})
        except (ValueError, TypeError, RecursionError):
            if number <= len(whole):
                says = "damaged: not a JSON object. Mend or remove this line."
                raise UserError(f"{path}, line {number}: {says}") from None
    return rows


def write_sealed(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON object with a digest of the whole file in it."""
    text = json.dumps({"digest": _OWN_DIGEST, **value}, indent=1, ensure_ascii=False) + "\n"
    write_atomic(path, text.replace(_OWN_DIGEST, digest(text.encode()), 1))


def read_sealed(path: Path, *keys: str) -> Json:
    """Read what `write_sealed` wrote, of which these keys are a part.

    Raises:
        UserError: any byte of it has changed, its digest is missing, or it is something else.
    """
    value = read_json(path)
    data = path.read_bytes()
    own = re.match(rb'\{\n "digest": "([0-9a-f]{32})"', data)
    if own is None:
        raise UserError(f"{path}: damaged, or of an earlier version: it does not begin with its own digest.")
    if digest(data.replace(own[1], _OWN_DIGEST.encode(), 1)).encode() != own[1] or set(keys) - {*value}:
        raise UserError(f"{path}: damaged: not as it was written.")
    return {name: item for name, item in value.items() if name != "digest"}


def sealed_steps(folder: Path) -> list[int]:
    """The checkpoints in a folder that count, oldest first: those with a seal, STEP.json."""
    return sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit())


def read_step(folder: Path, step: int) -> Json:
    """The seal of a checkpoint, its record and the digests of its files; an error says which step is left."""
    try:
        return read_sealed(folder / f"{step}.json", "record", "digests")
    except UserError as error:
        raise UserError(f"{error} {go_back(folder, step)}") from None


def go_back(folder: Path, step: int) -> str:
    """Advice on a checkpoint that cannot be used."""
    older = [other for other in sealed_steps(folder) if other < step]
    return f"Delete {step} and {step}.json to go on from step {older[-1]}." if older else "No older step is left."


def changed(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """The files below `folder` that differ from their digests, are missing, or have none."""
    now = digest_folder(folder)
    return sorted(name for name in digests.keys() | now.keys() if digests.get(name) != now.get(name))
