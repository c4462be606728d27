"""Hugging Face `datasets`: a hub id, a folder that `save_to_disk` wrote, or a folder of files.

A source is `{hub: org/name, split: "train[:1%]", config: name, revision: ..., streaming: true}`; `where` counts rows of
the split from 1. A streamed data set is never on disk, and cannot be sliced.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_jax.data.sources.cells import ClassNumber
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
        features = getattr(rows, "features", None) or {}
        for column, feature in features.items():
            if (stored := _stored(feature)) is not feature:
                rows = rows.cast_column(column, stored)
        named = {column: feature for column, feature in features.items() if has_classes(feature)}
        for number, row in enumerate(rows, 1):
            yield Record(f"{name} {split} row {number}", with_classes(row, named))
    except UserError:
        raise
    except Exception as error:  # `datasets` raises whatever its reader of files raised
        said = " ".join(str(error).split())[:500]
        raise UserError(f"data source {dict(spec)}: cannot be read ({type(error).__name__}): {said}") from error


def _stored(feature: object) -> Any:
    """The feature with pictures, clips and sounds as they are stored; itself where it has none."""
    import datasets

    if isinstance(feature, datasets.Image | datasets.Video | datasets.Audio):
        return type(feature)(decode=False)
    if isinstance(feature, datasets.List):
        inner = _stored(feature.feature)
        return feature if inner is feature.feature else datasets.List(inner, length=feature.length)
    return feature


def has_classes(feature: object) -> bool:
    """Return True if the feature is a class by its number, or holds such ones."""
    if isinstance(feature, dict):
        return any(map(has_classes, feature.values()))
    return hasattr(feature, "int2str") or has_classes(getattr(feature, "feature", None) or {})


def with_classes(row: Mapping[str, Any], features: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row with the classes of these features: their numbers with names, and inside a cell the names."""
    if not features:
        return row
    return {column: _named(cell, features[column]) if column in features else cell for column, cell in row.items()}


def _named(cell: Any, feature: Any, *, inside: bool = False) -> object:
    if cell is None:
        return None
    if hasattr(feature, "int2str"):
        number = ClassNumber.of(cell, feature.names)
        return number.name if inside and number is not None else number
    if isinstance(feature, dict):
        return {key: _named(cell.get(key), inner, inside=True) for key, inner in feature.items()}
    inner = getattr(feature, "feature", None)
    return [_named(item, inner, inside=True) for item in cell] if isinstance(cell, list) and inner is not None else cell


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
