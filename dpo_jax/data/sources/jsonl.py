"""JSON Lines files, plain or gzipped: one object a line.

A source is `{path: pairs.jsonl}`, relative to the current directory; `columns` may name the columns to read, so that
`{path: pairs.jsonl, columns: {completion: chosen}}` is how the chosen responses become completions.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dpo_jax.data.sources import rows
from dpo_jax.data.sources.rows import BadRow
from dpo_jax.errors import UserError, nearest
from dpo_jax.types import Completion, PreferencePair, Prompt, UnpairedCompletion

Row = TypeVar("Row", PreferencePair, Completion, UnpairedCompletion, Prompt)
_KEYS = ("path", "columns")


def read_pairs(spec: Mapping[str, Any]) -> Iterator[PreferencePair | BadRow]:
    """The preference pairs of one file in its order; a row that cannot be used comes as the error it would raise."""
    return _read(spec, rows.column_names(spec, rows.PAIR_COLUMNS), rows.pair)


def read_completions(spec: Mapping[str, Any]) -> Iterator[Completion | BadRow]:
    """The completions of one file in its order; a row that cannot be used comes as the error it would raise."""
    return _read(spec, rows.column_names(spec, rows.COMPLETION_COLUMNS), rows.completion)


def read_unpaired(spec: Mapping[str, Any]) -> Iterator[UnpairedCompletion | BadRow]:
    """The labelled completions of one file in its order; a row that cannot be used comes as the error it would raise.

    The key `unpair` may be there: a file of completions has it false.
    """
    columns = rows.column_names(spec, rows.UNPAIRED_COLUMNS)
    return _read(spec, columns, rows.unpaired, keys=(*_KEYS, "unpair"))


def read_prompts(spec: Mapping[str, Any]) -> Iterator[Prompt | BadRow]:
    """The prompts of one file in its order; a row that cannot be used comes as the error it would raise."""
    return _read(spec, {}, lambda row, _, where: rows.prompt(row, where), keys=("path",))


def _read(
    spec: Mapping[str, Any],
    columns: Mapping[str, str],
    make: Callable[[Mapping[str, Any], Mapping[str, str], str], Row],
    *,
    keys: Sequence[str] = _KEYS,
) -> Iterator[Row | BadRow]:
    path = _path(spec, keys)
    for number, line in _lines(path):
        where = f"{path}:{number}"
        try:
            yield make(_parse(line, where), columns, where)
        except BadRow as bad:
            yield bad


def _path(spec: Mapping[str, Any], keys: Sequence[str]) -> Path:
    for key in spec:
        if key not in keys:
            raise UserError(f"data source {dict(spec)}: unknown key {key!r}. {nearest(str(key), keys)}")
    if not isinstance(spec["path"], str) or not spec["path"]:
        raise UserError(f"data source {dict(spec)}: path is {spec['path']!r}, not the name of a file.")
    path = Path(spec["path"])
    if path.is_dir():
        raise UserError(f"data file {path} is a directory. Name one .jsonl or .jsonl.gz file for each source.")
    if not path.exists():
        raise UserError(f"data file {path} does not exist. Paths are relative to the current directory, {Path.cwd()}.")
    return path


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines; blank ones at the end of the file are left out, those before a row are not."""
    blank: list[int] = []
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    blank.append(number)
                    continue
                yield from ((earlier, b"") for earlier in blank)
                blank.clear()
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"data file {path} cannot be read to its end: {error}") from error


def _parse(line: bytes, where: str) -> Mapping[str, Any]:
    if not line:
        raise BadRow(where, "blank line", "the line is blank; only the end of a file may have blank lines.")
    try:
        row = json.loads(line.decode("utf8"))
    except UnicodeDecodeError as error:
        raise BadRow(where, "not UTF-8", f"the line is not UTF-8 text ({error.reason}, byte {error.start}).") from error
    except (ValueError, RecursionError) as error:
        raise BadRow(where, "not JSON", f"the line is not JSON ({error}).") from error
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise BadRow(where, "not an object", f"the line is a JSON {kind}, not an object with a key for each column.")
    return row
