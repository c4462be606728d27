"""JSON Lines, one object a line; and JSON, an array of objects or an object of arrays, which is read wholly."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from dpo_jax.data.sources.record import LONGEST_ROW, BadRow, Record, Records, Spec
from dpo_jax.errors import UserError

_LARGEST_ARRAY = 1 << 32


def read_lines(file: IO[bytes], path: Path, spec: Spec) -> Records:
    """Read the objects of a file, line by line; a line that holds none comes as the error that it would raise."""
    for number, line in _numbered(file, path):
        where = f"{path}:{number}"
        try:
            yield Record(where, _parse(line, where))
        except BadRow as bad:
            yield bad


def read_json(file: IO[bytes], path: Path, spec: Spec) -> Records:
    """Read the objects of an array, or the columns of an object row by row; JSON Lines after all are read as such."""
    data = file.read(_LARGEST_ARRAY + 1).removeprefix(codecs.BOM_UTF8)
    if len(data) > _LARGEST_ARRAY:
        raise UserError(
            f"data file {path} holds more than {_LARGEST_ARRAY >> 30} GiB; write JSON Lines, read line by line."
        )
    try:
        content = json.loads(data.decode("utf8"))
    except UnicodeDecodeError as error:
        raise UserError(f"data file {path} is not UTF-8 text ({error.reason}, byte {error.start}).") from error
    except (ValueError, RecursionError) as error:
        if not _begins_with_an_object(data):
            raise UserError(f"data file {path} is not JSON ({error}).") from error
        yield from read_lines(io.BytesIO(data), path, spec)
        return
    if isinstance(content, dict):
        content = _transposed(content, path)
    if not isinstance(content, list):
        kind = type(content).__name__
        raise UserError(f"data file {path} holds a JSON {kind}, neither an array of objects nor an object of arrays.")
    for number, row in enumerate(content, 1):
        where = f"{path} row {number}"
        yield Record(where, row) if isinstance(row, dict) else _no_object(row, where, "row")


def _begins_with_an_object(data: bytes) -> bool:
    """Return True if the first line alone is an object, as in JSON Lines that are called .json."""
    try:
        return isinstance(json.loads(data.split(b"\n", 1)[0]), dict)
    except (ValueError, RecursionError):
        return False


def _transposed(columns: Mapping[str, object], path: Path) -> list[dict[str, object]]:
    arrays = {name: values for name, values in columns.items() if isinstance(values, list)}
    if len(arrays) < len(columns) or len({len(values) for values in arrays.values()}) != 1:
        held = [f"{name}: {len(arrays[name]) if name in arrays else 'no array'}" for name in columns]
        raise UserError(
            f"data file {path} is an object, but not of arrays of one length ({', '.join(held) or 'nothing'})."
        )
    return [dict(zip(arrays, values, strict=True)) for values in zip(*arrays.values(), strict=True)]


def _numbered(file: IO[bytes], path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines; blank ones at the end of the file are left out, those before a row are not."""
    blank: list[int] = []
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_ROW), b""), 1):
        if len(line) == LONGEST_ROW:
            raise UserError(
                f"data file {path}:{number}: the line is longer than {LONGEST_ROW >> 20} MiB, which no row is."
            )
        if not line.strip():
            blank.append(number)
            continue
        yield from ((earlier, b"") for earlier in blank)
        blank.clear()
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _parse(line: bytes, where: str) -> Mapping[str, object]:
    if not line:
        raise BadRow(where, "blank line", "the line is blank; only the end of a file may have blank lines.")
    try:
        row = json.loads(line.decode("utf8"))
    except UnicodeDecodeError as error:
        raise BadRow(where, "not UTF-8", f"the line is not UTF-8 text ({error.reason}, byte {error.start}).") from error
    except (ValueError, RecursionError) as error:
        raise BadRow(where, "not JSON", f"the line is not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise _no_object(row, where, "line")
    return row


def _no_object(row: object, where: str, what: str) -> BadRow:
    kind = type(row).__name__
    return BadRow(where, "not an object", f"the {what} is a JSON {kind}, not an object with a key for each column.")
