"""Sources on disk and on the hub: folders of pictures or clips, tables that name or hold them, Hugging Face data sets.

`{images: PATH}` or `{videos: PATH}` is one of

- a folder of files, `FOLDER/*.png` or `FOLDER/CLASS/*.png`: the names of the folders in their order are the classes;
- a file of Parquet, JSON Lines or JSON, or a folder of the first two; its cells are paths that start at the file's
  folder (or at `root`), bytes, or Hugging Face's {bytes, path};
- a folder that `save_to_disk` wrote, with `split`.

`{hub: org/name, split: ...}` is as for text. No path may leave the folder it starts at.
"""

from __future__ import annotations

from pathlib import Path

from dpo_jax.data.decoding import CLIPS, PICTURES
from dpo_jax.data.pictures.samples import Shape
from dpo_jax.data.sources import hub, paths
from dpo_jax.data.sources.record import Record, Records, Spec, text_of
from dpo_jax.errors import BadRow, UserError, nearest

_IN_FOLDERS = (".parquet", ".jsonl")
_TABLES = (*_IN_FOLDERS, ".ndjson", ".json")


def read_images(spec: Spec, shape: Shape) -> Records:
    """Pictures on disk; raises UserError where the shape is one of clips."""
    if shape.frames is not None:
        raise UserError(f"data source {dict(spec)} is of pictures, but clips of {shape.frames} frames are wanted.")
    return _read(spec, "images", PICTURES)


def read_videos(spec: Spec, shape: Shape) -> Records:
    """Clips on disk; raises UserError where the shape is one of pictures."""
    if shape.frames is None:
        raise UserError(f"data source {dict(spec)} is of clips, but pictures are wanted: set the number of frames.")
    return _read(spec, "videos", CLIPS)


def read_hub(spec: Spec, shape: Shape) -> Records:
    """Rows of a data set on the hub, pictures or clips as the shape says."""
    return _rooted(hub.read(spec), spec, None)


def _read(spec: Spec, kind: str, suffixes: tuple[str, ...]) -> Records:
    path = Path(text_of(spec, kind, "", wanted="the name of a file or folder"))
    if not path.exists():
        raise UserError(f"data source {dict(spec)}: {path} does not exist; paths start at {Path.cwd()}.")
    if hub.is_saved(path):
        split = {"split": spec["split"]} if "split" in spec else {}
        yield from _rooted(hub.read({"hub": str(path), **split}), spec, None)
        return
    if "split" in spec:
        raise UserError(f"data source {dict(spec)}: {path} has no splits, only saved Hugging Face data sets do.")
    tables = sorted(file for suffix in _IN_FOLDERS for file in path.rglob(f"*{suffix}")) if path.is_dir() else [path]
    for table in tables:
        if not set(table.suffixes) & set(_TABLES):
            raise UserError(f"data file {table} is of no known kind. {nearest(table.suffix, _TABLES)}")
        yield from _rooted(paths.read({"path": str(table)}), spec, table.parent)
    if not tables:
        yield from _rooted(_files(path, suffixes), spec, path)


def _files(folder: Path, suffixes: tuple[str, ...]) -> Records:
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


def _rooted(records: Records, spec: Spec, folder: Path | None) -> Records:
    """The records with the folder at which paths in their cells start, which is `root` where the source names it."""
    root = text_of(spec, "root", None, wanted="the name of a folder")
    for record in records:
        yield record if isinstance(record, BadRow) else record._replace(root=Path(root) if root else folder)
