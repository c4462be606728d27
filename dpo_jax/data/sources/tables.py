"""CSV and Parquet: one row after the other, as the file has them, and no more of it in memory than is being read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from dpo_jax.data.sources.record import LONGEST_ROW, BadRow, Record, Records, Spec
from dpo_jax.errors import UserError

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

_NUMBERS = ("label", "weight", "margin", "soft_label")
_LONGEST_FIELD = 1 << 30  # characters; Python's own limit is less than a long conversation
_ROWS = 8  # of a Parquet file, at once: a small one may claim to hold any amount
_MOST_BYTES = _ROWS * LONGEST_ROW


def read_csv(file: IO[bytes], path: Path, spec: Spec) -> Records:
    """Read rows as text, but for the columns of numbers and labels; an empty cell of those is none.

    Not by pyarrow, which guesses types from the first rows: a prompt "12" is a text, and an error has a line.
    """
    columns = spec.get("columns")
    renamed = columns if isinstance(columns, Mapping) else {}
    numbers = {renamed.get(name, name) for name in _NUMBERS}
    csv.field_size_limit(_LONGEST_FIELD)
    # What is not UTF-8 arrives as half of a surrogate pair, which the row is refused for.
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        lines = csv.reader(text, strict=True)
        try:
            yield from _csv_rows(lines, path, numbers)
        except csv.Error as error:
            raise UserError(f"{path}:{lines.line_num}: not CSV: {error}.") from error


def _csv_rows(lines: CsvReader, path: Path, numbers: set[str]) -> Records:
    header = next(lines, [])
    if len(set(header)) < len(header):
        raise UserError(f"data file {path} has a column twice in its first line: {', '.join(header)}.")
    for cells in lines:
        where = f"{path}:{lines.line_num}"
        if len(cells) != len(header):
            detail = f"the row has {len(cells)} cells, the first line {len(header)}."
            yield BadRow(where, "wrong number of cells", detail)
            continue
        row = dict(zip(header, cells, strict=True))
        yield Record(where, {name: _number(cell) if name in numbers else cell for name, cell in row.items()})


def _number(cell: str) -> str | float | bool | None:
    """Value of a cell: nothing, a number, true or false; a text where it is none of these."""
    try:
        value = json.loads(cell.strip().lower() or "null")
    except ValueError:
        return cell
    return cell if isinstance(value, str | list | dict) else value


def read_parquet(file: IO[bytes], path: Path, spec: Spec) -> Records:
    """Read the rows of a Parquet file; `where` counts them from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        number = 0
        for batch in table.iter_batches(batch_size=_ROWS):
            if batch.nbytes > _MOST_BYTES:
                held = f"rows {number + 1} to {number + len(batch)} hold {batch.nbytes >> 20} MiB"
                raise UserError(f"data file {path}: {held}, which no {len(batch)} rows do.")
            for row in batch.to_pylist():
                number += 1
                yield Record(f"{path} row {number}", row)
    except pa.ArrowException as error:
        raise UserError(f"data file {path} is not Parquet, or damaged: {error}") from error
    if number != table.metadata.num_rows:
        raise UserError(f"data file {path} declares {table.metadata.num_rows} rows and holds {number}.")
