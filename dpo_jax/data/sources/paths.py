"""Files on disk: which suffix is read how, plain, gzipped or in zstd.

A source is `{path: pairs.jsonl}`, relative to the current directory. `.gz` or `.zst` may follow all suffixes but
`.parquet`, which is compressed inside.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from dpo_jax.data.sources import json_files, tables
from dpo_jax.data.sources.record import Records, Spec
from dpo_jax.errors import UserError

Reader = Callable[[IO[bytes], Path, Spec], Records]

READERS: dict[str, Reader] = {
    ".jsonl": json_files.read_lines,
    ".ndjson": json_files.read_lines,
    ".json": json_files.read_json,
    ".csv": tables.read_csv,
    ".parquet": tables.read_parquet,
}
"""Suffix -> what reads such a file, once it is open and no longer compressed."""

_COMPRESSED = (".gz", ".zst")


def read(spec: Spec) -> Records:
    """Read the records of one file in its order.

    Raises:
        UserError: there is no such file, its suffix is unknown, or it cannot be read to its end.
    """
    path = _existing(spec)
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


def _existing(spec: Spec) -> Path:
    if not isinstance(spec["path"], str) or not spec["path"]:
        raise UserError(f"data source {dict(spec)}: path is {spec['path']!r}, not the name of a file.")
    path = Path(spec["path"])
    if path.is_dir():
        raise UserError(
            f"data file {path} is a directory. Name one file for each source, or write hub: {path} to read all of a "
            "folder as Hugging Face datasets does."
        )
    if not path.exists():
        raise UserError(f"data file {path} does not exist. Paths are relative to the current directory, {Path.cwd()}.")
    return path


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
