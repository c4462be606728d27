"""Files on disk: JSON Lines, JSON, CSV and Parquet, plain, gzipped or in zstd.

A source is `{path: pairs.jsonl}`, relative to the current directory. `.gz` or `.zst` may follow all suffixes but
`.parquet`, which is compressed inside. Only JSON is read wholly.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from dpo_jax.data.sources.hub import has_classes, with_classes
from dpo_jax.data.sources.record import Record, Records, Spec, text_of
from dpo_jax.errors import LONGEST_ROW, BadRow, UserError, each_once

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

_COMPRESSED = (".gz", ".zst")
_LARGEST_ARRAY = 1 << 32  # bytes of a JSON file
_NUMBERS = ("label", "weight", "margin", "soft_label")  # the columns of CSV that are not text
_TOO_LONG = f"the line is longer than {LONGEST_ROW >> 20} MiB, which no row is."
_ROWS = 8  # of a Parquet file, at once: a small one may claim to hold any amount
_MOST_BYTES = _ROWS * LONGEST_ROW


def read(spec: Spec) -> Records:
    """Read the records of one file in its order.

    Raises:
        UserError: there is no such file, its suffix is unknown, or it cannot be read to its end.
    """
    path = Path(text_of(spec, "path", "", wanted="the name of a file"))
    if path.is_dir():
        raise UserError(
            f"data file {path} is a directory. Name one file for each source, or write hub: {path} to read all of a "
            "folder as Hugging Face datasets does."
        )
    if not path.exists():
        raise UserError(f"data file {path} does not exist. Paths are relative to the current directory, {Path.cwd()}.")
    suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSED]
    suffix = suffixes[-1] if suffixes else ""
    if suffix not in READERS or (suffix == ".parquet" and path.suffix != suffix):
        raise UserError(
            f"data file {path} has no suffix that says how to read it. Allowed: {', '.join(READERS)}; all but .parquet "
            f"may be followed by {' or '.join(_COMPRESSED)}."
        )
    try:
        with _opened(path) as file:
            yield from READERS[suffix](file, path, spec)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"data file {path} cannot be read to its end: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, whatever they are compressed with; a stream that was cut off is an error."""
    if path.suffix == ".gz":
        with gzip.open(path) as file:
            yield cast(IO[bytes], file)
    elif path.suffix == ".zst":
        import pyarrow as pa

        # Not by zstandard, to which the end of a file that was cut off is the end.
        with pa.input_stream(str(path), compression="zstd") as stream:
            yield cast(IO[bytes], io.BufferedReader(stream))
    else:
        with path.open("rb") as file:
            yield file


def _read_lines(file: IO[bytes], path: Path, spec: Spec) -> Records:
    """The objects of JSON Lines; blank lines at the end of the file are none, those before a row are bad rows."""
    blank: list[int] = []
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_ROW), b""), 1):
        where = f"{path}:{number}"
        if len(line) == LONGEST_ROW:
            raise UserError(f"data file {where}: {_TOO_LONG}")
        if not line.strip():
            blank.append(number)
            continue
        for earlier in blank:
            says = "the line is blank; only the end of a file may have blank lines."
            yield BadRow(f"{path}:{earlier}", "blank line", says)
        blank.clear()
        yield _parsed(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, where)


def _parsed(line: bytes, where: str) -> Record | BadRow:
    try:
        return _object(json.loads(line.decode("utf8"), object_pairs_hook=each_once), where, "line")
    except UnicodeDecodeError as error:
        return BadRow(where, "not UTF-8", f"the line is not UTF-8 text ({error.reason}, byte {error.start}).")
    except (ValueError, RecursionError) as error:
        return BadRow(where, "not JSON", f"the line is not JSON ({error}).")


def _object(row: object, where: str, what: str) -> Record | BadRow:
    if isinstance(row, dict):
        return Record(where, row)
    kind = type(row).__name__
    return BadRow(where, "not an object", f"the {what} is a JSON {kind}, not an object with a key for each column.")


def _read_json(file: IO[bytes], path: Path, spec: Spec) -> Records:
    """The objects of an array, or the columns of an object row by row; JSON Lines after all are read as such."""
    known = 0 if path.suffix in _COMPRESSED else path.stat().st_size  # before as much is read
    data = b"" if known > _LARGEST_ARRAY else file.read(_LARGEST_ARRAY + 1).removeprefix(codecs.BOM_UTF8)
    if max(known, len(data)) > _LARGEST_ARRAY:
        most = f"{_LARGEST_ARRAY >> 30} GiB"
        raise UserError(f"data file {path} holds more than {most}; write JSON Lines, read line by line.")
    try:
        content = json.loads(data.decode("utf8"), object_pairs_hook=each_once)
    except UnicodeDecodeError as error:
        raise UserError(f"data file {path} is not UTF-8 text ({error.reason}, byte {error.start}).") from error
    except (ValueError, RecursionError) as error:
        if not isinstance(_parsed(data.split(b"\n", 1)[0], ""), Record):
            raise UserError(f"data file {path} is not JSON ({error}).") from error
        yield from _read_lines(io.BytesIO(data), path, spec)
        return
    if isinstance(content, dict):
        content = _transposed(content, path)
    if not isinstance(content, list):
        kind = type(content).__name__
        raise UserError(f"data file {path} holds a JSON {kind}, neither an array of objects nor an object of arrays.")
    for number, row in enumerate(content, 1):
        yield _object(row, f"{path} row {number}", "row")


