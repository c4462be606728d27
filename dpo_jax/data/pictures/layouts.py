"""One record to the rows that it holds, still without ids: pairs, labelled samples, or samples.

A pair is `chosen, rejected`; or `image_0, image_1` with `label_0`, the share of those who prefer image_0, or `label`,
the number of the preferred one. A half, and the label "tie", are ties: no rows.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dpo_jax.data.pictures.samples import Sample, Shape, sample_of
from dpo_jax.data.sources import messages
from dpo_jax.data.sources.cells import truth_of
from dpo_jax.data.sources.record import Layout, Record
from dpo_jax.data.sources.rows import value_of
from dpo_jax.errors import BadRow
from dpo_jax.types import PictureRow

_BESIDE = ("class", "embedding", "weight")
_PAIR = ("chosen", "rejected", "image_0", "image_1", "label_0", "label")
_ALSO = {"image_0": ("jpg_0", "video_0"), "image_1": ("jpg_1", "video_1"), "image": ("video",)}
"""Name of a column -> what others call it."""


class Wanted(NamedTuple):
    """The shape of every sample, and what it shows: one of so many classes, or a text embedding so wide; 0: none."""

    shape: Shape
    classes: int
    text_width: int


def pairs(record: Record, columns: Mapping[str, str], *, wanted: Wanted) -> list[PictureRow]:
    """The pair of a record, or none where it is a tie; raises BadRow."""
    if _column(record, columns, "image_0") in record.values and columns["chosen"] not in record.values:
        better = _preferred(record, columns)
        if better is None:
            return []
        names = ("image_0", "image_1") if better == 0 else ("image_1", "image_0")
    else:
        names = ("chosen", "rejected")
    return [_row(record, columns, names, wanted)]


def labelled(record: Record, columns: Mapping[str, str], *, wanted: Wanted, unpair: bool = False) -> list[PictureRow]:
    """A sample and whether it is a good one, or, with `unpair`, the two of a pair; raises BadRow."""
    if unpair:
        return [
            pair._replace(samples=(sample,), desirable=good)
            for pair in pairs(record, columns, wanted=wanted)
            for sample, good in zip(pair.samples, (True, False), strict=True)
        ]
    if columns["image"] not in record.values and {"chosen", "rejected"} <= record.values.keys():
        detail = f"no column {columns['image']!r} but a pair. To read each pair as two rows, write unpair: true."
        raise BadRow(record.where, "a pair, without unpair: true", detail)
    (row,) = samples(record, columns, wanted=wanted)
    label = value_of(record, columns, "desirable")
    good = truth_of(label)
    if good is None:
        detail = f"column {columns['desirable']!r} is {reprlib.repr(label)}; it must be true or false (1 or 0)."
        raise BadRow(record.where, "not a label", detail)
    return [row._replace(desirable=good)]


def samples(record: Record, columns: Mapping[str, str], *, wanted: Wanted) -> list[PictureRow]:
    """A sample alone; raises BadRow."""
    return [_row(record, columns, ("image",), wanted)]


LAYOUTS: dict[str, Layout[PictureRow]] = {
    "pairs": Layout((*_PAIR, *_BESIDE), pairs, flipped=lambda row: row._replace(samples=row.samples[::-1])),
    "labelled": Layout(
        ("image", "desirable", *_PAIR, *_BESIDE),  # those of a pair too, for `unpair`
        labelled,
        {"unpair": (False, True)},
        lambda row: row._replace(desirable=not row.desirable),
    ),
    "samples": Layout(("image", *_BESIDE), samples),
}


def _row(record: Record, columns: Mapping[str, str], names: tuple[str, ...], wanted: Wanted) -> PictureRow:
    """The row with the samples in the columns of these names."""
    where, weight = record.where, columns["weight"]
    made: list[Sample] = []
    for name in names:
        column = _column(record, columns, name)
        value = value_of(record, {name: column}, name)
        made.append(sample_of(value, column, where, shape=wanted.shape, root=record.root))
    shown = _shown(record, columns, wanted)
    number = messages.check_number(record.values.get(weight), f"column {weight!r}", where, low=0.0, high=float("inf"))
    return PictureRow("", tuple(made), where, shown, weight=number)


def _column(record: Record, columns: Mapping[str, str], name: str) -> str:
    """The column of this name, or what others call it where `columns` does not rename it."""
    also = _ALSO.get(name, ()) if columns[name] == name else ()
    return next((column for column in (columns[name], *also) if column in record.values), columns[name])


def _preferred(record: Record, columns: Mapping[str, str]) -> int | None:
    """Number of the preferred picture, 0 or 1; None: a tie."""
    share, where = columns["label_0"], record.where
    if share in record.values:
        value = messages.check_number(record.values[share], f"column {share!r}", where, low=0.0, high=1.0)
        if value is None:
            raise BadRow(where, "not a label", f"column {share!r} is empty; it must be the share that prefers image_0.")
        return None if value == 0.5 else int(value < 0.5)
    label = value_of(record, columns, "label")
    if label in (0.5, "tie"):
        return None
    if isinstance(label, bool) or label not in (0, 1):
        allowed = "0 or 1, the number of the preferred picture, or 0.5 or 'tie'"
        raise BadRow(
            where, "not a label", f"column {columns['label']!r} is {reprlib.repr(label)}; it must be {allowed}."
        )
    return int(label)


def _shown(record: Record, columns: Mapping[str, str], wanted: Wanted) -> int | np.ndarray | None:
    if wanted.text_width:
        value, column = value_of(record, columns, "embedding"), f"column {columns['embedding']!r}"
        numbers = np.asarray(value) if isinstance(value, list | tuple | np.ndarray) else np.empty(())
        if numbers.shape != (wanted.text_width,) or numbers.dtype.kind not in "fi" or not np.isfinite(numbers).all():
            detail = f"{column} is {reprlib.repr(value)}, not a list of {wanted.text_width} finite numbers."
            raise BadRow(record.where, "not an embedding", detail)
        return numbers.astype(np.float32)
    if wanted.classes:
        value, column = value_of(record, columns, "class"), f"column {columns['class']!r}"
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < wanted.classes:
            detail = f"{column} is {reprlib.repr(value)}; it must be a whole number from 0 to {wanted.classes - 1}."
            raise BadRow(record.where, "not a class", detail)
        return int(value)
    return None
