"""Hugging Face `datasets`: a hub id, a folder that `save_to_disk` wrote, or a folder of files.

A source is `{hub: org/name, split: "train[:1%]", config: name, revision: ..., streaming: true}`; `where` counts rows of
the split from 1. A streamed data set is never on disk, and cannot be sliced.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dpo_jax.data.sources.record import Record, Records, Spec
from dpo_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    Rows = Dataset | IterableDataset

_MARKS = ("dataset_dict.json", "dataset_info.json", "state.json")  # what save_to_disk leaves in its folder


def read(spec: Spec) -> Records:
    """Read the rows of one split in its order.

    Raises:
        UserError: the data set, its configuration or its split cannot be had; the message is that of `datasets`.
    """
    for key, kind in (("hub", str), ("split", str), ("config", str), ("revision", str), ("streaming", bool)):
        if key in spec and (not isinstance(spec[key], kind) or spec[key] == ""):
            raise UserError(f"data source {dict(spec)}: {key} is {spec[key]!r}, not {_KINDS[kind]}.")
    split = spec.get("split", "train")
    try:
        rows = _saved(spec, split) if is_saved(Path(spec["hub"])) else _loaded(spec, split)
        for number, row in enumerate(_undecoded(rows), 1):
            yield Record(f"{spec['hub']} {split} row {number}", row)
    except UserError:
        raise
    except Exception as error:  # `datasets` raises whatever its reader of files raised
        said = " ".join(str(error).split())[:500]
        raise UserError(f"data source {dict(spec)}: cannot be read ({type(error).__name__}): {said}") from error


_KINDS = {str: "text", bool: "true or false"}


def is_saved(folder: Path) -> bool:
    """Return True if `save_to_disk` wrote this folder."""
    return folder.is_dir() and any((folder / mark).is_file() for mark in _MARKS)


def _undecoded(rows: Rows) -> Rows:
    """The same with pictures and clips as they are stored, bytes or a path: one that is damaged is one bad row."""
    import datasets

    for name, feature in (getattr(rows, "features", None) or {}).items():
        if isinstance(feature, datasets.Image | datasets.Video):
            rows = rows.cast_column(name, type(feature)(decode=False))
    return rows


def _loaded(spec: Spec, split: str) -> Rows:
    import datasets

    return datasets.load_dataset(
        spec["hub"],
        spec.get("config"),
        split=split,
        revision=spec.get("revision"),
        streaming=spec.get("streaming", False),
    )


def _saved(spec: Spec, split: str) -> Rows:
    """A split, or a slice of one, of a folder that `save_to_disk` wrote."""
    import datasets

    unread = [key for key in ("config", "revision", "streaming") if spec.get(key)]
    if unread:
        raise UserError(f"data source {dict(spec)}: {spec['hub']} is a saved data set, which has no {unread[0]}.")
    splits = datasets.load_from_disk(spec["hub"])
    if isinstance(splits, datasets.Dataset):
        if "split" not in spec:
            return splits
        splits = {str(splits.split or "train"): splits}
    name = split.partition("[")[0]
    if name not in splits:
        raise UserError(f"data source {dict(spec)}: no split {name!r}. {nearest(name, map(str, splits))}")
    lengths = {str(key): len(rows) for key, rows in splits.items()}
    parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    return datasets.concatenate_datasets([splits[part.splitname].select(range(part.from_, part.to)) for part in parts])