def _transposed(columns: Mapping[str, object], path: Path) -> list[dict[str, object]]:
    arrays = {name: values for name, values in columns.items() if isinstance(values, list)}
    if len(arrays) < len(columns) or len({len(values) for values in arrays.values()}) != 1:
        held = [f"{name}: {len(arrays[name]) if name in arrays else 'no array'}" for name in columns]
        says = f"is an object, but not of arrays of one length ({', '.join(held) or 'nothing'})."
        raise UserError(f"data file {path} {says}")
    return [dict(zip(arrays, values, strict=True)) for values in zip(*arrays.values(), strict=True)]


def _read_csv(file: IO[bytes], path: Path, spec: Spec) -> Records:
    """The rows of CSV as text, but for the columns of numbers and labels; an empty cell of those is none.

    Not by pyarrow, which guesses types from the first rows: a prompt "12" is a text, and an error has a line.
    """
    columns = spec.get("columns")
    renamed = columns if isinstance(columns, Mapping) else {}
    numbers = {renamed.get(name, name) for name in _NUMBERS}
    csv.field_size_limit(LONGEST_ROW)  # characters; Python's own limit is less than a long conversation
    # What is not UTF-8 arrives as half of a surrogate pair, which the row is refused for.
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        source = _Lines(text, path)
        lines = csv.reader(source, strict=True)
        try:
            yield from _csv_rows(lines, source, path, numbers)
        except csv.Error as error:
            raise UserError(f"{path}:{lines.line_num}: not CSV: {error}.") from error


class _Lines:
    """The lines of a file of CSV, a row of which may have several; `left` is what the rest of the row may hold."""

    def __init__(self, text: IO[str], path: Path):
        self._text, self._path, self._number, self.left = text, path, 0, LONGEST_ROW

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self.left)
        if not line:
            raise StopIteration
        self._number, self.left = self._number + 1, self.left - len(line)
        if self.left <= 0:
            raise UserError(f"data file {self._path}:{self._number}: {_TOO_LONG}")
        return line


def _csv_rows(lines: CsvReader, source: _Lines, path: Path, numbers: set[str]) -> Records:
    header = next(lines, [])
    if len(set(header)) < len(header):
        raise UserError(f"data file {path} has a column twice in its first line: {', '.join(header)}.")
    for cells in lines:
        source.left = LONGEST_ROW
        where = f"{path}:{lines.line_num}"
        if len(cells) == len(header):
            row = zip(header, cells, strict=True)
            yield Record(where, {name: _number(cell) if name in numbers else cell for name, cell in row})
        else:
            says = f"the row has {len(cells)} cells, the first line {len(header)}."
            yield BadRow(where, "wrong number of cells", says)


def _number(cell: str) -> str | float | bool | None:
    """Value of a cell: nothing, a number, true or false; a text where it is none of these."""
    try:
        value = json.loads(cell.strip().lower() or "null")
    except ValueError:
        return cell
    return cell if isinstance(value, str | list | dict) else value


def _read_parquet(file: IO[bytes], path: Path, spec: Spec) -> Records:
    """The rows of a Parquet file; `where` counts them from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        named = _classes(table.schema_arrow)
        number = 0
        for batch in table.iter_batches(batch_size=_ROWS):
            if batch.nbytes > _MOST_BYTES:
                held = f"rows {number + 1} to {number + len(batch)} hold {batch.nbytes >> 20} MiB"
                raise UserError(f"data file {path}: {held}, which no {len(batch)} rows do.")
            for row in batch.to_pylist():
                number += 1
                yield Record(f"{path} row {number}", with_classes(row, named))
    except pa.ArrowException as error:
        raise UserError(f"data file {path} is not Parquet, or damaged: {error}") from error
    if number != table.metadata.num_rows:
        raise UserError(f"data file {path} declares {table.metadata.num_rows} rows and holds {number}.")


def _classes(schema: Any) -> dict[str, Any]:
    """The columns that `datasets` has noted as classes by their numbers."""
    if b"ClassLabel" not in (schema.metadata or {}).get(b"huggingface", b""):
        return {}
    import datasets

    features = datasets.Features.from_arrow_schema(schema)
    return {column: feature for column, feature in features.items() if has_classes(feature)}


READERS: dict[str, Callable[[IO[bytes], Path, Spec], Records]] = {
    ".jsonl": _read_lines,
    ".ndjson": _read_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""Suffix -> what reads such a file, once it is open and no longer compressed."""
