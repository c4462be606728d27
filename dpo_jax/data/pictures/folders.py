"""Sources on disk and on the hub: folders of pictures or clips, tables that name or hold them, Hugging Face data sets.

`{images: PATH}` or `{videos: PATH}` is one of

- a folder of files, `FOLDER/*.png` or `FOLDER/CLASS/*.png`: the names of the folders in their order are the classes;
- a file of Parquet, JSON Lines or JSON, or a folder of the first two; its cells are paths that start at the file's
  folder (or at `root`), bytes, or Hugging Face's {bytes, path};
- a folder that `save_to_disk` wrote, with `split`.

`{hub: org/name, split: ...}` is as for text. No path may leave the folder it starts at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dpo_jax.data.pictures.decoding import CLIPS, PICTURES
from dpo_jax.data.pictures.samples import Held, Shape
from dpo_jax.data.sources import hub, paths
from dpo_jax.data.sources.record import BadRow, Record, Spec
from dpo_jax.errors import UserError, nearest

_IN_FOLDERS = (".parquet", ".jsonl")
_TABLES = (*_IN_FOLDERS, ".ndjson", ".json")


def read_images(spec: Spec, shape: Shape) -> Iterator[Held]:
    """Pictures on disk; raises UserError where the shape is one of clips."""
    if shape.frames is not None:
        raise UserError(f"data source {dict(spec)} is of pictures, but clips of {shape.frames} frames are wanted.")
    yield from _read(spec, Path(_text(spec, "images")), PICTURES)


def read_videos(spec: Spec, shape: Shape) -> Iterator[Held]:
    """Clips on disk; raises UserError where the shape is one of pictures."""
    if shape.frames is None:
        raise UserError(f"data source {dict(spec)} is of clips, but pictures are wanted: set the number of frames.")
    yield from _read(spec, Path(_text(spec, "videos")), CLIPS)


def read_hub(spec: Spec, shape: Shape) -> Iterator[Held]:
    """Rows of a data set on the hub, pictures or clips as the shape says."""
    for record in hub.read(spec):
        yield Held(record, _root(spec, None))


def _read(spec: Spec, path: Path, suffixes: tuple[str, ...]) -> Iterator[Held]:
    if not path.exists():
        raise UserError(f"data source {dict(spec)}: {path} does not exist; paths start at {Path.cwd()}.")
    if hub.is_saved(path):
        split = {"split": spec["split"]} if "split" in spec else {}
        for record in hub.read({"hub": str(path), **split}):
            yield Held(record, _root(spec, None))
        return
    if "split" in spec:
        raise UserError(f"data source {dict(spec)}: {path} has no splits, only saved Hugging Face data sets do.")
    tables = sorted(file for suffix in _IN_FOLDERS for file in path.rglob(f"*{suffix}")) if path.is_dir() else [path]
    for table in tables:
        if not set(table.suffixes) & set(_TABLES):
            raise UserError(f"data file {table} is of no known kind. {nearest(table.suffix, _TABLES)}")
        for record in paths.read({"path": str(table)}):
            yield Held(record, _root(spec, table.parent))
    if not tables:
        for record in _files(path, suffixes):
            yield Held(record, _root(spec, path))


def _files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Record | BadRow]:
    """A record for each file, in the order of their names; hidden ones are none."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.is_dir() or any(part.startswith(".") for part in parts):
            continue
        if file.suffix.lower() not in suffixes:
            yield BadRow(str(file), "unknown suffix", f"the file is none of {', '.join(suffixes)}.")
            continue
        shown = {"class": classes.index(parts[0])} if len(parts) > 1 else {}
        yield Record(str(file), {"image": "/".join(parts), **shown})


def _root(spec: Spec, otherwise: Path | None) -> Path | None:
    return Path(_text(spec, "root")) if "root" in spec else otherwise


def _text(spec: Spec, key: str) -> str:
    if not isinstance(spec[key], str) or not spec[key]:
        raise UserError(f"data source {dict(spec)}: {key} is {spec[key]!r}, not the name of a file or folder.")
    return spec[key]
