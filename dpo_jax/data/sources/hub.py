"""Hugging Face `datasets`: a hub id, a folder that `save_to_disk` wrote, or a folder of files.

A source is `{hub: org/name, split: "train[:1%]", config: name, revision: ..., streaming: true}`; `where` counts rows of
the split from 1. A streamed data set is never on disk, and cannot be sliced.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dpo_jax.data.sources.record import Record, Records, Spec, option, text_of
from dpo_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

_MARKS = ("dataset_dict.json", "dataset_info.json", "state.json")  # what save_to_disk leaves in its folder


def read(spec: Spec) -> Records:
    """Read the rows of one split in its order.

    Raises:
        UserError: the data set, its configuration or its split cannot be had; the message is that of `datasets`.
    """
    import datasets

    name, split = text_of(spec, "hub", ""), text_of(spec, "split", "train")
    config, revision = text_of(spec, "config", None), text_of(spec, "revision", None)
    streaming = option(spec, "streaming", (False, True))
    try:
        if is_saved(Path(name)):
            rows = _saved(spec, split)
        else:
            rows = datasets.load_dataset(name, config, split=split, revision=revision, streaming=streaming)
        # Pictures and clips stay as they are stored, bytes or a path: one that is damaged is one bad row.
        for column, feature in (getattr(rows, "features", None) or {}).items():
            if isinstance(feature, datasets.Image | datasets.Video):
                rows = rows.cast_column(column, type(feature)(decode=False))
        for number, row in enumerate(rows, 1):
            yield Record(f"{name} {split} row {number}", row)
    except UserError:
        raise
    except Exception as error:  # `datasets` raises whatever its reader of files raised
        said = " ".join(str(error).split())[:500]
        raise UserError(f"data source {dict(spec)}: cannot be read ({type(error).__name__}): {said}") from error


def is_saved(folder: Path) -> bool:
    """Return True if `save_to_disk` wrote this folder."""
    return folder.is_dir() and any((folder / mark).is_file() for mark in _MARKS)


def _saved(spec: Spec, split: str) -> Dataset:
    """A split, or a slice of one, of a folder that `save_to_disk` wrote, as Python's values.

    The folder may remember another format, such as arrays.
    """
    import datasets

    unread = [key for key in ("config", "revision", "streaming") if spec.get(key)]
    if unread:
        raise UserError(f"data source {dict(spec)}: {spec['hub']} is a saved data set, which has no {unread[0]}.")
    splits = datasets.load_from_disk(spec["hub"]).with_format(None)
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
